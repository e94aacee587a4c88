"""Running a job's stages one after the other through a launcher, and judging them. Used by the worker and by
`sandboxd run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sandboxd.catalogue import Catalogue
from sandboxd.document import Digested, StageReport
from sandboxd.jail.protocol import COLLECT_BYTES_MAX, COLLECT_FILES_MAX
from sandboxd.languages import plan_stages, with_outputs
from sandboxd.output import KeptOutput
from sandboxd.result import Ending, StageOutcome, Verdict
from sandboxd.spec import JobRequest, StageSpec, Struct
from sandboxd.verdict import Judgement, decide, decide_job

if TYPE_CHECKING:
    from sandboxd.jail.client import LauncherClient

Sink = Callable[[str, bytes], None]
"""Gets each chunk of output as it comes: `stdout` or `stderr`, and the bytes."""


class Ended(Struct, frozen=True, kw_only=True):
    """A job whose stages have run, as far as they did."""

    stages: tuple[StageReport, ...]
    judgement: Judgement | None
    """None: it was cancelled."""
    policy: Digested
    image: Digested

    @property
    def state(self) -> str:
        """The state in which the job ends."""
        if self.judgement is None:
            return "cancelled"
        return "failed" if self.judgement.verdict is Verdict.INTERNAL_ERROR else "finished"


def run_job(
    request: JobRequest,
    catalogue: Catalogue,
    client: LauncherClient,
    *,
    sink: Sink | None = None,
    stdin_fd: int | None = None,
    cancel_fd: int | None = None,
    on_idle: Callable[[], None] | None = None,
    idle_s: float = 1.0,
) -> Ended:
    """Run every stage up to the first that is not `ok`. `sink` sees the last stage's output, and that of one that
    failed to compile is in its report alone.

    Raises:
        InputError: the request asks for what the launcher does not offer or its policy does not allow.
        LauncherUnavailable, ProtocolError: the launcher went away; nothing of the job is left on the host.
    """
    plan = plan_stages(request, catalogue)
    reports: list[StageReport] = []
    outcome: StageOutcome | None = None
    for number, planned in enumerate(plan):
        stage = planned if outcome is None else with_outputs(planned, outcome.files)
        last = number == len(plan) - 1
        stdout, stderr = KeptOutput(stage.limits.output_bytes), KeptOutput(stage.limits.output_bytes)
        outcome = client.run(
            stage,
            on_stdout=_tee(stdout, sink if last else None, "stdout"),
            on_stderr=_tee(stderr, sink if last else None, "stderr"),
            stdin_fd=stdin_fd if stage.stdin is None else None,
            cancel_fd=cancel_fd,
            on_idle=on_idle,
            idle_s=idle_s,
        )
        judgement = judge(stage, outcome, catalogue)
        reports.append(StageReport(name=stage.name, judgement=judgement, outcome=outcome, stdout=stdout, stderr=stderr))
        if judgement is None or judgement.verdict is not Verdict.OK:
            break
    return _ended(plan[-1], reports, catalogue)


def judge(stage: StageSpec, outcome: StageOutcome, catalogue: Catalogue) -> Judgement | None:
    """The verdict on a stage; None when it was cancelled."""
    if outcome.facts.ending is Ending.CANCELLED and outcome.facts.failure is None:
        return None
    factor = catalogue.policy(stage.policy).output_kill_factor
    judgement = decide(outcome.facts, outcome.limits, output_kill_factor=factor)
    if judgement.verdict is Verdict.OK and outcome.files_omitted:
        # What is missing is what the next stage would look for in vain.
        bound = f"at most {COLLECT_FILES_MAX} regular files of together {COLLECT_BYTES_MAX >> 20} MiB"
        return Judgement(verdict=Verdict.DISK_EXCEEDED, reason=f"it left more than can be handed on: {bound}")
    return judgement


def _ended(run: StageSpec, reports: Sequence[StageReport], catalogue: Catalogue) -> Ended:
    """The job's policy is that of its run stage, also when the compile stage was the last."""
    judged = [(report.name, report.judgement) for report in reports if report.judgement is not None]
    cancelled = reports[-1].judgement is None
    ran = reports[-1] if reports[-1].name == run.name else None
    return Ended(
        stages=tuple(reports),
        judgement=None if cancelled else decide_job(judged),
        policy=Digested(
            name=run.policy, digest=ran.outcome.policy_digest if ran else catalogue.policy(run.policy).digest
        ),
        image=Digested(name=run.image, digest=reports[-1].outcome.image_digest),
    )


def _tee(kept: KeptOutput, sink: Sink | None, name: str) -> Callable[[bytes], None]:
    if sink is None:
        return kept.feed

    def feed(chunk: bytes) -> None:
        kept.feed(chunk)
        sink(name, chunk)

    return feed


def no_result(policy: str, image: str, reason: str) -> Ended:
    """A job of which nothing ran, by a fault of ours."""
    return Ended(
        stages=(),
        judgement=Judgement(verdict=Verdict.INTERNAL_ERROR, reason=reason),
        policy=Digested(name=policy),
        image=Digested(name=image),
    )
