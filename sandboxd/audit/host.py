"""What of a job could stay on the host: looked at before and after. Nothing here changes anything."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from sandboxd.audit.target import LauncherTarget
from sandboxd.instance import Instance
from sandboxd.jail import slots
from sandboxd.jail.sweeper import RECORD
from sandboxd.spec import MIB, Struct

SETTLE_S = 5.0
"""Teardown follows the answer; so long is it waited for."""
LAUNCHER_GROWTH_MAX_BYTES = 16 * MIB
KERNEL_LOG_MAX_LINES = 200
"""Of one run. One memory limit that strikes takes a hundred; the kernel limits their rate."""
_SAMPLE = 50
_INIT = "/memfd:sandboxd-init (deleted)"
_IN_SLOT = re.compile(r"/slot-(\d+)(?:/|$)")
_SYSCTL = Path("/proc/sys")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # looked at, not used
# What counts, lists or measures, and so changes by itself.
_VOLATILE = (
    "random",
    "-nr",
    "-state",
    "ns_last_pid",
    "conntrack_count",
    "sched_domain",
    "pty/nr",
    "quota",
    "drop_caches",
)


class JobTraces(Struct, frozen=True, kw_only=True):
    """What one job could leave; all of it must be gone after it."""

    cgroups: tuple[str, ...]
    slots: tuple[int, ...]
    processes: tuple[int, ...]
    mounts: int
    """Of the instance, in this process's namespace and the launcher's."""
    shared_memory: tuple[str, ...]
    sysv: tuple[str, ...]
    keys: tuple[str, ...]
    launcher_files: int


class HostState(Struct, frozen=True, kw_only=True):
    """What all jobs together could change."""

    sysctls: dict[str, str]
    image_digests: dict[str, str]
    launcher_resident_bytes: int


class KernelLog:
    """Counts what the kernel writes down. Where its log may not be read, nothing is ever counted."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def new_lines(self) -> int:
        """Since the last time."""
        count = 0
        while self._fd >= 0:
            try:
                os.read(self._fd, 8192)
            except BrokenPipeError:
                pass  # overwritten before it was read
            except OSError:
                break
            count += 1
        return count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def job_traces(target: LauncherTarget) -> JobTraces:
    instance = target.instance
    launcher = Path("/proc", str(target.process.pid))
    return JobTraces(
        cgroups=tuple(sorted(map(str, sandbox_cgroups(instance)))),
        slots=tuple(claimed_slots(instance)),
        processes=tuple(sandbox_pids(instance)),
        mounts=sum(
            instance.name in line
            for process in (Path("/proc/self"), launcher)
            for line in (process / "mountinfo").read_text().splitlines()
        ),
        shared_memory=tuple(_shared_memory()),
        sysv=tuple(_sysv()),
        keys=tuple(_keys(waiting_slots(instance))),
        launcher_files=open_files(instance, target.process.pid),
    )


def left_behind(target: LauncherTarget, before: JobTraces) -> str:
    """What a job left, in words; empty when all is as before, for which it gets a moment."""
    deadline = time.monotonic() + SETTLE_S
    while (found := _difference(before, job_traces(target))) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def _difference(before: JobTraces, after: JobTraces) -> str:
    found = []
    for name in JobTraces.__struct_fields__:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, int):
            if new > old:
                found.append(f"{new - old} more {name.replace('_', ' ')}")
        elif more := sorted(set(new) - set(old)):
            found.append(f"{name.replace('_', ' ')} {', '.join(map(str, more))[:80]}")
    return "; ".join(found)


def host_state(target: LauncherTarget) -> HostState:
    return HostState(
        sysctls=dict(_sysctls()),
        image_digests=target.image_digests,
        launcher_resident_bytes=int(Path(f"/proc/{target.process.pid}/statm").read_text().split()[1])
        * os.sysconf("SC_PAGE_SIZE"),
    )


def changes(before: HostState, after: HostState) -> list[str]:
    """What all jobs together changed of the host, in words."""
    found = [
        f"sysctl {name} changed from {before.sysctls.get(name)!r} to {value!r}"
        for name, value in after.sysctls.items()
        if before.sysctls.get(name, value) != value
    ]
    if before.image_digests != after.image_digests:
        found.append("an image's digest changed")
    growth = after.launcher_resident_bytes - before.launcher_resident_bytes
    if growth > LAUNCHER_GROWTH_MAX_BYTES:
        found.append(f"the launcher grew by {growth >> 20} MiB, more than {LAUNCHER_GROWTH_MAX_BYTES >> 20}")
    return found


def content_digest(*, dropped: bool = False) -> str:
    """sha256 over a sample of what the image shows of the host: one file of `_SAMPLE`, chosen by its name, so the same
    each time. `dropped`: their cached pages are given up first (posix_fadvise(2)), so that the disk is read.
    """
    found = hashlib.sha256()
    for folder, names, files in os.walk("/usr"):
        names.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            if zlib.crc32(os.fsencode(path)) % _SAMPLE == 0 and os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    if dropped:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    found.update(os.fsencode(path) + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def sandbox_cgroups(instance: Instance) -> list[Path]:
    """Leaves of sandboxes that have or had a job, in every hierarchy."""
    waiting = waiting_slots(instance)
    return [leaf for parent in _parents(instance) for leaf in parent.glob("slot-*") if _slot(leaf) not in waiting]


def claimed_slots(instance: Instance) -> list[int]:
    """Of sandboxes that have or had a job."""
    waiting = waiting_slots(instance)
    return [number for number, owner in slots.claimed().items() if owner == instance.name and number not in waiting]


def sandbox_pids(instance: Instance) -> list[int]:
    """Processes whose uid lies in a slot's block, in the instance's cgroups: payloads and PID 1s, where there is or was
    a job."""
    found, waiting = [], waiting_slots(instance)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                uid = entry.stat().st_uid
                ours = f"sandboxd-{instance.name}/"
                if _is_slots(uid) and slots.number_of(uid) not in waiting:
                    if ours in Path(entry.path, "cgroup").read_text():
                        found.append(int(entry.name))
    return found


def _parents(instance: Instance) -> list[Path]:
    try:
        return [Path(path) for path in msgspec.json.decode((instance.run_dir / RECORD).read_bytes(), type=list[str])]
    except FileNotFoundError:
        return []


def _slot(leaf: Path) -> int:
    return int(leaf.name.removeprefix("slot-"))


def waiting_slots(instance: Instance) -> set[int]:
    """Slots of prepared sandboxes: PID 1 and the process that will be the payload's, which no program can look like."""
    found = set()
    for parent in _parents(instance)[:1]:
        for leaf in parent.glob("slot-*"):
            with contextlib.suppress(OSError):  # it goes, or one of its processes does
                pids = (leaf / "cgroup.procs").read_text().split()
                if [os.readlink(f"/proc/{pid}/exe") for pid in pids] == 2 * [_INIT]:
                    found.add(_slot(leaf))
    return found


def open_files(instance: Instance, pid: int) -> int:
    """A launcher's open descriptors, without those of sandboxes that wait for a job, and without the build lists, of
    which one is kept for each slot used once."""
    count, listeners, waiting = 0, 0, waiting_slots(instance)
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(entry.path)
            listeners += target == "anon_inode:seccomp notify"
            in_slot = _IN_SLOT.search(target)
            count += "memfd:sandboxd-build" not in target and not (in_slot and int(in_slot[1]) in waiting)
    hybrid = len(_parents(instance)) > 1  # an eventfd for v1's memory limit
    # Control socket, pidfd, write layer, two pipes; and a filter's listener, where the policy reports what it refuses.
    return count - len(waiting) * (6 if hybrid else 5) - min(listeners, len(waiting))


def _is_slots(uid: int) -> bool:
    """Whether a host id is one of a job's: what others do on the host meanwhile is not looked at."""
    return slots.FIRST_ID <= uid < slots.LAST_ID


def _shared_memory() -> Iterator[str]:
    for path in sorted(_SHARED_MEMORY.glob("*")):
        with contextlib.suppress(FileNotFoundError):
            if _is_slots(path.lstat().st_uid):
                yield path.name


def _sysv() -> Iterator[str]:
    for kind in ("shm", "sem", "msg"):
        with contextlib.suppress(FileNotFoundError):
            names, *lines = Path("/proc/sysvipc", kind).read_text().splitlines()
            uid = names.split().index("uid")
            yield from (f"{kind} {line.split()[1]}" for line in lines if _is_slots(int(line.split()[uid])))


def _keys(waiting: set[int]) -> Iterator[str]:
    """Users of the slots' ids that own keys; the session keyrings of those slots that wait are as they should be."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/key-users").read_text().splitlines():
            uid = int(line.split(":")[0])
            if _is_slots(uid) and slots.number_of(uid) not in waiting:
                yield str(uid)


def _sysctls() -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk(_SYSCTL):
        for name in names:
            path = os.path.join(folder, name)
            if not any(word in path for word in _VOLATILE):
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    yield path.removeprefix(f"{_SYSCTL}/"), Path(path).read_text()[:256].strip()
