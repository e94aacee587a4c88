"""Finds and removes what a dead launcher left: processes, cgroups, slots, run directories. Run at every start.

It touches what belongs to its own instance, whose lock it holds, and to `run-*` and `audit-*` instances whose lock
nobody holds.
Mounts and namespaces need no sweeping: they live in sandboxes' private namespaces and go with their processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import structlog

from sandboxd.errors import HostError
from sandboxd.instance import RUN_ROOT, SWEPT_PREFIXES, Instance
from sandboxd.jail import slots
from sandboxd.jail.cgroups import LAUNCHER_LEAF, PREFIX, remove_folder
from sandboxd.jail.workshop import remove_tree

log = structlog.get_logger()

RECORD = "cgroups.json"
_EMPTY_DEADLINE_S = 5.0


def take_lock(instance: Instance) -> int:
    """An exclusive flock on the instance, held until the descriptor is closed. Raises HostError when another has it."""
    fd = os.open(instance.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise HostError(
            "instance", f"a launcher of instance {instance.name!r} is already running", "use --instance OTHER"
        ) from None
    return fd


@contextlib.contextmanager
def host_lock() -> Iterator[None]:
    """One launcher of this host at a time makes, sweeps or removes run directories."""
    fd = os.open(RUN_ROOT / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def record(instance: Instance, parents: tuple[Path, ...]) -> None:
    """Notes where this launcher's cgroups are, for whoever must sweep them."""
    (instance.run_dir / RECORD).write_bytes(msgspec.json.encode([str(path) for path in parents]))


def forget(instance: Instance) -> None:
    """Nothing is left to sweep; the record stays while a cgroup does."""
    if not any(parent.exists() for parent in _recorded(instance.name)):
        (instance.run_dir / RECORD).unlink(missing_ok=True)


def sweep(instance: Instance) -> int:
    """Removes leftovers; returns how many cgroups were found. Precondition: the instance's lock is held."""
    count = _sweep_one(instance.name)
    for run_dir in tuple(RUN_ROOT.iterdir()):
        if run_dir.name.startswith(SWEPT_PREFIXES) and run_dir.name != instance.name and _abandoned(run_dir):
            count += _sweep_one(run_dir.name)
            remove_tree(run_dir)
    _free_abandoned_slots()
    return count


def _free_abandoned_slots() -> None:
    """Of instances that are gone, whatever their name: no launcher holds the lock, no process an id of it."""
    claimed = {number: owner for number, owner in slots.claimed().items() if _abandoned(RUN_ROOT / owner)}
    if not claimed:
        return
    used = {slots.number_of(uid) for uid in _user_ids()}
    for number, owner in claimed.items():
        if number not in used:
            log.info("slot freed", number=number, instance=owner)
            slots.release(number)


def _user_ids() -> Iterator[int]:
    """Of every process of this host."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = Path(entry.path, "status").read_text()
                yield from map(int, status.partition("\nUid:")[2].split("\n", 1)[0].split())


def _abandoned(run_dir: Path) -> bool:
    try:
        fd = os.open(run_dir / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _sweep_one(name: str) -> int:
    parents = _recorded(name)
    count = clear(name, parents)
    for parent in parents:
        remove_folder(parent / LAUNCHER_LEAF)
        remove_folder(parent)
    return count


def clear(name: str, parents: Iterable[Path]) -> int:
    """Ends and removes every sandbox's leaf below `parents`, and frees the instance's slots; returns how many there
    were. Precondition: the lock of instance `name` is held."""
    leaves = [
        leaf
        for parent in parents
        if parent.is_dir()
        for leaf in parent.iterdir()
        if leaf.is_dir() and leaf.name != LAUNCHER_LEAF
    ]
    for leaf in leaves:
        if (leaf / "cgroup.kill").exists():
            (leaf / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _EMPTY_DEADLINE_S
    left = leaves
    while left and time.monotonic() < deadline:
        left = [leaf for leaf in left if not remove_folder(leaf)]
        if left:
            time.sleep(0.005)
    stuck = {leaf.name for leaf in left}
    for leaf_name in stuck:
        log.error("leftover cgroup cannot be removed", instance=name, leaf=leaf_name)
    for number, owner in slots.claimed().items():
        if owner == name and f"slot-{number}" not in stuck:
            slots.release(number)
    if leaves:
        log.info("swept leftovers", instance=name, cgroups=len(leaves))
    return len(leaves)


def _recorded(name: str) -> list[Path]:
    try:
        paths = msgspec.json.decode((RUN_ROOT / name / RECORD).read_bytes(), type=list[str])
    except (FileNotFoundError, msgspec.DecodeError):
        return []
    return [Path(path) for path in paths if Path(path).name == f"{PREFIX}{name}"]
