"""From recorded facts to a verdict and a sentence: pure functions, tested as a table.

In order of precedence: our fault; the memory limit; CPU time, wall time and output (we ended it for that reason, or
the measured value is above the limit at the end); a full disk; a signal; an exit status other than 0; ok.
"""

from __future__ import annotations

import errno as errno_names
import os
import signal as signals
from collections.abc import Sequence

from sandboxd.policy.units import describe_bytes
from sandboxd.result import Ending, Facts, Verdict
from sandboxd.spec import NANOSECONDS, Limits, Struct

# A failing execve that says something about the job's command; any other errno says something about us.
NOT_FOUND = (errno_names.ENOENT, errno_names.ENOTDIR)
NOT_EXECUTABLE = (
    errno_names.EACCES,
    errno_names.ENOEXEC,
    errno_names.ELOOP,
    errno_names.E2BIG,
    errno_names.ENAMETOOLONG,
    errno_names.ELIBBAD,
    errno_names.EINVAL,
    errno_names.EISDIR,
    errno_names.EIO,
)
PROGRAM_EXEC_ERRNOS = frozenset(NOT_FOUND + NOT_EXECUTABLE)
"""What a command's path, its arguments or the bytes of its file can make execve answer; any other errno is ours."""
EXIT_NOT_FOUND, EXIT_NOT_EXECUTABLE = 127, 126

_EXEC_REASONS = {
    errno_names.ENOENT: "the program, or the interpreter that it names, does not exist",
    errno_names.ENOTDIR: "a part of the program's path is not a folder",
    errno_names.EACCES: "the program is not executable",
    errno_names.ENOEXEC: "the program is in no format that can be run (a script begins with #! and its interpreter)",
    errno_names.ELOOP: "the program's path has too many symbolic links",
    errno_names.E2BIG: "the arguments and the environment are too big",
    errno_names.ENAMETOOLONG: "the command's name is too long",
    errno_names.ELIBBAD: "the interpreter that the program names is no program itself",
    errno_names.EINVAL: "the program's file is malformed",
    errno_names.EIO: "the program's file, or that of its interpreter, is cut short",
    errno_names.EISDIR: "the program, or the interpreter that it names, is a folder",
}

_SIGNAL_REASONS: dict[int, str] = {
    signals.SIGSEGV: "it touched memory that it may not touch",
    signals.SIGBUS: "it touched memory that is not there",
    signals.SIGFPE: "an arithmetic error, such as an integer division by zero",
    signals.SIGILL: "an illegal instruction",
    signals.SIGABRT: "it aborted itself, as after a failed assertion or an uncaught exception",
    signals.SIGSYS: "it made a system call that is forbidden",
    signals.SIGPIPE: "it wrote to a pipe that nobody reads",
    signals.SIGTRAP: "a breakpoint or a trap",
}


class Judgement(Struct, frozen=True, kw_only=True):
    """How a stage, or a job, ended. `exit_code` and `signal` are what a client is shown, at most one of them."""

    verdict: Verdict
    reason: str
    """One sentence that a student understands, with the numbers."""
    exit_code: int | None = None
    signal: str | None = None
    """`SIGSEGV`."""


def decide(facts: Facts, limits: Limits, *, output_kill_factor: int | None = None) -> Judgement:
    """The verdict on one stage. With the policy's `output_kill_factor` a program that wrote too much and ended before
    it could be killed is judged like one that was killed.

    Raises:
        ValueError: the stage was cancelled: it has no verdict.
    """
    if facts.ending is Ending.CANCELLED and facts.failure is None:
        raise ValueError("a cancelled stage has no verdict")
    verdict, reason = (
        _ended_by_memory(facts, limits)
        or _our_fault(facts)
        or _ended_by_time(facts, limits)
        or _ended_by_output(facts, limits, output_kill_factor)
        or _ended_by_disk(facts, limits)
        or _ended_by_itself(facts, limits)
    )
    if verdict is Verdict.INTERNAL_ERROR:
        return Judgement(verdict=verdict, reason=reason)
    code = _exec_exit_code(facts.exec_errno) if facts.exec_errno is not None else facts.exit_code
    name = None if facts.signal is None else signal_name(facts.signal)
    return Judgement(verdict=verdict, reason=reason, exit_code=code, signal=name)


def decide_job(stages: Sequence[tuple[str, Judgement]]) -> Judgement:
    """The verdict on a job from those of its stages, (name, judgement) in the order they ran; there is at least one.

    A compile stage that ends in anything but `ok` makes the job `compile_error`, unless the fault was ours; the
    stage's own verdict says which it was. Otherwise the last stage decides.
    """
    name, last = stages[-1]
    if name == "compile" and last.verdict not in (Verdict.OK, Verdict.INTERNAL_ERROR):
        ended = _ended_with(last.exit_code)
        if last.reason == ended:
            reason = f"the program does not compile: the compiler {ended}"
        else:
            reason = f"the compilation failed: {last.reason}"
        return Judgement(verdict=Verdict.COMPILE_ERROR, reason=reason, exit_code=last.exit_code, signal=last.signal)
    return last


def signal_name(number: int) -> str:
    """`SIGSEGV`, `SIGRTMIN+3`, and for a number without a name `SIG99`."""
    try:
        return signals.Signals(number).name
    except ValueError:
        if signals.SIGRTMIN < number < signals.SIGRTMAX:
            return f"SIGRTMIN+{number - signals.SIGRTMIN}"
        return f"SIG{number}"


_Row = tuple[Verdict, str] | None


def _ended_by_memory(facts: Facts, limits: Limits) -> _Row:
    """Before our own fault: where the job's own limit struck init or a step of the set-up, we did nothing wrong."""
    if facts.oom_kills > 0 and facts.own_limit_hit:
        return (
            Verdict.MEMORY_EXCEEDED,
            f"killed when it needed more than its {describe_bytes(limits.memory_bytes)} of memory",
        )
    return None


def _our_fault(facts: Facts) -> _Row:
    reason = None
    if facts.oom_kills > 0 or facts.ending is Ending.OOM:
        reason = "the host ran short of memory; the job was below its own limit"
    elif facts.failure is not None and not (facts.disk_full and facts.failure.errno == errno_names.ENOSPC):
        failure = facts.failure
        what = f"failed with {_errno_name(failure.errno)}" if failure.errno else f"({failure.subject})"
        reason = f"the sandbox could not be set up: {failure.step} {what}"
    elif facts.init_died:
        reason = "the sandbox itself died"
    elif facts.exec_errno is not None and facts.exec_errno not in PROGRAM_EXEC_ERRNOS:
        reason = f"the program could not be started: execve failed with {_errno_name(facts.exec_errno)}"
    elif facts.failure is None and facts.exec_errno is None and facts.ending is Ending.NONE:
        if (facts.exit_code is None) == (facts.signal is None):
            reason = "the program's end was not seen"
    return None if reason is None else (Verdict.INTERNAL_ERROR, reason)


def _ended_by_time(facts: Facts, limits: Limits) -> _Row:
    for verdict, ending, used, limit, what in (
        (Verdict.CPU_TIME_EXCEEDED, Ending.CPU_TIME, facts.cpu_time_ns, limits.cpu_time_ns, " of CPU"),
        (Verdict.WALL_TIME_EXCEEDED, Ending.WALL_TIME, facts.wall_time_ns, limits.wall_time_ns, ""),
    ):
        if facts.ending is ending:
            return verdict, f"killed after {_seconds(used, limit)}{what}; the limit is {_seconds(limit)}"
        if used > limit:
            did = "used" if what else "took"
            return verdict, f"{did} {_seconds(used, limit)}{what}; the limit is {_seconds(limit)}"
    return None


def _ended_by_output(facts: Facts, limits: Limits, output_kill_factor: int | None) -> _Row:
    stream, written = max(("stdout", facts.stdout_bytes), ("stderr", facts.stderr_bytes), key=lambda pair: pair[1])
    bound = None if output_kill_factor is None else output_kill_factor * limits.output_bytes
    if facts.ending is not Ending.OUTPUT and (bound is None or written <= bound):
        return None
    did = "killed after it wrote" if facts.ending is Ending.OUTPUT else "wrote"
    amount = describe_bytes(written)
    if bound is not None and amount == describe_bytes(bound):
        amount = f"more than {amount}"  # a little, which rounding hides
    allowed = f"; at most {describe_bytes(bound)} are allowed" if bound is not None else ""
    return (
        Verdict.OUTPUT_EXCEEDED,
        f"{did} {amount} to {stream}{allowed}; {describe_bytes(limits.output_bytes)} are kept",
    )


def _ended_by_disk(facts: Facts, limits: Limits) -> _Row:
    if not facts.disk_full or (facts.exit_code == 0 and facts.failure is None):
        return None
    size = describe_bytes(limits.disk_bytes)
    if facts.failure is not None:
        return Verdict.DISK_EXCEEDED, f"the job's files do not fit into its {size} of disk"
    return Verdict.DISK_EXCEEDED, f"it filled its {size} of disk and {_end(facts)}"


def _ended_by_itself(facts: Facts, limits: Limits) -> tuple[Verdict, str]:
    if facts.exec_errno is not None:
        code = _exec_exit_code(facts.exec_errno)
        return (
            Verdict.RUNTIME_ERROR,
            f"{_EXEC_REASONS[facts.exec_errno]} ({_errno_name(facts.exec_errno)}; exit status {code})",
        )
    if facts.signal is not None:
        why = _SIGNAL_REASONS.get(facts.signal)
        if facts.signal == signals.SIGXFSZ:
            why = f"it wrote a file larger than {describe_bytes(limits.file_size_bytes)}, or than a limit of its own"
        return Verdict.SIGNALLED, f"ended by {signal_name(facts.signal)}" + (f": {why}" if why else "")
    if facts.exit_code:
        return Verdict.RUNTIME_ERROR, _ended_with(facts.exit_code)
    return Verdict.OK, _ended_with(0)


def _end(facts: Facts) -> str:
    if facts.exec_errno is not None:
        return "could not be started"
    if facts.signal is not None:
        return f"was ended by {signal_name(facts.signal)}"
    return _ended_with(facts.exit_code)


def _ended_with(exit_code: int | None) -> str:
    return f"ended with exit status {exit_code}"


def _exec_exit_code(errno: int) -> int:
    return EXIT_NOT_FOUND if errno in NOT_FOUND else EXIT_NOT_EXECUTABLE


def _errno_name(errno: int) -> str:
    return f"{errno_names.errorcode.get(errno, str(errno))}, {os.strerror(errno)}"


def _seconds(value_ns: int, limit_ns: int | None = None) -> str:
    """`2.01 s`; with as many digits as it takes to be told from the limit."""
    text = f"{value_ns / NANOSECONDS:.2f}".rstrip("0").rstrip(".")
    if limit_ns is None or value_ns <= limit_ns:
        exact = f"{value_ns / NANOSECONDS:.9f}".rstrip("0").rstrip(".")
        return f"{exact} s" if limit_ns is None else f"{text} s"
    for digits in range(2, 10):
        text, limit = f"{value_ns / NANOSECONDS:.{digits}f}", f"{limit_ns / NANOSECONDS:.{digits}f}"
        if text != limit:
            break
    return f"{text} s"
