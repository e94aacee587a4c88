"""The JSON that a client gets: of a job, its stages, its streams. One place for the API, the worker and `sandboxd run
--json`.

A worker stores the part that it knows (`JobResult`); the rest (id, state, times) is added when the job is read. Times
are float seconds, sizes integer bytes.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Sequence

import msgspec

from sandboxd.output import KeptOutput
from sandboxd.policy.units import to_edge
from sandboxd.result import DeniedSyscall, Isolation, StageOutcome, Verdict
from sandboxd.spec import NANOSECONDS, Struct
from sandboxd.verdict import Judgement, signal_name

_DEFLATE_FROM_BYTES = 4096


class StageReport(Struct, frozen=True, kw_only=True):
    """One stage as it ended: the launcher's facts, the verdict on them, and what was kept of its streams."""

    name: str
    judgement: Judgement | None
    """None: the job was cancelled in this stage."""
    outcome: StageOutcome
    stdout: KeptOutput
    stderr: KeptOutput


class Digested(Struct, frozen=True, kw_only=True):
    """A policy or an image, by name, with the digest of what was in force; None until the job has run."""

    name: str
    digest: str | None = None


class StageDocument(Struct, frozen=True, kw_only=True):
    """One stage in a job's document."""

    name: str
    verdict: Verdict | None
    exit_code: int | None
    signal: str | None
    stdout: str
    stdout_encoding: str
    stdout_dropped_bytes: int
    stdout_gap_at_bytes: int | None
    stderr: str
    stderr_encoding: str
    stderr_dropped_bytes: int
    stderr_gap_at_bytes: int | None
    cpu_time_s: float
    wall_time_s: float
    memory_peak_bytes: int
    processes_peak: int | None
    limits: dict[str, float | int]
    denied_syscalls: tuple[DeniedSyscall, ...] | None


class JobResult(Struct, frozen=True, kw_only=True):
    """What is known of a job when it has ended; what a worker stores."""

    verdict: Verdict | None
    reason: str | None
    stages: tuple[StageDocument, ...]
    policy: Digested
    image: Digested
    isolation: Isolation | None


# Made here, once: msgspec prepares a type when it is first decoded, and two threads that both do so crash the process.
_DECODER = msgspec.json.Decoder(JobResult)


class JobDocument(Struct, frozen=True, kw_only=True):
    """A job as a client sees it."""

    id: str | None
    state: str
    verdict: Verdict | None
    reason: str | None
    stages: tuple[StageDocument, ...]
    policy: Digested
    image: Digested
    isolation: Isolation | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    worker: str | None


def now_rfc3339() -> str:
    """The time now, UTC, to the microsecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def job_result(
    *,
    verdict: Verdict | None,
    reason: str | None,
    stages: Sequence[StageReport],
    policy: Digested,
    image: Digested,
) -> JobResult:
    """A job that ended, from its stages. `isolation` is that of the last one."""
    return JobResult(
        verdict=verdict,
        reason=reason,
        stages=tuple(stage_document(stage) for stage in stages),
        policy=policy,
        image=image,
        isolation=stages[-1].outcome.isolation if stages else None,
    )


def job_document(
    result: JobResult,
    *,
    job_id: str | None,
    state: str,
    created_at: str,
    started_at: str | None,
    finished_at: str | None,
    worker: str | None,
) -> JobDocument:
    """The whole document. `sandboxd run` has neither id nor worker: both are null then."""
    return JobDocument(
        id=job_id,
        state=state,
        verdict=result.verdict,
        reason=result.reason,
        stages=result.stages,
        policy=result.policy,
        image=result.image,
        isolation=result.isolation,
        created_at=created_at,
        started_at=started_at,
        finished_at=finished_at,
        worker=worker,
    )


def encode(document: JobResult | JobDocument) -> bytes:
    """As JSON."""
    return msgspec.json.encode(document)


def pack_result(result: JobResult) -> bytes:
    """A result as it is stored: JSON, deflated when it is large. Text shrinks to a fifth, floods to nearly nothing."""
    encoded = msgspec.json.encode(result)
    return encoded if len(encoded) < _DEFLATE_FROM_BYTES else zlib.compress(encoded, 1)


def unpack_result(stored: bytes) -> JobResult:
    """The reverse of `pack_result`. Raises msgspec.ValidationError."""
    encoded = stored if stored.startswith(b"{") else zlib.decompress(stored)
    return _DECODER.decode(encoded)


def stage_document(stage: StageReport) -> StageDocument:
    """One stage for a client."""
    facts, judged = stage.outcome.facts, stage.judgement
    cancelled_by = None if facts.signal is None else signal_name(facts.signal)
    stdout, stderr = stage.stdout.text(), stage.stderr.text()
    return StageDocument(
        name=stage.name,
        verdict=None if judged is None else judged.verdict,
        exit_code=facts.exit_code if judged is None else judged.exit_code,
        signal=cancelled_by if judged is None else judged.signal,
        stdout=stdout.content,
        stdout_encoding=stdout.encoding,
        stdout_dropped_bytes=stdout.dropped_bytes,
        stdout_gap_at_bytes=stdout.gap_at_bytes,
        stderr=stderr.content,
        stderr_encoding=stderr.encoding,
        stderr_dropped_bytes=stderr.dropped_bytes,
        stderr_gap_at_bytes=stderr.gap_at_bytes,
        cpu_time_s=_seconds(facts.cpu_time_ns),
        wall_time_s=_seconds(facts.wall_time_ns),
        memory_peak_bytes=facts.memory_peak_bytes,
        processes_peak=facts.processes_peak,
        limits=to_edge(stage.outcome.limits),
        denied_syscalls=facts.denied,
    )


def _seconds(nanoseconds: int) -> float:
    return round(nanoseconds / NANOSECONDS, 6)
