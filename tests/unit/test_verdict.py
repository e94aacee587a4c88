"""The verdict on a stage is a pure function of recorded facts and limits: the whole table, row by row."""

from __future__ import annotations

import errno
import signal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.result import Ending, Facts, Failure, Verdict
from sandboxd.spec import MIB, NANOSECONDS, Limits
from sandboxd.verdict import Judgement, decide, decide_job, signal_name

LIMITS = Limits(
    cpu_time_ns=2 * NANOSECONDS,
    wall_time_ns=5 * NANOSECONDS,
    memory_bytes=64 * MIB,
    processes=32,
    output_bytes=MIB,
    file_size_bytes=16 * MIB,
    disk_bytes=32 * MIB,
    open_files=64,
    stack_bytes=8 * MIB,
)
CALM = Facts(
    exit_code=0,
    signal=None,
    exec_errno=None,
    ending=Ending.NONE,
    cpu_time_ns=10_000_000,
    wall_time_ns=20_000_000,
    memory_peak_bytes=MIB,
    processes_peak=1,
    oom_kills=0,
    own_limit_hit=False,
    init_died=False,
    disk_full=False,
    stdout_bytes=6,
    stderr_bytes=0,
)
KILLED: dict[str, Any] = {"exit_code": None, "signal": 9}
NOT_STARTED: dict[str, Any] = {"exit_code": None}
NO_SPACE = Failure(step="CopyIn", subject="a.txt", errno=errno.ENOSPC)
NO_MEMORY = Failure(step="Mount", subject="/proc", errno=errno.ENOMEM)
OOM: dict[str, Any] = {"oom_kills": 1, "own_limit_hit": True}


def facts(**changes: Any) -> Facts:
    return msgspec.structs.replace(CALM, **changes)


V = Verdict
ROWS: list[tuple[str, dict[str, Any], Verdict, str]] = [
    # ok
    ("ended well", {}, V.OK, "ended with exit status 0"),
    ("at the CPU limit exactly", {"cpu_time_ns": 2 * NANOSECONDS}, V.OK, "ended with exit status 0"),
    ("at the wall limit exactly", {"wall_time_ns": 5 * NANOSECONDS}, V.OK, "ended with exit status 0"),
    ("peak at the limit by page cache", {"memory_peak_bytes": 64 * MIB, "own_limit_hit": True}, V.OK, "exit status 0"),
    ("disk full but the program went on", {"disk_full": True}, V.OK, "ended with exit status 0"),
    ("more output than is kept", {"stdout_bytes": 2 * MIB}, V.OK, "ended with exit status 0"),
    # runtime_error
    ("exit status", {"exit_code": 3}, V.RUNTIME_ERROR, "ended with exit status 3"),
    ("exit status that looks like a kill", {"exit_code": 137}, V.RUNTIME_ERROR, "ended with exit status 137"),
    # execve
    *[
        (f"execve {errno.errorcode[number]}", {**NOT_STARTED, "exec_errno": number}, V.RUNTIME_ERROR, reason)
        for number, reason in (
            (errno.ENOENT, "does not exist"),
            (errno.ENOTDIR, "not a folder"),
            (errno.EACCES, "is not executable"),
            (errno.ENOEXEC, "no format that can be run"),
            (errno.ELOOP, "too many symbolic links"),
            (errno.E2BIG, "too big"),
        )
    ],
    *[
        (
            f"execve {errno.errorcode[number]}",
            {**NOT_STARTED, "exec_errno": number},
            V.INTERNAL_ERROR,
            "could not be started",
        )
        for number in (errno.EPERM, errno.ENOMEM, errno.ETXTBSY, errno.EAGAIN, errno.ENFILE, errno.EMFILE)
    ],
    # signalled
    ("SIGSEGV", {"exit_code": None, "signal": signal.SIGSEGV}, V.SIGNALLED, "SIGSEGV: it touched memory"),
    ("SIGKILL by itself", KILLED, V.SIGNALLED, "ended by SIGKILL"),
    ("SIGFPE", {"exit_code": None, "signal": signal.SIGFPE}, V.SIGNALLED, "division by zero"),
    ("SIGABRT", {"exit_code": None, "signal": signal.SIGABRT}, V.SIGNALLED, "aborted itself"),
    ("SIGSYS", {"exit_code": None, "signal": signal.SIGSYS}, V.SIGNALLED, "system call that is forbidden"),
    ("SIGXFSZ", {"exit_code": None, "signal": signal.SIGXFSZ}, V.SIGNALLED, "a file larger than 16 MiB"),
    ("real-time signal", {"exit_code": None, "signal": signal.SIGRTMIN + 3}, V.SIGNALLED, "SIGRTMIN+3"),
    # disk_exceeded
    (
        "disk full",
        {"disk_full": True, "exit_code": 1},
        V.DISK_EXCEEDED,
        "filled its 32 MiB of disk and ended with exit status 1",
    ),
    ("disk full and a signal", {"disk_full": True, "exit_code": None, "signal": 7}, V.DISK_EXCEEDED, "ended by SIGBUS"),
    ("files do not fit", {**NOT_STARTED, "disk_full": True, "failure": NO_SPACE}, V.DISK_EXCEEDED, "files do not fit"),
    # output_exceeded
    (
        "output",
        {**KILLED, "ending": Ending.OUTPUT, "stdout_bytes": 17 * MIB},
        V.OUTPUT_EXCEEDED,
        "killed after it wrote 17 MiB to stdout",
    ),
    ("errors", {**KILLED, "ending": Ending.OUTPUT, "stderr_bytes": 17 * MIB}, V.OUTPUT_EXCEEDED, "17 MiB to stderr"),
    (
        "output before disk",
        {**KILLED, "ending": Ending.OUTPUT, "disk_full": True},
        V.OUTPUT_EXCEEDED,
        "killed after it wrote",
    ),
    # wall_time_exceeded
    (
        "wall",
        {**KILLED, "ending": Ending.WALL_TIME, "wall_time_ns": 5_012_000_000},
        V.WALL_TIME_EXCEEDED,
        "killed after 5.01 s; the limit is 5 s",
    ),
    ("wall, ended by itself", {"wall_time_ns": 5_300_000_000}, V.WALL_TIME_EXCEEDED, "took 5.30 s; the limit is 5 s"),
    (
        "wall before output",
        {"wall_time_ns": 6 * NANOSECONDS, "ending": Ending.OUTPUT, **KILLED},
        V.WALL_TIME_EXCEEDED,
        "took 6",
    ),
    (
        "wall before disk",
        {**KILLED, "ending": Ending.WALL_TIME, "disk_full": True},
        V.WALL_TIME_EXCEEDED,
        "killed after",
    ),
    # cpu_time_exceeded
    (
        "CPU",
        {**KILLED, "ending": Ending.CPU_TIME, "cpu_time_ns": 2_010_000_000},
        V.CPU_TIME_EXCEEDED,
        "killed after 2.01 s of CPU; the limit is 2 s",
    ),
    (
        "CPU by a hair",
        {**KILLED, "ending": Ending.CPU_TIME, "cpu_time_ns": 2_000_100_000},
        V.CPU_TIME_EXCEEDED,
        "2.0001 s of CPU; the limit is 2 s",
    ),
    (
        "CPU, ended by itself",
        {"cpu_time_ns": 2_500_000_000},
        V.CPU_TIME_EXCEEDED,
        "used 2.50 s of CPU; the limit is 2 s",
    ),
    (
        "CPU before wall",
        {**KILLED, "ending": Ending.WALL_TIME, "cpu_time_ns": 3 * NANOSECONDS},
        V.CPU_TIME_EXCEEDED,
        "used 3",
    ),
    (
        "CPU before output",
        {**KILLED, "ending": Ending.OUTPUT, "cpu_time_ns": 3 * NANOSECONDS},
        V.CPU_TIME_EXCEEDED,
        "used 3",
    ),
    (
        "CPU before a signal",
        {"exit_code": None, "signal": 11, "cpu_time_ns": 3 * NANOSECONDS},
        V.CPU_TIME_EXCEEDED,
        "used 3",
    ),
    # memory_exceeded
    ("memory", {**KILLED, **OOM}, V.MEMORY_EXCEEDED, "more than its 64 MiB of memory"),
    ("memory, ended by us", {**KILLED, **OOM, "ending": Ending.OOM}, V.MEMORY_EXCEEDED, "64 MiB"),
    ("memory of a child", {**OOM, "exit_code": 0}, V.MEMORY_EXCEEDED, "64 MiB"),
    ("memory, init the victim", {**NOT_STARTED, **OOM, "init_died": True}, V.MEMORY_EXCEEDED, "64 MiB"),
    ("memory during set-up", {**NOT_STARTED, **OOM, "failure": NO_MEMORY}, V.MEMORY_EXCEEDED, "64 MiB"),
    ("memory during execve", {**NOT_STARTED, **OOM, "exec_errno": errno.ENOMEM}, V.MEMORY_EXCEEDED, "64 MiB"),
    ("memory before CPU", {**KILLED, **OOM, "cpu_time_ns": 3 * NANOSECONDS}, V.MEMORY_EXCEEDED, "64 MiB"),
    ("memory before wall", {**KILLED, **OOM, "ending": Ending.WALL_TIME}, V.MEMORY_EXCEEDED, "64 MiB"),
    ("memory before disk", {**KILLED, **OOM, "disk_full": True}, V.MEMORY_EXCEEDED, "64 MiB"),
    # internal_error
    ("host ran short", {**KILLED, "oom_kills": 1}, V.INTERNAL_ERROR, "the host ran short of memory"),
    (
        "host ran short, init the victim",
        {**NOT_STARTED, "oom_kills": 1, "init_died": True},
        V.INTERNAL_ERROR,
        "ran short",
    ),
    ("ended for memory that nobody counted", {**KILLED, "ending": Ending.OOM}, V.INTERNAL_ERROR, "ran short"),
    ("step failed", {**NOT_STARTED, "failure": NO_MEMORY}, V.INTERNAL_ERROR, "Mount failed with ENOMEM"),
    (
        "step failed for space elsewhere",
        {**NOT_STARTED, "failure": NO_SPACE},
        V.INTERNAL_ERROR,
        "CopyIn failed with ENOSPC",
    ),
    (
        "step failed before a cancellation",
        {**NOT_STARTED, "failure": NO_MEMORY, "ending": Ending.CANCELLED},
        V.INTERNAL_ERROR,
        "Mount",
    ),
    ("init died", {**NOT_STARTED, "init_died": True}, V.INTERNAL_ERROR, "the sandbox itself died"),
    (
        "init died after the limit",
        {**NOT_STARTED, "init_died": True, "cpu_time_ns": 3 * NANOSECONDS},
        V.INTERNAL_ERROR,
        "died",
    ),
    ("end not seen", NOT_STARTED, V.INTERNAL_ERROR, "end was not seen"),
    ("both an exit status and a signal", {"signal": 9}, V.INTERNAL_ERROR, "end was not seen"),
]


@pytest.mark.parametrize(("changes", "verdict", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_table(changes: dict[str, Any], verdict: Verdict, reason: str) -> None:
    judgement = decide(facts(**changes), LIMITS)
    assert judgement.verdict is verdict
    assert reason in judgement.reason


def test_every_verdict_of_a_stage_is_in_the_table() -> None:
    assert {row[2] for row in ROWS} == set(Verdict) - {Verdict.COMPILE_ERROR}


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOENT, 127), (errno.ENOTDIR, 127), (errno.EACCES, 126), (errno.ENOEXEC, 126), (errno.ELOOP, 126)],
)
def test_a_command_that_cannot_be_executed_has_the_exit_code_of_a_shell(number: int, code: int) -> None:
    judgement = decide(facts(exit_code=None, exec_errno=number), LIMITS)
    assert (judgement.exit_code, judgement.signal) == (code, None)
    assert errno.errorcode[number] in judgement.reason


def test_a_signalled_program_has_a_signal_and_no_exit_code() -> None:
    judgement = decide(facts(exit_code=None, signal=signal.SIGSEGV), LIMITS)
    assert (judgement.exit_code, judgement.signal) == (None, "SIGSEGV")


def test_our_fault_shows_neither_exit_code_nor_signal() -> None:
    judgement = decide(facts(exit_code=3, failure=NO_MEMORY), LIMITS)
    assert (judgement.exit_code, judgement.signal) == (None, None)


def test_a_cancelled_stage_has_no_verdict() -> None:
    with pytest.raises(ValueError, match="cancelled"):
        decide(facts(ending=Ending.CANCELLED), LIMITS)


@pytest.mark.parametrize(("factor", "verdict"), [(None, Verdict.OK), (2, Verdict.OUTPUT_EXCEEDED), (3, Verdict.OK)])
def test_a_program_that_ended_before_it_was_killed_for_its_output_is_judged_alike(
    factor: int | None, verdict: Verdict
) -> None:
    judgement = decide(facts(stdout_bytes=2 * MIB + 1), LIMITS, output_kill_factor=factor)
    assert judgement.verdict is verdict


OK = Judgement(verdict=Verdict.OK, reason="ended with exit status 0", exit_code=0)
SLOW = Judgement(
    verdict=Verdict.CPU_TIME_EXCEEDED, reason="killed after 2.01 s of CPU; the limit is 2 s", signal="SIGKILL"
)
WRONG = Judgement(verdict=Verdict.RUNTIME_ERROR, reason="ended with exit status 1", exit_code=1)
OURS = Judgement(verdict=Verdict.INTERNAL_ERROR, reason="the sandbox itself died")


@pytest.mark.parametrize("last", [OK, SLOW, WRONG, OURS])
def test_a_job_ends_as_its_last_stage(last: Judgement) -> None:
    assert decide_job([("run", last)]) == last
    assert decide_job([("compile", OK), ("run", last)]) == last


def test_a_program_that_does_not_compile_is_a_compile_error() -> None:
    judgement = decide_job([("compile", WRONG)])
    assert judgement.verdict is Verdict.COMPILE_ERROR
    assert judgement.reason == "the program does not compile: the compiler ended with exit status 1"
    assert judgement.exit_code == 1


def test_a_compiler_that_hits_a_limit_is_a_compile_error_that_says_so() -> None:
    judgement = decide_job([("compile", SLOW)])
    assert judgement.verdict is Verdict.COMPILE_ERROR
    assert judgement.reason == "the compilation failed: killed after 2.01 s of CPU; the limit is 2 s"


def test_a_compile_stage_that_failed_through_us_is_our_fault() -> None:
    assert decide_job([("compile", OURS)]) == OURS


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (signal.SIGRTMIN + 1, "SIGRTMIN+1"), (200, "SIG200")])
def test_signals_have_names(number: int, name: str) -> None:
    assert signal_name(number) == name


some = st.fixed_dictionaries(
    {
        "exit_code": st.none() | st.integers(0, 255),
        "signal": st.none() | st.integers(1, 64),
        "exec_errno": st.none() | st.integers(1, 133),
        "ending": st.sampled_from([ending for ending in Ending if ending is not Ending.CANCELLED]),
        "cpu_time_ns": st.integers(0, 5 * NANOSECONDS),
        "wall_time_ns": st.integers(0, 9 * NANOSECONDS),
        "oom_kills": st.integers(0, 2),
        "own_limit_hit": st.booleans(),
        "init_died": st.booleans(),
        "disk_full": st.booleans(),
        "stdout_bytes": st.integers(0, 1 << 40),
        "failure": st.none() | st.sampled_from([NO_SPACE, NO_MEMORY]),
    }
)


@settings(deadline=None)
@given(some, st.none() | st.integers(1, 16))
def test_any_facts_get_one_verdict_and_a_sentence(changes: dict[str, Any], factor: int | None) -> None:
    judgement = decide(facts(**changes), LIMITS, output_kill_factor=factor)
    assert judgement.verdict is not Verdict.COMPILE_ERROR
    assert judgement.reason
    assert "\n" not in judgement.reason
    if judgement.verdict is Verdict.OK:
        assert changes["exit_code"] == 0
        assert changes["failure"] is None
