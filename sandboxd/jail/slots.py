"""Slots: blocks of 65,536 host uids, one for each live sandbox and shared with no other.

Pipes, keys, inotify watches and pending signals are pools per uid: two jobs with one uid could signal through them. A
slot is claimed for the whole host by a link that names the instance, made whole or not at all, and freed only when the
slot's cgroup is proved empty.
"""

from __future__ import annotations

import contextlib
import os

from sandboxd.errors import HostError
from sandboxd.instance import RUN_ROOT

SLOTS_DIR = RUN_ROOT / "slots"
FIRST_ID = 0x70000000
"""Below lie Debian's subuid ranges and systemd-nspawn's."""
LAST_ID = 0x7FFE0000
IDS = 65_536
UNKNOWN = "unknown"
"""Owner of what is no link: nobody, so that the slot is freed once no process has its ids."""
COUNT = (LAST_ID - FIRST_ID) // IDS


class Slots:
    """Claims slots for one instance, lowest number first (a slot used before has its build list in the cache)."""

    def __init__(self, instance: str) -> None:
        self._owner = instance
        SLOTS_DIR.mkdir(0o700, exist_ok=True)
        self._dir = os.open(SLOTS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held: set[int] = set()

    def claim(self) -> int:
        """A free slot's number. Raises HostError when none of the host's is free."""
        for number in range(COUNT):
            if number in self._held:
                continue
            try:
                os.symlink(self._owner, str(number), dir_fd=self._dir)
            except FileExistsError:
                continue
            self._held.add(number)
            return number
        raise HostError("uid slots", f"all {COUNT} are taken", "run fewer sandboxes at once on this host")

    def free(self, number: int) -> None:
        """Gives a slot back. Precondition: no process of it is left."""
        self._held.discard(number)
        # Removed by hand, perhaps claimed by another since: what else the sandbox held must be given back all the same.
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(str(number), dir_fd=self._dir) == self._owner:
                os.unlink(str(number), dir_fd=self._dir)

    def close(self) -> None:
        os.close(self._dir)


def first_id(number: int) -> int:
    """The slot's first host uid and gid."""
    return FIRST_ID + number * IDS


def number_of(uid: int) -> int:
    """The slot that a host id belongs to; no slot's number for an id of none."""
    return (uid - FIRST_ID) // IDS


def claimed() -> dict[int, str]:
    """Every claimed slot of the host, and the instance that claimed it."""
    if not SLOTS_DIR.exists():
        return {}
    owners: dict[int, str] = {}
    for path in SLOTS_DIR.iterdir():
        try:
            owners[int(path.name)] = os.readlink(path) if path.is_symlink() else UNKNOWN
        except FileNotFoundError:
            continue  # freed meanwhile
    return owners


def release(number: int) -> None:
    """Frees a slot that a dead instance left; the caller has proved that nothing runs in it."""
    (SLOTS_DIR / str(number)).unlink(missing_ok=True)
