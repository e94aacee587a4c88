"""Another sandbox, or none, as a command before the program's: only what the program itself says can be judged.

Whatever it is, the host survives it: the program runs in a cgroup of bounded memory and processes, and what it writes
goes to a file system in memory, which ends with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sandboxd.audit.corpus import PROGRAMS, Case
from sandboxd.audit.judge import Observation
from sandboxd.audit.target import Routed, argv_of
from sandboxd.errors import InputError, InternalError
from sandboxd.jail.cgroup_host import open_cgroups
from sandboxd.jail.cgroups import Leaf
from sandboxd.spec import MIB

NO_WALL = "none"
"""The control: no sandbox at all."""
MEMORY_BYTES = 512 * MIB
PROCESSES = 256
TIMEOUT_S = 10.0
_END_S = 5.0

_ATTACHED = """
for fd in $1; do echo 0 >&"$fd" || exit; exec {fd}>&-; done
shift
exec "$@"
"""
"""Enters the cgroups behind these descriptors (bash)."""

_IN_MEMORY = """
folder=$1 files=$2; shift 2
mount -t tmpfs -o size=64m,nr_inodes=8192,mode=1777 tmpfs "$folder" && cp $files "$folder"/ || exit
exec "$@"
"""
"""The job's folder, in a mount namespace of its own."""

_NO_SANDBOX = """
new=$1 box=$2; shift 2
mount -t tmpfs -o size=128m tmpfs "$new" && mkdir "$new"/upper "$new"/work "$new"/root &&
mount -t overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" overlay "$new"/root || exit
for folder in /dev /run /sys; do mount --rbind -o ro "$folder" "$new"/root"$folder" || exit; done
mkdir -p "$new"/root/box "$new"/root/old && mount --bind "$box" "$new"/root/box &&
mount -t proc proc "$new"/root/proc && cd "$new"/root && pivot_root . old && umount -l /old || exit
cd /box && exec "$@"
"""
"""The host's own tree and root's own rights; but what is written is gone afterwards, and processes are its own."""


class PeerTarget:
    """Runs each program with `name`: one of COMMANDS, or NO_WALL. Raises InputError when it is not installed."""

    def __init__(self, name: str, routed: Routed) -> None:
        self._prefix: tuple[str, ...]
        if name == NO_WALL:
            spaces = ("--pid", "--mount", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child")
            self._prefix = (*routed.enter, "/usr/bin/unshare", *spaces, "--")
        elif (tool := shutil.which(name)) is None:
            raise InputError("against", f"{name} is not installed")
        else:
            self._prefix = ("/usr/bin/unshare", "--mount", "--")
            self._tool = tool
        self._name = name

    def __enter__(self) -> PeerTarget:
        self._cgroups = open_cgroups(f"audit-{os.getpid()}-peer")
        return self

    def __exit__(self, *_exception: object) -> None:
        self._cgroups.close()

    def observe(self, case: Case, args: Sequence[str]) -> Observation:
        """Runs the case's program with these arguments, for TIMEOUT_S at most."""
        with tempfile.TemporaryDirectory(prefix="sandboxd-audit-", dir="/tmp") as name, self._bounded() as (fds, enter):
            Path(name).chmod(0o711)  # the program's user passes through it
            folder = Path(name, "box")
            folder.mkdir()
            files = " ".join(str(PROGRAMS / file) for file in (case.table.program, *case.table.files))
            make = ("/bin/sh", "-c", _IN_MEMORY, "sh", str(folder), files)
            env = [f"{name}={value}" for name, value in {"PATH": "/usr/bin:/bin", **case.table.env}.items()]
            program = ["/usr/bin/env", "-i", *env, *argv_of(case, args)]
            command = [*enter, *self._prefix, *make, *self._command(Path(name), folder), *program]
            try:
                done = subprocess.run(
                    command,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                    timeout=TIMEOUT_S,
                    pass_fds=fds,
                )
            except subprocess.TimeoutExpired as error:
                return _said(error.stdout or b"", error.stderr or b"", None)
            return _said(done.stdout, done.stderr, done.returncode)

    def _command(self, place: Path, folder: Path) -> list[str]:
        if self._name == NO_WALL:
            new = place / "new"
            new.mkdir()
            return ["/bin/sh", "-c", _NO_SANDBOX, "sh", str(new), str(folder)]
        return COMMANDS[self._name](self._tool, folder)

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[tuple[Sequence[int], Sequence[str]]]:
        """A cgroup: descriptors to be passed on, and the command that enters it."""
        leaf = self._cgroups.create("program", MEMORY_BYTES, PROCESSES)
        try:
            unified = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=leaf.v2_fd)
            try:
                fds = (*leaf.attach_fds, unified)
                yield fds, ("/bin/bash", "-c", _ATTACHED, "bash", " ".join(map(str, fds)))
            finally:
                os.close(unified)
        finally:
            _end(leaf)


def _end(leaf: Leaf) -> None:
    leaf.kill()
    deadline = time.monotonic() + _END_S
    while not leaf.remove():
        if time.monotonic() > deadline:
            raise InternalError("a program outlived its cgroup's end")
        time.sleep(0.005)


def _said(stdout: bytes, stderr: bytes, status: int | None) -> Observation:
    words = stderr.decode(errors="replace").strip()[-120:]
    return Observation(
        stdout=stdout, stderr=stderr, verdict=None, exit_code=status, signal=None, facts=None, reason=words
    )


def _bubblewrap(tool: str, folder: Path) -> list[str]:
    """As it is commonly used for untrusted code: every namespace, a read-only /usr, an unprivileged user."""
    view = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
    view += ["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    view += ["--bind", str(folder), "/box", "--chdir", "/box"]
    user = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    return [*user, tool, "--unshare-all", "--die-with-parent", "--new-session", *view, "--"]


def _nsjail(tool: str, folder: Path) -> list[str]:
    """As its manual shows it for a command."""
    mounts = ["-R", "/usr", "-R", "/lib", "-R", "/lib64", "-R", "/bin", "-T", "/tmp", "-B", f"{folder}:/box"]
    return [tool, "-Mo", "--really_quiet", "--user", "65534", "--group", "65534", *mounts, "--cwd", "/box", "--"]


_ISOLATE = """
tool=$0 folder=$1; shift
"$tool" --init >/dev/null || exit
"$tool" --silent --processes --dir=box="$folder":rw --run -- "$@"
status=$?
"$tool" --cleanup
exit $status
"""


def _isolate(tool: str, folder: Path) -> list[str]:
    """As its manual shows it: a box is made, a program runs in it, the box is removed. The job's folder is its /box."""
    return ["/bin/sh", "-c", _ISOLATE, tool, str(folder)]


COMMANDS: dict[str, Callable[[str, Path], list[str]]] = {"bwrap": _bubblewrap, "nsjail": _nsjail, "isolate": _isolate}
"""Commands of the sandboxes that can be compared with."""
