"""A launcher for one command: the running one of the instance, or a private one that lives as long as the command."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from sandboxd.errors import HostError, LauncherUnavailable
from sandboxd.instance import PRIVATE_PREFIX, Instance
from sandboxd.jail.client import LauncherClient

START_DEADLINE_S = 60.0
"""A first start walks /usr for the image's digest and asks every language for its version."""
STOP_DEADLINE_S = 10.0
_POLL_S = 0.01


def is_running(instance: Instance) -> bool:
    """Whether a launcher of this instance answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(instance.launcher_socket))
        except PermissionError:
            return True  # it is there; whether we may use it is said when we try
        except OSError:
            return False
    return True


@contextlib.contextmanager
def local_launcher(instance: Instance) -> Iterator[LauncherClient]:
    """A client of the instance's launcher, else of a private one named `run-PID`, which is stopped afterwards.

    Raises HostError without root where a private one is needed, LauncherUnavailable when it does not start.
    """
    if is_running(instance):
        with contextlib.closing(LauncherClient(instance.launcher_socket)) as client:
            yield client
        return
    if os.geteuid() != 0:
        raise HostError(
            "root", f"no launcher of instance {instance.name!r} runs, and starting one takes root", "run it with sudo"
        )
    private = Instance(name=f"{PRIVATE_PREFIX}{os.getpid()}", state_root=instance.state_root)
    with launcher_process(private), contextlib.closing(LauncherClient(private.launcher_socket)) as client:
        yield client


@contextlib.contextmanager
def launcher_process(
    instance: Instance,
    *,
    prefix: Sequence[str] = (),
    without: Sequence[str] = (),
    prepared_max: int = 0,
    policies: Path | None = None,
    log: IO[bytes] | None = None,
    stop_deadline_s: float = STOP_DEADLINE_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher that is ready, and is stopped afterwards. `prefix` is a command that becomes the launcher's, `without`
    the walls to leave out, `prepared_max` how many sandboxes it keeps ready; it prints to `log`, else where we do.

    Raises LauncherUnavailable when it does not start.
    """
    child = _spawn(instance, prefix, without, prepared_max, policies, log)
    try:
        _await(instance, child)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(stop_deadline_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _spawn(
    instance: Instance,
    prefix: Sequence[str],
    without: Sequence[str],
    prepared_max: int,
    policies: Path | None,
    log: IO[bytes] | None,
) -> subprocess.Popen[bytes]:
    """Quiet unless something is wrong; not in our process group, so that Ctrl-C reaches us alone."""
    # However this process ends, the launcher is told to, and cleans up.
    lifeline = ["/usr/bin/setpriv", "--pdeathsig", "TERM", "--"]
    command = [sys.executable, "-I", "-m", "sandboxd", "launcher", "--quiet", "--instance", instance.name]
    command += ["--prepared", str(prepared_max)]
    command += [part for layer in without for part in ("--without", layer)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SANDBOXD_STATE_ROOT": instance.state_root}
    for name in ("SANDBOXD_POLICIES", "SANDBOXD_IN_SCOPE"):
        if name in os.environ:
            environment[name] = os.environ[name]
    if policies is not None:
        environment["SANDBOXD_POLICIES"] = str(policies)
    return subprocess.Popen(
        [*lifeline, *prefix, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
        process_group=0,
    )  # fmt: skip


def _await(instance: Instance, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not is_running(instance):
        if child.poll() is not None:
            raise LauncherUnavailable(f"the private launcher ended with status {child.returncode}; see above")
        if time.monotonic() > deadline:
            raise LauncherUnavailable(f"the private launcher was not ready within {START_DEADLINE_S:g} s")
        time.sleep(_POLL_S)
