"""What happened in a stage: facts that the kernel measured, and nothing that a program said of itself."""

from __future__ import annotations

import enum

from sandboxd.errors import InternalError, StepError
from sandboxd.spec import InputFile, Limits, Struct


class Verdict(enum.StrEnum):
    """How a stage, and so a job, ended."""

    OK = "ok"
    COMPILE_ERROR = "compile_error"
    RUNTIME_ERROR = "runtime_error"
    SIGNALLED = "signalled"
    CPU_TIME_EXCEEDED = "cpu_time_exceeded"
    WALL_TIME_EXCEEDED = "wall_time_exceeded"
    MEMORY_EXCEEDED = "memory_exceeded"
    OUTPUT_EXCEEDED = "output_exceeded"
    DISK_EXCEEDED = "disk_exceeded"
    INTERNAL_ERROR = "internal_error"


class Ending(enum.StrEnum):
    """Why the launcher ended a sandbox before its program did. `NONE`: the program ended by itself."""

    NONE = "none"
    CPU_TIME = "cpu_time"
    WALL_TIME = "wall_time"
    OUTPUT = "output"
    OOM = "oom"
    CANCELLED = "cancelled"


class DeniedSyscall(Struct, frozen=True, kw_only=True):
    """A system call that the filter refused, and how often."""

    name: str
    count: int


class Failure(Struct, frozen=True, kw_only=True):
    """A step of ours that failed. Rebuilt as `errors.StepError` where it is reported."""

    step: str
    subject: str
    errno: int
    hint: str = ""


class Facts(Struct, frozen=True, kw_only=True):
    """One stage, as recorded by the launcher. `verdict.decide` turns it into a verdict."""

    exit_code: int | None
    """Exit status 0..255 of the main process; None when a signal ended it or it was never seen to end."""
    signal: int | None
    """Number of the signal that ended the main process; None otherwise."""
    exec_errno: int | None
    """errno of a failed `execve` of the job's own command; the program then never ran."""
    ending: Ending
    cpu_time_ns: int
    wall_time_ns: int
    memory_peak_bytes: int
    processes_peak: int | None
    oom_kills: int
    """Times the kernel's OOM killer struck in this stage's cgroup."""
    own_limit_hit: bool
    """The stage's own memory limit was hit (v2 `memory.events` oom, v1 `failcnt`); False with `oom_kills`: the host
    ran short."""
    init_died: bool
    """PID 1 of the sandbox ended without a report, and the launcher had not asked for it."""
    disk_full: bool
    """No free block or inode was left in the write layer at the end."""
    stdout_bytes: int
    stderr_bytes: int
    """All that was written to the stream and read by the launcher, kept or not."""
    denied: tuple[DeniedSyscall, ...] | None = None
    """None unless the policy reports them; at most the first `jail.denied.REPORTS_MAX` refusals are counted."""
    failure: Failure | None = None


def failure_of(error: InternalError) -> Failure:
    """What went wrong, as it is recorded. `errno` 0: no call of the kernel's failed, and `subject` says it all."""
    if isinstance(error, StepError):
        return Failure(step=error.step, subject=error.subject, errno=error.errno, hint=error.hint)
    return Failure(step=type(error).__name__, subject=str(error), errno=0)


def no_facts(failure: Failure | None, ending: Ending) -> Facts:
    """Facts of a stage in which nothing could be measured: it had no sandbox, or the sandbox failed."""
    return Facts(
        exit_code=None,
        signal=None,
        exec_errno=None,
        ending=ending,
        cpu_time_ns=0,
        wall_time_ns=0,
        memory_peak_bytes=0,
        processes_peak=None,
        oom_kills=0,
        own_limit_hit=False,
        init_died=False,
        disk_full=False,
        stdout_bytes=0,
        stderr_bytes=0,
        failure=failure,
    )


class Isolation(Struct, frozen=True, kw_only=True):
    """Which walls stood around a stage; reported with each result."""

    namespaces: tuple[str, ...]
    cgroup: str
    seccomp: bool
    landlock_abi: int | None
    selinux: str | None
    rootless: bool
    without: tuple[str, ...]


class StageOutcome(Struct, frozen=True, kw_only=True):
    """All that a launcher returns for one stage, output streams apart (they travel as chunks)."""

    facts: Facts
    limits: Limits
    isolation: Isolation
    policy_digest: str
    image_digest: str
    files: tuple[InputFile, ...] = ()
    """What `StageSpec.collect` matched: regular files alone, bounded in size, count and depth."""
    files_omitted: int = 0
    """Files that matched and were left out, being too big, too many, too deep or not regular."""
