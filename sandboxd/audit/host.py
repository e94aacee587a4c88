"""What of a job could stay on the host: looked at before and after. Nothing here changes anything."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import msgspec

from sandboxd.audit.target import LauncherTarget
from sandboxd.errors import LauncherUnavailable
from sandboxd.instance import Instance
from sandboxd.jail import slots, syscalls
from sandboxd.jail.cgroups import LAUNCHER_LEAF, field
from sandboxd.jail.sweeper import RECORD
from sandboxd.spec import MIB, Struct

SETTLE_S = 2.0
"""Teardown follows the answer; so long is it waited for."""
_STEADY = 2
"""Looks in a row that must agree before something is called the state before; twice as many where sandboxes are being
prepared, of which the launcher may not have heard yet all that there is to tell."""
LAUNCHER_GROWTH_MAX_BYTES = 16 * MIB
DYING_CGROUPS_MAX = 64
"""Those of the last jobs are freed a little later."""
KERNEL_LOG_MAX_LINES = 1000
"""Of one run and what the other launcher's jobs do meanwhile. One memory limit that strikes takes a hundred; the kernel
limits their rate."""
KERNEL_LOG_LINES_OF_A_RUN = 10
"""On the average of all; others on the machine write, too."""
GLOBAL_OOM = b"constraint=CONSTRAINT_NONE"
"""What the kernel writes when the host itself ran out of memory, not a cgroup (mm/oom_kill.c)."""
_IN_SLOT = re.compile(r"/slot-(\d+)(?:/|$)")
_SLOT = re.compile(r"slot-(\d+)")
_REST_S = 5.0
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_NO_RIGHTS = {"NoNewPrivs": "1", "Seccomp": "2", "Groups": ""}
_LIMIT_MAX = 1 << 40
"""More than that is no limit."""
_LOOKS = 5
_PATIENT = 10
"""After so many findings a job gets that part of the moment."""
_SYSCTL = Path("/proc/sys")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # looked at, not used
_QUEUES = "/dev/mqueue"
_WRITABLE = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/lib/sandboxd")  # noqa: S108  # looked at, not used
"""Where a job's user could have left a file, had it come there."""
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
    """Of a job's users, whatever cgroup they are in."""
    orphans: tuple[str, ...]
    """What a launcher started and did not wait for, whoever it is: it is this process's child then (`adopting`)."""
    helpers: int
    """The launcher's children but those of sandboxes that wait: its spawner, and what is being built."""
    mounts: tuple[str, ...]
    """Of the instance, and namespaces that are held by a mount: in this process's namespace and the launcher's."""
    files: tuple[str, ...]
    """Of a job's users in shared memory and among POSIX message queues; anybody's in the instance's run directory."""
    sysv: tuple[str, ...]
    keys: tuple[str, ...]
    launcher_files: int


class HostState(Struct, frozen=True, kw_only=True):
    """What all jobs together could change."""

    sysctls: dict[str, str]
    launcher_resident_bytes: int
    launcher_threads: int
    dying_cgroups: int
    """That the kernel has not freed yet, of the instance."""


class Machine(Struct, frozen=True, kw_only=True):
    """What nobody's job should make more of, whoever owns it; others on the machine may, a little."""

    mounts: int
    """In this process's namespace."""
    namespaces: int
    """That some process is in."""
    sysv: int
    root_keys: int
    root_files: int
    """Where everybody may write, and in the service's folders."""


MACHINE_GROWTH_MAX = 50
"""Of each of them, or a tenth of the number of jobs where that is more: others on the machine make some, too."""


class KernelLog:
    """What the kernel writes down."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    @property
    def is_readable(self) -> bool:
        """Where it is not, there never are any lines."""
        return self._fd >= 0

    def new_lines(self) -> list[bytes]:
        """Since the last time; one that was overwritten before it was read is empty."""
        lines = []
        while self._fd >= 0:
            try:
                lines.append(os.read(self._fd, 8192))
            except BrokenPipeError:
                lines.append(b"")
            except OSError:
                break
        return lines

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def job_traces(target: LauncherTarget) -> JobTraces:
    instance, launcher = target.instance, target.process.pid
    waiting, owners = waiting_slots(instance), slots.claimed()
    ignored = waiting | _of_others(instance, owners)
    return JobTraces(
        cgroups=tuple(sorted(map(str, _cgroups(instance, waiting)))),
        slots=tuple(_claimed(instance, owners, waiting)),
        orphans=tuple(orphans()),
        helpers=_helpers(launcher, waiting),
        mounts=tuple(
            line
            for process in ("self", str(launcher))
            for line in Path("/proc", process, "mountinfo").read_text().splitlines()
            if instance.name in line or " - nsfs " in line
        ),
        launcher_files=_open_files(instance, launcher, waiting),
        **_of_users(instance, ignored),
    )


def _of_users(instance: Instance, ignored: AbstractSet[int]) -> dict[str, Any]:
    """The fields of `JobTraces` that are found by a job's user, but those of ignored slots."""
    return {
        "processes": tuple(_processes(ignored)),
        "files": (*_jobs_files(ignored, _SHARED_MEMORY, _QUEUES), *os.listdir(instance.run_dir)),
        "sysv": tuple(_sysv(ignored)),
        "keys": tuple(_keys(ignored)),
    }


def before(target: LauncherTarget, left: JobTraces | None = None) -> JobTraces:
    """The state before a run: no job's traces, and the same in several looks. What is still being taken down or built
    would hide what is left later. What other launchers' jobs have is in it too: should they leave it behind, it is
    theirs. `left`: what earlier runs left for ever. Raises LauncherUnavailable when it does not come to rest."""
    deadline = time.monotonic() + SETTLE_S + _REST_S
    seen: list[JobTraces] = []
    while len(seen) < (2 * _STEADY if target.prepared_max else _STEADY):
        now = job_traces(target)
        quiet = not any(
            set(getattr(now, name)) - set(getattr(left, name, ())) for name in ("cgroups", "slots", "processes")
        )
        seen = [*seen, now] if quiet and all(now == earlier for earlier in seen) else []
        if time.monotonic() > deadline:
            raise LauncherUnavailable(f"the launcher does not come to rest: {now}")
        time.sleep(0.002)
    return msgspec.structs.replace(seen[-1], **_of_users(target.instance, frozenset()))


def found_before() -> list[str]:
    """What jobs of former days left, in words: nobody's now, and no finding of this audit."""
    owned = frozenset(slots.claimed())
    return [
        *(f"file {path}" for path in _jobs_files(owned, _SHARED_MEMORY, _QUEUES)),
        *_sysv(owned),
        *(f"keys of uid {uid}" for uid in _keys(owned)),
    ]


def left_behind(target: LauncherTarget, earlier: JobTraces, *, impatient: bool = False) -> str:
    """What a job left, in words; empty when all is as before, for which it gets a moment."""
    deadline = time.monotonic() + (SETTLE_S / _PATIENT if impatient else SETTLE_S)
    while (found := _difference(target, earlier)) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def _difference(target: LauncherTarget, earlier: JobTraces) -> str:
    found = []
    if (waiting := len(waiting_slots(target.instance))) > target.prepared_max:
        found.append(f"{waiting} sandboxes wait, of at most {target.prepared_max}")
    later = job_traces(target)
    for name in JobTraces.__struct_fields__:
        old, new = getattr(earlier, name), getattr(later, name)
        if isinstance(old, int):
            if new > old:
                found.append(f"{new - old} more {name.replace('_', ' ')}")
        elif more := sorted(set(new) - set(old)):
            found.append(f"{name.replace('_', ' ')} {', '.join(map(str, more))[:80]}")
    return "; ".join(found)


class Watch:
    """The host around the runs on one launcher. What one of them leaves for ever is told of that one alone."""

    def __init__(self, target: LauncherTarget) -> None:
        self._target = target
        self._left: JobTraces | None = None
        self._findings = 0

    def before(self) -> JobTraces:
        """As `before`."""
        return before(self._target, self._left)

    def left_behind(self, earlier: JobTraces) -> str:
        """As `left_behind`; where many leave something, each gets less of a moment."""
        found = left_behind(self._target, earlier, impatient=self._findings >= _PATIENT)
        if found:
            self._findings += 1
            self._left = job_traces(self._target)
        return found


def host_state(target: LauncherTarget) -> HostState:
    return HostState(
        sysctls=dict(_sysctls()),
        dying_cgroups=sum(map(dying, _parents(target.instance))),
        launcher_resident_bytes=int(Path(f"/proc/{target.process.pid}/statm").read_text().split()[1])
        * os.sysconf("SC_PAGE_SIZE"),
        launcher_threads=len(os.listdir(f"/proc/{target.process.pid}/task")),
    )


def changes(before: HostState, after: HostState) -> list[str]:
    """What all jobs together changed of the host, in words."""
    found = [
        f"sysctl {name} changed from {before.sysctls.get(name)!r} to {value!r}"
        for name, value in after.sysctls.items()
        if before.sysctls.get(name, value) != value
    ]
    if (more := after.dying_cgroups - before.dying_cgroups) > DYING_CGROUPS_MAX:
        found.append(f"{more} more cgroups that the kernel cannot free")
    if (more := after.launcher_threads - before.launcher_threads) > 0:
        found.append(f"{more} more threads of the launcher")
    growth = after.launcher_resident_bytes - before.launcher_resident_bytes
    if growth > LAUNCHER_GROWTH_MAX_BYTES:
        found.append(f"the launcher grew by {growth >> 20} MiB, more than {LAUNCHER_GROWTH_MAX_BYTES >> 20}")
    return found


def rights(target: LauncherTarget) -> list[str]:
    """What processes of sandboxes may and should not, PID 1 and those that wait for a job included, and cgroups without
    limits, in words. Seen from outside, as no program inside can see it. What is being built has rights for a moment:
    told is what stays. Precondition: all walls stand."""
    found = _rights(target)
    for _ in range(_LOOKS):
        if found:
            time.sleep(0.1)
            now = _rights(target)
            found = [right for right in found if right in now]
    return found


def _rights(target: LauncherTarget) -> list[str]:
    found = []
    uids: dict[int, set[str]] = {}
    for pid in _processes(_of_others(target.instance, slots.claimed())):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
            )
            held = [name for name in _CAPABILITIES if int(status[name], 16)]
            held += [name for name, value in _NO_RIGHTS.items() if status[name].strip() != value]
            if held:
                found.append(f"{status['Name']}: {', '.join(held)}")
            uid = status["Uid"].split()[0]
            uids.setdefault(slots.number_of(int(uid)), set()).add(uid)
    found += [f"slot {number}: PID 1 has its program's uid" for number, seen in uids.items() if len(seen) < 2]
    return found + list(_unlimited(target.instance))


def _unlimited(instance: Instance) -> Iterator[str]:
    """Cgroups of sandboxes that have no limit of their own, whatever else would stop their programs."""
    leaves = sandbox_cgroups(instance)
    for names in (("pids.max",), ("memory.max", "memory.limit_in_bytes")):
        files = [leaf / name for leaf in leaves for name in names if (leaf / name).exists()]
        if leaves and not files:
            yield f"no cgroup of a sandbox has {' or '.join(names)}"
        for file in files:
            if (limit := file.read_text().strip()) == "max" or int(limit) > _LIMIT_MAX:
                yield f"{file.parent.name}: {file.name} is {limit}"


def machine() -> Machine:
    return Machine(
        mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
        namespaces=len(set(_namespaces())),
        sysv=sum(len(Path("/proc/sysvipc", kind).read_text().splitlines()) - 1 for kind in ("shm", "sem", "msg")),
        root_keys=sum(
            int(line.split(":")[1].split()[0])
            for line in Path("/proc/key-users").read_text().splitlines()
            if line.split(":")[0].strip() == "0"
        ),
        root_files=sum(1 for _ in _owned_below(lambda uid: uid == 0, *_WRITABLE)),
    )


def machine_changes(before: Machine, after: Machine, jobs: int) -> list[str]:
    """What there is more of than others on the machine can have made, in words."""
    most = max(MACHINE_GROWTH_MAX, jobs // 10)
    return [
        f"{more} more {name.replace('_', ' ')} on the machine"
        for name in Machine.__struct_fields__
        if (more := getattr(after, name) - getattr(before, name)) > most
    ]


def _namespaces() -> Iterator[str]:
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended
            for name in os.listdir(f"/proc/{process}/ns"):
                yield os.readlink(f"/proc/{process}/ns/{name}")


def foreign_files() -> frozenset[str]:
    """Files of any job's user where everybody may write, and in the service's folders."""
    return frozenset(_jobs_files(frozenset(), *_WRITABLE))


def sandbox_cgroups(instance: Instance) -> list[Path]:
    """Leaves of sandboxes that have or had a job, in every hierarchy."""
    return [path for path in _cgroups(instance, waiting_slots(instance)) if _SLOT.fullmatch(path.name)]


def _cgroups(instance: Instance, waiting: AbstractSet[int]) -> Iterator[Path]:
    """Every folder below the instance's own, but the launcher's and those of sandboxes that wait."""
    for parent in _parents(instance):
        for folder, names, _ in os.walk(parent):
            for name in names:
                slot = _SLOT.fullmatch(name)
                if name != LAUNCHER_LEAF and not (slot and int(slot[1]) in waiting):
                    yield Path(folder, name)


def claimed_slots(instance: Instance) -> list[int]:
    """Of sandboxes that have or had a job."""
    return _claimed(instance, slots.claimed(), waiting_slots(instance))


def _claimed(instance: Instance, owners: dict[int, str], waiting: AbstractSet[int]) -> list[int]:
    return [number for number, owner in owners.items() if owner == instance.name and number not in waiting]


def _of_others(instance: Instance, owners: dict[int, str]) -> set[int]:
    """A slot of another instance is that one's; one of nobody should have nothing."""
    return {number for number, owner in owners.items() if owner not in (instance.name, slots.UNKNOWN)}


def sandbox_pids(instance: Instance) -> list[int]:
    """Processes whose uid lies in a slot's block, in whatever cgroup they are: payloads and PID 1s, where there is or
    was a job."""
    return _processes(waiting_slots(instance) | _of_others(instance, slots.claimed()))


def _processes(ignored: AbstractSet[int]) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if _is_jobs(entry.stat().st_uid, ignored):
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile what a launcher leaves running becomes a child of this process, and is seen so."""
    syscalls.set_child_subreaper(on=True)
    try:
        yield
    finally:
        syscalls.set_child_subreaper(on=False)


def orphans() -> Iterator[str]:
    """This process's children but launchers: those of its own are there before a run as well as after it."""
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for pid in Path(f"/proc/self/task/{task}/children").read_text().split():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if b"launcher" not in words:
                        yield f"{Path(f'/proc/{pid}/comm').read_text().strip()} ({pid})"


def _helpers(launcher: int, waiting: AbstractSet[int]) -> int:
    count = 0
    for task in os.listdir(f"/proc/{launcher}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for pid in Path(f"/proc/{launcher}/task/{task}/children").read_text().split():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    uid = os.stat(f"/proc/{pid}").st_uid
                    count += not (_is_jobs(uid, frozenset()) and slots.number_of(uid) in waiting)
    return count


def _parents(instance: Instance) -> list[Path]:
    try:
        return [Path(path) for path in msgspec.json.decode((instance.run_dir / RECORD).read_bytes(), type=list[str])]
    except FileNotFoundError:
        return []


def waiting_slots(instance: Instance) -> set[int]:
    """Slots of prepared sandboxes: PID 1, and the process that will be the payload's and still executes the same file.
    No program can look like that: a file's inode cannot be had by another."""
    found = set()
    for parent in _parents(instance)[:1]:
        for leaf in parent.glob("slot-*"):
            with contextlib.suppress(OSError):  # it goes, or one of its processes does
                pids = (leaf / "cgroup.procs").read_text().split()
                files = {(status.st_dev, status.st_ino) for pid in pids if (status := os.stat(f"/proc/{pid}/exe"))}
                if len(pids) == 2 and len(files) == 1 and any(map(_is_init, pids)):
                    found.add(int(leaf.name.removeprefix("slot-")))
    return found


def _is_init(pid: str) -> bool:
    """Whether it is PID 1 of its namespace, which never executes anything."""
    return re.search(r"^NSpid:.*\t1$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None


def open_files(instance: Instance, pid: int) -> int:
    """A launcher's open descriptors, without those of sandboxes that wait for a job, and without the build lists, of
    which one is kept for each slot used once."""
    return _open_files(instance, pid, waiting_slots(instance))


def _open_files(instance: Instance, pid: int, waiting: AbstractSet[int]) -> int:
    count, listeners = 0, 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(entry.path)
            listeners += target == "anon_inode:seccomp notify"
            in_slot = _IN_SLOT.search(target)
            count += "memfd:sandboxd-build" not in target and not (in_slot and int(in_slot[1]) in waiting)
    hybrid = len(_parents(instance)) > 1  # an eventfd for v1's memory limit
    # Control socket, pidfd, write layer, two pipes; and a filter's listener, where the policy reports what it refuses.
    return count - len(waiting) * (6 if hybrid else 5) - min(listeners, len(waiting))


def _is_jobs(uid: int, ignored: AbstractSet[int]) -> bool:
    """Whether a host id is one of a job's, but those of ignored slots: what others do on the host meanwhile is not
    looked at."""
    return slots.FIRST_ID <= uid < slots.LAST_ID and slots.number_of(uid) not in ignored


def _jobs_files(ignored: AbstractSet[int], *tops: str) -> Iterator[str]:
    """What belongs to a job's user."""
    return _owned_below(lambda uid: _is_jobs(uid, ignored), *tops)


def _owned_below(is_one: Callable[[int], bool], *tops: str) -> Iterator[str]:
    """Files and folders whose owner is one of those."""
    for top in tops:
        for folder, names, files in os.walk(top):
            for name in (*names, *files):
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if is_one(os.lstat(path).st_uid):
                        yield path


def dying(cgroup: Path) -> int:
    """Cgroups below it that were removed and that the kernel still holds; 0 in a v1 hierarchy, which does not tell."""
    text = cgroup / "cgroup.stat"
    return field(text.read_text(), "nr_dying_descendants") if text.exists() else 0


def _sysv(ignored: AbstractSet[int]) -> Iterator[str]:
    for kind in ("shm", "sem", "msg"):
        with contextlib.suppress(FileNotFoundError):
            names, *lines = Path("/proc/sysvipc", kind).read_text().splitlines()
            uid = names.split().index("uid")
            yield from (f"{kind} {line.split()[1]}" for line in lines if _is_jobs(int(line.split()[uid]), ignored))


def _keys(ignored: AbstractSet[int]) -> Iterator[str]:
    """Users of the slots' ids that own keys; the session keyrings of those slots that wait are as they should be."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/key-users").read_text().splitlines():
            uid = line.split(":")[0].strip()
            if _is_jobs(int(uid), ignored):
                yield uid


def _sysctls() -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk(_SYSCTL):
        for name in names:
            path = os.path.join(folder, name)
            if not any(word in path for word in _VOLATILE):
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    yield path.removeprefix(f"{_SYSCTL}/"), Path(path).read_text()[:256].strip()
