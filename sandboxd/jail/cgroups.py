"""One sandbox's cgroup, whatever form the host's cgroups have; detection and the launcher's own place in the tree.

Two implementations stand behind `Leaf`: pure v2 (`cgroup_v2.py`), and the hybrid of v1 controllers with a bare v2 tree
(`cgroup_v1.py`). Callers never see a file's name. Man pages: cgroups(7); kernel: cgroup-v2.rst, cgroup-v1/memory.rst.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from sandboxd.errors import HostError
from sandboxd.spec import Struct

PREFIX = "sandboxd-"
MEMBERS = "sandboxd-members"
"""Leaf of a pure v2 cgroup into which its own processes move, so that controllers can be enabled below it."""
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

    def set_limits(self, memory_bytes: int, processes: int) -> None: ...
    def cpu_usage_ns(self) -> int: ...
    def memory_peak_bytes(self) -> int: ...
    def processes_peak(self) -> int | None: ...
    def oom(self) -> OomCounts: ...
    def kill(self) -> None:
        """Ends every process in here at once (`cgroup.kill`)."""

    def populated(self) -> bool: ...
    def remove(self) -> bool:
        """Closes and removes the leaf; False while a dying task still holds it."""


class Cgroups(Protocol):
    """An instance's part of the cgroup tree."""

    def create(self, name: str, memory_bytes: int, processes: int) -> Leaf:
        """A new leaf with its limits written before any task can enter."""

    def parents(self) -> tuple[Path, ...]:
        """Folders that hold this instance's leaves; recorded, so that a successor can sweep them."""

    def close(self) -> None:
        """Removes the instance's folders; every leaf must be gone."""


class Hierarchies(Struct, frozen=True, kw_only=True):
    """Where this process is in the cgroup tree: folders below the mounts."""

    v2: Path
    v1: dict[str, Path]

    @property
    def hybrid(self) -> bool:
        return "memory" in self.v1


def detect(cgroup_text: str | None = None, mountinfo_text: str | None = None) -> Hierarchies:
    """Finds this process's cgroups from /proc/self/{cgroup,mountinfo}; a v1-only host is refused."""
    mountinfo = mountinfo_text if mountinfo_text is not None else Path("/proc/self/mountinfo").read_text()
    membership = cgroup_text if cgroup_text is not None else Path("/proc/self/cgroup").read_text()
    v2_mount: tuple[str, Path] | None = None
    v1_mounts: dict[str, tuple[str, Path]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount_point = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            v2_mount = v2_mount or (root, Path(mount_point))
        elif kind == "cgroup":
            for name in options.split()[-1].split(","):
                v1_mounts.setdefault(name, (root, Path(mount_point)))
    if v2_mount is None:
        raise HostError("cgroup v2", "no cgroup2 filesystem is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")
    v2: Path | None = None
    v1: dict[str, Path] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        if names == "":
            v2 = _below(v2_mount, path)
        for name in names.split(","):
            if name in V1_CONTROLLERS and name in v1_mounts:
                v1[name] = _below(v1_mounts[name], path)
    if v2 is None:
        raise HostError("cgroup v2", "this process is in no cgroup of the v2 hierarchy")
    return Hierarchies(v2=v2, v1=v1)


def _below(mount: tuple[str, Path], path: str) -> Path:
    root, mount_point = mount
    inside = path[len(root) :] if root != "/" and path.startswith(root) else path
    return mount_point / inside.lstrip("/")


class Folder:
    """A cgroup's folder, held open: files are read and written relative to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def read(self, name: str) -> str:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
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


def open_cgroups(instance: str, hierarchies: Hierarchies | None = None) -> Cgroups:
    """The implementation that fits this host, with the instance's folders made and this process in its place."""
    from sandboxd.jail.cgroup_v1 import HybridCgroups
    from sandboxd.jail.cgroup_v2 import PureCgroups

    found = hierarchies or detect()
    name = f"{PREFIX}{instance}"
    return HybridCgroups(name, found) if found.hybrid else PureCgroups(name, found.v2)
