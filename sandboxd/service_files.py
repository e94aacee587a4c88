"""Folders, lock and token of an instance's service: what `sandboxd serve` makes on disk before its first child."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import secrets
from collections.abc import Iterator
from pathlib import Path

from sandboxd import redis_server
from sandboxd.errors import SandboxdError
from sandboxd.instance import SERVICE_USER, Instance

TOKEN_BYTES = 32


class CannotServe(SandboxdError):
    """The service could not be started. `status` is the command's exit status, from sysexits.h."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def own_service(instance: Instance) -> Iterator[None]:
    """Make the service's folders and hold its lock. Raises CannotServe when the instance is served already, or its
    folders cannot be made."""
    user = pwd.getpwnam(SERVICE_USER)
    os.umask(0o022)  # the modes below are meant as they stand, whatever root's shell says
    try:
        instance.state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        check_reachable(instance.state_dir)
        instance.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        for folder in (instance.redis_socket.parent, redis_server.data_folder(instance)):
            folder.mkdir(mode=0o700, exist_ok=True)
            # The folder above is root's alone, so nobody can have put a link here.
            os.chown(folder, user.pw_uid, user.pw_gid, follow_symlinks=False)
        lock = lock_service(instance)
    except OSError as error:
        raise CannotServe(f"{error.filename}: {error.strerror}", os.EX_CANTCREAT) from None
    try:
        yield
    finally:
        remove_run_files(instance)
        os.close(lock)


def lock_service(instance: Instance) -> int:
    """The descriptor that holds the lock of this instance's service; the caller closes it.

    Raises CannotServe when another process holds it.
    """
    path = instance.run_dir / "serve.lock"
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another service may have ended, and removed the file, between our open and our lock.
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except BlockingIOError:
            os.close(lock)
            message = (
                f"instance {instance.name} is served already: stop that one, or choose another name with --instance"
            )
            raise CannotServe(message, os.EX_TEMPFAIL) from None
        except FileNotFoundError:
            pass
        os.close(lock)


def check_reachable(folder: Path) -> None:
    """Every folder above must let the service user through. Raises CannotServe naming the one that does not."""
    for above in folder.parents:
        if not above.stat().st_mode & 0o001:
            raise CannotServe(
                f"user {SERVICE_USER} cannot reach {folder}: chmod o+x {above}, or choose another SANDBOXD_STATE_ROOT",
                os.EX_CONFIG,
            )


def remove_run_files(instance: Instance) -> None:
    """Remove what serve itself made below /run; the launcher removes its own."""
    for path in (instance.redis_socket, instance.notify_socket, instance.run_dir / "serve.lock"):
        path.unlink(missing_ok=True)
    for folder in (instance.redis_socket.parent, instance.run_dir):
        with contextlib.suppress(OSError):
            folder.rmdir()


def load_or_make_token(instance: Instance) -> str:
    """The API token, made at the first start. The file is readable by root alone, under sudo by who called it too.

    Raises CannotServe when somebody put something else there, or it cannot be written.
    """
    path = instance.token_path
    try:
        return _make_token(path)
    except FileExistsError:
        token = path.read_text().strip()
        if not token.isascii() or len(token) < TOKEN_BYTES:
            raise CannotServe(f"{path} holds no token: remove it, a new one is made", os.EX_CONFIG) from None
        return token
    except OSError as error:
        raise CannotServe(f"{path} cannot be written: {error.strerror}", os.EX_CANTCREAT) from None


def _make_token(path: Path) -> str:
    """Whole or not at all. Raises OSError, FileExistsError where there is one."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(token + "\n")
            if os.environ.get("SUDO_UID", "").isdecimal():
                # Whoever may start the service may use it: `sandboxd submit` then works without sudo.
                os.fchown(descriptor, int(os.environ["SUDO_UID"]), -1)
    except OSError:
        path.unlink()
        raise
    return token
