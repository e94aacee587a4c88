"""What a running service holds on the machine, read from /proc and the cgroup tree."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sandboxd.audit.host import dying

_ROLES = ("launcher", "worker", "api", "redis", "serve")
OTHER = "other"
"""Sandboxes that wait or run, and what serve started to look."""


class Inventory(NamedTuple):
    """One look at it."""

    processes: int
    """The service's, zombies included: descendants of its first, and whoever is in its cgroups."""
    mounts: int
    """Seen by the service's processes, each mount namespace once."""
    cgroups: int
    """Folders of the instance in all hierarchies."""
    dying_cgroups: int
    """Removed from the instance's part of the v2 tree and still held by the kernel."""
    namespaces: int
    """That the service's processes are in or hold a descriptor of."""
    descriptors: int
    """Open in the service's processes, cached build lists apart."""
    build_lists: int
    """Descriptors in which the launcher keeps build lists: at most one per policy and uid slot once used."""
    descriptors_of: dict[str, int]
    """Role of a process -> those of them that are its own."""
    resident_kib: dict[str, dict[int, int]]
    """Role of a process -> its pid -> VmRSS."""
    memory_cgroups_of_machine: int
    """As the kernel counts them, removed ones that it still holds included."""


COUNTED = ("processes", "mounts", "cgroups", "dying_cgroups", "namespaces", "descriptors")
"""Fields of an inventory that must not grow."""


def take(root_pid: int, instance: str) -> Inventory:
    """The service whose first process is `root_pid`. Processes that end while we look are left out."""
    pids = _processes(root_pid, instance)
    resident: dict[str, dict[int, int]] = defaultdict(dict)
    descriptors: dict[str, int] = defaultdict(int)
    build_lists = 0
    mounts: dict[str, int] = {}
    namespaces: set[str] = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            role = _role(pid)
            targets = list(_descriptors(pid))
            descriptors[role] += len(targets)
            build_lists += sum("sandboxd-build" in target for target in targets)
            namespaces |= _namespaces(pid)
            mounts[os.readlink(f"/proc/{pid}/ns/mnt")] = _mounts(pid)
            resident[role][pid] = _resident_kib(pid)
    cgroups = list(_cgroups(instance))
    return Inventory(
        processes=len(pids),
        mounts=sum(mounts.values()),
        cgroups=len(cgroups),
        dying_cgroups=sum(dying(cgroup) for cgroup in cgroups if cgroup.name == f"sandboxd-{instance}"),
        namespaces=len(namespaces),
        descriptors=sum(descriptors.values()) - build_lists,
        build_lists=build_lists,
        descriptors_of=dict(descriptors),
        resident_kib=dict(resident),
        memory_cgroups_of_machine=_memory_cgroups_of_machine(),
    )


def _mounts(pid: int) -> int:
    try:
        return len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    except OSError as error:
        if error.errno == errno.EINVAL:  # it is ending, and has left its namespaces
            raise ProcessLookupError from None
        raise


def _processes(root_pid: int, instance: str) -> set[int]:
    children: dict[int, list[int]] = defaultdict(list)
    pending = [root_pid]
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(entry.path, "stat").read_text()
                children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
                if f"/sandboxd-{instance}" in Path(entry.path, "cgroup").read_text():
                    pending.append(int(entry.name))
    found: set[int] = set()
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children[pid]
    return found


def _role(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "redis-server" in words[0] or "valkey-server" in words[0]:
        return "redis"
    return next((role for role in _ROLES if role in words[1:]), OTHER)


def _resident_kib(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0  # a zombie has no memory


def _cgroups(instance: str) -> Iterator[Path]:
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            path = Path(folder, name)
            if f"sandboxd-{instance}" in path.parts:
                yield path


def _memory_cgroups_of_machine() -> int:
    for line in Path("/proc/cgroups").read_text().splitlines():
        name, _, count, _ = line.split()
        if name == "memory":
            return int(count)
    return 0


def _namespaces(pid: int) -> set[str]:
    """Links like `mnt:[4026531841]` among what the process is in and what it has open."""
    found = set()
    for target in (*_links(f"/proc/{pid}/ns"), *_descriptors(pid)):
        if re.fullmatch(r"[a-z_]+:\[\d+\]", target) and not target.startswith(("pipe:", "socket:")):
            found.add(target)
    return found


def _descriptors(pid: int) -> Iterator[str]:
    yield from _links(f"/proc/{pid}/fd")


def _links(folder: str) -> Iterator[str]:
    for link in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield os.readlink(link.path)
