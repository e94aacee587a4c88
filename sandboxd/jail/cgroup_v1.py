"""The hybrid form: limits in the v1 memory and pids hierarchies, a bare v2 leaf for atomic kill, CPU time and
emptiness.

v1 ends one process when memory runs out, never the group: an eventfd on `memory.oom_control` tells the launcher, which
ends the rest (cgroup-v1/memory.rst, sections 9 and 10).
"""

from __future__ import annotations

import os
from pathlib import Path

from sandboxd.errors import HostError
from sandboxd.jail import syscalls
from sandboxd.jail.cgroups import V1_CONTROLLERS, Folder, Leaf, OomCounts, field, limited, remove_folder, tightest
from sandboxd.spec import KIB

MEMSW_SLACK_BYTES = 256 * KIB
"""Swap that a job could use. With none, memory+swap would fail before memory does, and v1 counts only memory's
failures; one batch of charges (64 pages) is enough."""


_MEASURED = (
    ("cpu.stat",),
    ("memory.max_usage_in_bytes", "memory.oom_control", "memory.failcnt"),
    ("pids.peak", "pids.current"),
)
"""Files that are read at a job's end, in each hierarchy."""
DYNMODS = "sandboxd-dynmods"
"""Name of the hierarchy that `favor_dynmods` makes."""
TCP_SHARE = 4
"""Buffers of internet sockets may take this part of the memory limit, beside it."""


class HybridLeaf:
    """One sandbox's folders in three hierarchies."""

    def __init__(self, unified: Path, memory: Path, pids: Path, *, has_memsw: bool) -> None:
        """Makes them; when that fails nothing is left."""
        self._paths = (unified, memory, pids)
        self._has_memsw = has_memsw
        self._limits = (0, 0)
        self._folders: list[Folder] = []
        self.attach_fds: tuple[int, ...] = ()
        self.oom_fd: int | None = None
        try:
            self._make()
        except BaseException:
            self.remove()
            raise

    def _make(self) -> None:
        for path, measured in zip(self._paths, _MEASURED, strict=True):
            path.mkdir(0o755, exist_ok=False)
            self._folders.append(Folder(path, measured))
        self._unified, self._memory, self._pids = self._folders
        self.v2_fd = self._unified.fd
        for folder in (self._memory, self._pids):
            self.attach_fds += (os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder.fd),)
        self.oom_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open("memory.oom_control", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._memory.fd)
        try:
            self._memory.write("cgroup.event_control", f"{self.oom_fd} {control}")
        finally:
            os.close(control)

    def set_limits(self, memory_bytes: int, processes: int) -> None:
        memory_now, processes_now = self._limits
        if memory_bytes != memory_now:
            limits = [("memory.limit_in_bytes", memory_bytes)]
            if self._has_memsw:  # never below the other one, on the way neither
                memsw = ("memory.memsw.limit_in_bytes", memory_bytes + MEMSW_SLACK_BYTES)
                limits.insert(0 if memory_bytes > memory_now > 0 else 1, memsw)
            # v1 charges no socket buffer until this has a limit; it then counts UDP's too (tcp_mem is host-wide).
            limits.append(("memory.kmem.tcp.limit_in_bytes", memory_bytes // TCP_SHARE))
            for name, value in limits:
                self._memory.write(name, str(value))
        if processes != processes_now:
            self._pids.write("pids.max", str(processes))
        self._limits = (memory_bytes, processes)

    def cpu_usage_ns(self) -> int:
        return field(self._unified.read("cpu.stat"), "usage_usec") * 1000

    def memory_peak_bytes(self) -> int:
        return int(self._memory.read("memory.max_usage_in_bytes"))

    def processes_peak(self) -> int | None:
        text = self._pids.read_optional("pids.peak")
        return None if text is None else int(text)

    def processes(self) -> int:
        return int(self._pids.read("pids.current"))

    def oom(self) -> OomCounts:
        kills = field(self._memory.read("memory.oom_control"), "oom_kill")
        hits = int(self._memory.read("memory.failcnt"))
        return OomCounts(kills=kills, own_limit_hits=hits)

    def kill(self) -> None:
        self._unified.write("cgroup.kill", "1")

    def remove(self) -> bool:
        for fd in (*self.attach_fds, *(() if self.oom_fd is None else (self.oom_fd,))):
            os.close(fd)
        self.attach_fds, self.oom_fd = (), None
        for folder in self._folders:
            folder.close()
        return all([remove_folder(path) for path in self._paths])


class HybridCgroups:
    """The instance's folder in the v2, memory and pids hierarchies, below the launcher's own cgroup in each."""

    def __init__(self, name: str, v2: Path, v1: dict[str, Path]) -> None:
        missing = [controller for controller in V1_CONTROLLERS if controller not in v1]
        if missing:
            raise HostError("cgroup v1", f"controllers not mounted: {', '.join(missing)}", "boot with cgroup v2")
        self._parents = (v2 / name, v1["memory"] / name, v1["pids"] / name)
        for parent in self._parents:
            parent.mkdir(0o755, exist_ok=True)
        self._has_memsw = (self._parents[1] / "memory.memsw.limit_in_bytes").exists()

    def create(self, name: str, memory_bytes: int, processes: int) -> Leaf:
        leaf = HybridLeaf(*(parent / name for parent in self._parents), has_memsw=self._has_memsw)
        return limited(leaf, memory_bytes, processes)

    def memory_bound_bytes(self) -> int:
        return tightest(self._parents[1], "memory.limit_in_bytes")

    def parents(self) -> tuple[Path, ...]:
        return self._parents

    def close(self) -> None:
        for parent in self._parents:
            remove_folder(parent)


def favor_dynmods() -> int:
    """Lets the kernel move tasks between cgroups without waiting for an RCU grace period; returns the descriptor of the
    v1 hierarchy, without controllers and mounted nowhere, on which that hangs (cgroups(7), cgroup-v2.rst).

    It holds for the whole kernel, and since Linux 6.18 until the next boot. Raises HostError before Linux 6.0.
    """
    try:
        return syscalls.detached_mount("cgroup", {"none": None, "name": DYNMODS, "favordynmods": None})
    except OSError as error:
        raise HostError("favordynmods", str(error), "Linux 6.0 or newer, or leave --favor-dynmods out") from error
