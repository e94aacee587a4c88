"""What a running service holds on the machine, read from /proc and the cgroup tree."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROLES = ("launcher", "worker", "api", "redis", "serve")


class Inventory(NamedTuple):
    """One look at it."""

    processes: int
    """The service's, zombies included."""
    mounts: int
    """Seen by the service's processes, each mount namespace once."""
    cgroups: int
    """Folders of the instance in all hierarchies."""
    dying_cgroups: int
    """Removed and still held by the kernel, below the v2 tree's root."""
    namespaces: int
    """Of any process or descriptor of the machine."""
    descriptors: int
    """Open in the service's processes."""
    resident_kib: dict[str, dict[int, int]]
    """Role of a process -> its pid -> VmRSS."""


COUNTED = ("processes", "mounts", "cgroups", "dying_cgroups", "namespaces", "descriptors")
"""Fields of an inventory that must not grow."""


def take(root_pid: int, instance: str) -> Inventory:
    """The service whose first process is `root_pid`. Processes that end while we look are left out."""
    pids = list(_descendants(root_pid))
    resident: dict[str, dict[int, int]] = defaultdict(dict)
    descriptors = 0
    mounts: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            mounts[namespace] = len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
            resident[_role(pid)][pid] = _resident_kib(pid)
    return Inventory(
        processes=len(pids),
        mounts=sum(mounts.values()),
        cgroups=sum(1 for _ in _cgroups(instance)),
        dying_cgroups=_dying_cgroups(),
        namespaces=len(_namespaces()),
        descriptors=descriptors,
        resident_kib=dict(resident),
    )


def _descendants(root_pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(entry.path, "stat").read_text()
                children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    pending = [root_pid]
    while pending:
        pid = pending.pop()
        yield pid
        pending += children[pid]


def _role(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "redis-server" in words[0] or "valkey-server" in words[0]:
        return "redis"
    return next((role for role in _ROLES if role in words[1:]), "other")


def _resident_kib(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0  # a zombie has no memory


def _cgroups(instance: str) -> Iterator[Path]:
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            path = Path(folder, name)
            if f"sandboxd-{instance}" in path.parts:
                yield path


def _dying_cgroups() -> int:
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        path = Path(root, "cgroup.stat")
        if path.exists():
            return int(dict(line.split() for line in path.read_text().splitlines())["nr_dying_descendants"])
    return 0


def _namespaces() -> set[str]:
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        for folder in ("ns", "fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                for link in os.scandir(f"{entry.path}/{folder}"):
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                        target = os.readlink(link.path)
                        if re.fullmatch(r"[a-z_]+:\[\d+\]", target) and not target.startswith(("pipe", "socket")):
                            found.add(target)
    return found
