"""A process without any sandbox, and other sandboxes' commands: spawned, waited for and timed the same way.

Both sides are timed by this one Python process. `posix_spawn` is glibc's, which shares memory with its child until the
exec, so the size of this process does not count; Python's own part is below 0.1 ms and in ours too. Standard output
goes to /dev/null, the fastest sink there is: the comparison favours the other side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_NANOSECONDS_PER_MS = 1e6


class Timed(NamedTuple):
    wall_ms: float
    """From before the spawn until the end was waited for."""
    cpu_ms: float
    """User and system time of the process and of the children that it waited for."""


class CommandFailed(Exception):
    """A command that is measured ended with another status than 0."""


def run_once(argv: Sequence[str], *, check: bool = True) -> Timed:
    """Spawn the command `argv` (an absolute path first), wait for it. Raises CommandFailed, OSError."""
    started_ns = time.perf_counter_ns()
    pid = spawn_silent(argv)
    _, status, usage = os.wait4(pid, 0)
    wall_ms = (time.perf_counter_ns() - started_ns) / _NANOSECONDS_PER_MS
    if check and status != 0:
        raise CommandFailed(f"{' '.join(argv)} ended with status {os.waitstatus_to_exitcode(status)}")
    return Timed(wall_ms, (usage.ru_utime + usage.ru_stime) * 1000)


def spawn_silent(argv: Sequence[str]) -> int:
    """Spawn the command `argv`; its pid, which the caller waits for."""
    return os.posix_spawn(argv[0], list(argv), ENVIRONMENT, file_actions=_SILENT)


def run_sequence(commands: Sequence[Sequence[str]]) -> Timed:
    """Several commands that together are one sandbox's life, one after the other."""
    parts = [run_once(argv) for argv in commands]
    return Timed(sum(part.wall_ms for part in parts), sum(part.cpu_ms for part in parts))


_SILENT = [
    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
]
