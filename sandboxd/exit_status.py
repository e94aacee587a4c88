"""The exit status of `sandboxd run` and `sandboxd submit`: the program's own, as a shell would report it."""

from __future__ import annotations

import signal as signals

from sandboxd.result import Verdict

LIMIT_STATUS = 124
"""A limit ended the program, as with timeout(1)."""
OUR_FAULT_STATUS = 125
"""sandboxd itself failed: the program did not run to an end that means anything."""
USAGE_STATUS = 2
"""The command line, or what a server was sent, is wrong: as click ends for its own part of it."""
CANCELLED_STATUS = 130
"""The job was cancelled, as by Ctrl-C."""

_LIMITS = frozenset(
    {
        Verdict.CPU_TIME_EXCEEDED,
        Verdict.WALL_TIME_EXCEEDED,
        Verdict.MEMORY_EXCEEDED,
        Verdict.OUTPUT_EXCEEDED,
        Verdict.DISK_EXCEEDED,
    }
)


def exit_status(verdict: Verdict | None, exit_code: int | None, signal: str | None) -> int:
    """The status for a job whose last stage ended like that; `verdict` None is a cancelled one, `signal` a name.

    Of a job that did not compile it is the compiler's own, or 124 when a limit ended the compiler: give the stage's
    verdict.
    """
    if verdict is None:
        return CANCELLED_STATUS
    if verdict is Verdict.INTERNAL_ERROR:
        return OUR_FAULT_STATUS
    if verdict in _LIMITS:
        return LIMIT_STATUS
    if signal is not None:
        return 128 + signal_number(signal)
    return exit_code if exit_code is not None else OUR_FAULT_STATUS


def signal_number(name: str) -> int:
    """The reverse of `verdict.signal_name`. Raises ValueError for what is not a signal's name."""
    if name.startswith("SIGRTMIN+"):
        return signals.SIGRTMIN + int(name.removeprefix("SIGRTMIN+"))
    if name in signals.Signals.__members__:
        return signals.Signals[name].value
    return int(name.removeprefix("SIG"))
