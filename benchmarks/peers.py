"""Other sandboxes around the same static program. Those that are installed are measured; none is installed by us.

Each runs the program in namespaces of its own, as it is commonly used; what it does less than ours is named beside it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.bare import ENVIRONMENT, CommandFailed, run_sequence

_TIMEOUT_S = 30
_NAME = f"sandboxd-bench-{os.getpid()}"


class Peer(NamedTuple):
    """A sandbox that works on this machine, and the commands that are one run in it."""

    name: str
    does: str
    """What its run consists of."""
    version: str
    commands: tuple[tuple[str, ...], ...]


class Absent(NamedTuple):
    name: str
    reason: str


class _Kind(NamedTuple):
    name: str
    program: str
    does: str
    prepare: Callable[[str, Path, contextlib.ExitStack], Sequence[Sequence[str]]]
    """(its path, a root folder with the program at /hello, undo stack) -> the commands of one run."""


def _bubblewrap(program: str, root: Path, _undo: contextlib.ExitStack) -> Sequence[Sequence[str]]:
    view = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"]
    view += ["--tmpfs", "/tmp", "--ro-bind", str(root / "hello"), "/hello"]
    return [[program, "--unshare-all", "--die-with-parent", "--new-session", *view, "--", "/hello"]]


def _nsjail(program: str, root: Path, _undo: contextlib.ExitStack) -> Sequence[Sequence[str]]:
    return [[program, "--mode", "o", "--really_quiet", "--chroot", str(root), "--", "/hello"]]


def _isolate(program: str, root: Path, undo: contextlib.ExitStack) -> Sequence[Sequence[str]]:
    undo.callback(subprocess.run, [program, "--cleanup"], capture_output=True, check=False)
    return [
        [program, "--silent", "--init"],
        [program, "--silent", f"--dir=/bench={root}", "--run", "--", "/bench/hello"],
        [program, "--silent", "--cleanup"],
    ]


def _runc(program: str, root: Path, _undo: contextlib.ExitStack) -> Sequence[Sequence[str]]:
    bundle = root.parent / "runc"
    bundle.mkdir()
    subprocess.run([program, "spec", "--bundle", str(bundle)], capture_output=True, check=True, timeout=_TIMEOUT_S)
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": str(root), "readonly": True}
    config["process"] |= {"args": ["/hello"], "terminal": False}
    (bundle / "config.json").write_text(json.dumps(config))
    return [[program, "run", "--bundle", str(bundle), _NAME]]


def _docker(program: str, root: Path, undo: contextlib.ExitStack) -> Sequence[Sequence[str]]:
    image = f"{_NAME}:latest"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(root, arcname=".")
    subprocess.run(
        [program, "import", "-", image], input=archive.getvalue(), capture_output=True, check=True, timeout=_TIMEOUT_S
    )
    undo.callback(subprocess.run, [program, "image", "rm", image], capture_output=True, check=False)
    return [[program, "run", "--rm", "--network", "none", image, "/hello"]]


_KINDS = (
    _Kind("bubblewrap", "bwrap", "namespaces; no cgroup, overlay or filter", _bubblewrap),
    _Kind("nsjail", "nsjail", "namespaces and rlimits; no cgroup or filter", _nsjail),
    _Kind("isolate", "isolate", "init, run and cleanup of a box; no cgroup or filter", _isolate),
    _Kind("runc", "runc", "an OCI container: cgroup and namespaces, no filter in its default bundle", _runc),
    _Kind("docker", "docker", "docker run --rm: cgroup, overlay, namespaces, filter", _docker),
)


@contextlib.contextmanager
def found(hello: Path, scratch: Path) -> Iterator[tuple[list[Peer], list[Absent]]]:
    """The peers that work here, tried once, and those that do not, with the reason. What we made for them goes."""
    root = scratch / "peer-root"
    for mount_point in ("", "dev", "proc", "sys", "etc", "tmp"):
        (root / mount_point).mkdir()
    shutil.copy(hello, root / "hello")
    peers: list[Peer] = []
    absent: list[Absent] = []
    with contextlib.ExitStack() as undo:
        for kind in _KINDS:
            program = shutil.which(kind.program, path=ENVIRONMENT["PATH"])
            if program is None:
                absent.append(Absent(kind.name, "not installed"))
                continue
            try:
                commands = tuple(tuple(command) for command in kind.prepare(program, root, undo))
                run_sequence(commands)
            except (CommandFailed, OSError, subprocess.SubprocessError) as error:
                words = getattr(error, "stderr", None) or str(error).encode()
                absent.append(Absent(kind.name, f"installed, but does not work here: {_last_line(words)}"))
                continue
            peers.append(Peer(kind.name, kind.does, _version(program), commands))
        yield peers, absent


def _last_line(words: bytes) -> str:
    return next(iter(words.decode(errors="replace").strip().splitlines()[-1:]), "no reason was given")


def _version(program: str) -> str:
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    return next(iter((told.stdout or told.stderr).splitlines()), "").strip()
