"""Pure cgroup v2: one leaf has it all, and `memory.oom.group` ends the whole sandbox when memory runs out
(cgroup-v2.rst)."""

from __future__ import annotations

import os
from pathlib import Path

from sandboxd.errors import HostError
from sandboxd.jail.cgroups import (
    LAUNCHER_LEAF,
    MEMBERS,
    V2_CONTROLLERS,
    Folder,
    Leaf,
    OomCounts,
    field,
    limited,
    remove_folder,
    tightest,
)

MOVE_ROUNDS = 5
_MEASURED = ("cpu.stat", "memory.peak", "memory.events", "pids.peak", "pids.current")
"""Files that are read at a job's end."""


class PureLeaf:
    """One sandbox's v2 folder."""

    oom_fd: int | None = None
    attach_fds: tuple[int, ...] = ()

    def __init__(self, path: Path, *, swaps: bool) -> None:
        """Makes the folder; when that fails nothing is left. `swaps`: the host has swap, which must be forbidden."""
        self._limits = (0, 0)
        path.mkdir(0o755, exist_ok=False)
        try:
            self._folder = Folder(path, _MEASURED)
        except OSError:
            remove_folder(path)
            raise
        self.v2_fd = self._folder.fd
        try:
            self._folder.write("memory.oom.group", "1")
            for name in ("memory.swap.max", "memory.zswap.max"):
                if swaps or self._folder.read_optional(name) is not None:
                    self._folder.write(name, "0")
        except OSError:
            self.remove()
            raise

    def set_limits(self, memory_bytes: int, processes: int) -> None:
        for name, value, now in zip(("memory.max", "pids.max"), (memory_bytes, processes), self._limits, strict=True):
            if value != now:
                self._folder.write(name, str(value))
        self._limits = (memory_bytes, processes)

    def cpu_usage_ns(self) -> int:
        return field(self._folder.read("cpu.stat"), "usage_usec") * 1000

    def memory_peak_bytes(self) -> int:
        return int(self._folder.read("memory.peak"))

    def processes_peak(self) -> int | None:
        text = self._folder.read_optional("pids.peak")
        return None if text is None else int(text)

    def processes(self) -> int:
        return int(self._folder.read("pids.current"))

    def oom(self) -> OomCounts:
        events = self._folder.read("memory.events")
        return OomCounts(kills=field(events, "oom_kill"), own_limit_hits=field(events, "oom"))

    def kill(self) -> None:
        self._folder.write("cgroup.kill", "1")

    def remove(self) -> bool:
        path = self._folder.path
        self._folder.close()
        return remove_folder(path)


class PureCgroups:
    """`base/sandboxd-NAME`, where `base` is the cgroup this process was started in.

    cgroup v2 allows no processes beside enabled controllers: those of `base` move to a leaf of its own first, and the
    launcher to one of the instance's. A launcher started out of that leaf (a restart, a second instance) uses the same
    base.
    """

    def __init__(self, name: str, own: Path) -> None:
        self._base = own.parent if own.name == MEMBERS else own
        self._parent = self._base / name
        self._launcher = self._parent / LAUNCHER_LEAF
        self._swaps = len(Path("/proc/swaps").read_text().splitlines()) > 1
        self._enable(self._base)
        self._parent.mkdir(0o755, exist_ok=True)
        _enable_controllers(self._parent)
        self._launcher.mkdir(0o755, exist_ok=True)
        _move(os.getpid(), self._launcher)

    def _enable(self, base: Path) -> None:
        available = (base / "cgroup.controllers").read_text().split()
        missing = [controller for controller in V2_CONTROLLERS if controller not in available]
        if missing:
            remedy = "systemd-run --scope -p Delegate=yes COMMAND, or Delegate=yes in the unit"
            raise HostError("cgroup v2", f"{base} does not have the controllers {', '.join(missing)}", remedy)
        if set(V2_CONTROLLERS) <= set((base / "cgroup.subtree_control").read_text().split()):
            return
        if (base / "cgroup.type").exists():  # the root of the tree has no such file, and no such rule
            members = base / MEMBERS
            members.mkdir(0o755, exist_ok=True)
            for _ in range(MOVE_ROUNDS):  # what forks meanwhile is in the next round
                for pid in (base / "cgroup.procs").read_text().split():
                    _move(int(pid), members)
        _enable_controllers(base)

    def create(self, name: str, memory_bytes: int, processes: int) -> Leaf:
        return limited(PureLeaf(self._parent / name, swaps=self._swaps), memory_bytes, processes)

    def memory_bound_bytes(self) -> int:
        return tightest(self._parent, "memory.max")

    def parents(self) -> tuple[Path, ...]:
        return (self._parent,)

    def close(self) -> None:
        members = self._base / MEMBERS
        _move(os.getpid(), members if members.exists() else self._base)
        remove_folder(self._launcher)
        remove_folder(self._parent)


def _enable_controllers(folder: Path) -> None:
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in V2_CONTROLLERS))


def _move(pid: int, folder: Path) -> None:
    try:
        (folder / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError:
        return  # it ended meanwhile
