"""One sandbox's cgroup, whatever form the host's cgroups have.

Two implementations stand behind `Leaf`: pure v2 (`cgroup_v2.py`), and the hybrid of v1 controllers with a bare v2 tree
(`cgroup_v1.py`). Callers never see a file's name. Man pages: cgroups(7); kernel: cgroup-v2.rst, cgroup-v1/memory.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sandboxd.spec import Struct

PREFIX = "sandboxd-"
MEMBERS = "sandboxd-members"
"""Leaf of a pure v2 cgroup into which its own processes move, so that controllers can be enabled below it."""
LAUNCHER_LEAF = "launcher"
"""Leaf of an instance's pure v2 folder that holds its launcher."""
V2_CONTROLLERS = ("memory", "pids", "cpu")
V1_CONTROLLERS = ("memory", "pids")


class OomCounts(Struct, frozen=True, kw_only=True):
    kills: int
    """Processes of this cgroup that the kernel's OOM killer ended."""
    own_limit_hits: int
    """Times the cgroup's own limit was hit."""


class Leaf(Protocol):
    """One sandbox's cgroup. Units: bytes, nanoseconds, counts."""

    v2_fd: int
    """Directory of the v2 leaf, for CLONE_INTO_CGROUP."""
    attach_fds: tuple[int, ...]
    """`cgroup.procs` of the v1 leaves, in the order of `HostFacts.v1_controllers`."""
    oom_fd: int | None
    """Readable when the kernel ran out of memory in here; None where the kernel ends the whole group by itself."""

    def set_limits(self, memory_bytes: int, processes: int) -> None:
        """What is so already is not written again."""

    def cpu_usage_ns(self) -> int: ...
    def memory_peak_bytes(self) -> int: ...
    def processes_peak(self) -> int | None: ...
    def processes(self) -> int: ...
    def oom(self) -> OomCounts: ...
    def kill(self) -> None:
        """Ends every process in here at once (`cgroup.kill`)."""

    def remove(self) -> bool:
        """Closes and removes the leaf; False while a dying task still holds it."""


class Cgroups(Protocol):
    """An instance's part of the cgroup tree."""

    def create(self, name: str, memory_bytes: int, processes: int) -> Leaf:
        """A new leaf with its limits written before any task can enter."""

    def memory_bound_bytes(self) -> int:
        """The tightest memory limit above the instance's folders; a huge number where there is none."""

    def parents(self) -> tuple[Path, ...]:
        """Folders that hold this instance's leaves; recorded, so that a successor can sweep them."""

    def close(self) -> None:
        """Removes the instance's folders; every leaf must be gone."""


class Folder:
    """A cgroup's folder, held open: files are read and written relative to it.

    Those in `measured` are opened at once, where this kernel has them: reading them at a job's end delays its answer.
    """

    def __init__(self, path: Path, measured: Sequence[str] = ()) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._kept: dict[str, int] = {}
        try:
            for name in measured:
                with contextlib.suppress(FileNotFoundError):
                    self._kept[name] = self._open(name)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)

    def read(self, name: str) -> str:
        kept = self._kept.get(name)
        if kept is not None:
            return os.pread(kept, 65536, 0).decode()
        fd = self._open(name)
        try:
            return os.read(fd, 65536).decode()
        finally:
            os.close(fd)

    def read_optional(self, name: str) -> str | None:
        """None where this kernel has no such file."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, value: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            os.write(fd, value.encode())
        except OSError as error:
            error.filename = f"{self.path}/{name}"
            raise
        finally:
            os.close(fd)

    def close(self) -> None:
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def field(text: str, name: str) -> int:
    """The number behind `name` in a flat-keyed file (`cpu.stat`, `memory.events`)."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    raise KeyError(name)


def remove_folder(path: Path) -> bool:
    """rmdir(2) of a cgroup; False while a dying task still holds it, True also when it is gone already."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True


def tightest(folder: Path, name: str) -> int:
    """The smallest number in the files `name` of a cgroup and all above it; `max` and absent files do not count."""
    bounds = [1 << 62]
    for place in (folder, *folder.parents):
        try:
            text = (place / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            bounds.append(int(text))
    return min(bounds)


def limited(leaf: Leaf, memory_bytes: int, processes: int) -> Leaf:
    """The leaf with its limits written; when that fails nothing is left."""
    try:
        leaf.set_limits(memory_bytes, processes)
    except OSError:
        leaf.remove()
        raise
    return leaf
