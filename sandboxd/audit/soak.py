"""Thousands of hostile and honest jobs, two for each core at once: nothing drifts, honest ones keep their verdict.

What is judged here: every hostile job's answer; what is left when all have ended; the honest jobs' verdicts, and their
CPU time against that of the same job alone; how far a loop gets beyond its CPU limit.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from sandboxd.audit import corpus, host
from sandboxd.audit.corpus import Case, Severity, Table
from sandboxd.audit.judge import Observation, State, judge
from sandboxd.audit.target import LauncherTarget, Routed
from sandboxd.result import Verdict
from sandboxd.spec import NANOSECONDS, Struct

JOBS_AT_ONCE_PER_CORE = 2
HONEST_EVERY = 20
BURN_EVERY = 50
ALONE = 9
SHORT_WALL_S = 0.5
SLOWER_MAX = 1.10
"""Median CPU time of an honest job among hostile ones, against alone."""
BEYOND_LIMIT_MAX_S = 0.060
"""95th percentile of what a loop uses beyond its CPU limit."""

HONEST = Case(
    id="honest",
    topic="soak",
    args=(),
    table=Table(
        name="honest",
        severity=Severity.PEER_DENIAL,
        source="a job like most",
        program="honest.py",
        answers=("held",),
        uncontrolled="it is the control",
    ),
)
CPU_BURN = "cpu burn-loop"


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that a soak looks at."""

    what: str
    state: State
    evidence: str


class _Run(Struct, frozen=True, kw_only=True):
    case: Case
    seen: Observation


def soak(
    state_root: Path, routed: Routed, cases: Sequence[Case], jobs: int, on_job: Callable[[], None], *, prepared: bool
) -> tuple[Finding, ...]:
    """Runs that many jobs. Raises LauncherUnavailable."""
    chosen = [_patient(case) for case in cases if not (case.table.slow or case.table.beside or case.table.before)]
    burn = next(case for case in corpus.load() if case.id == CPU_BURN)
    with LauncherTarget(99, state_root, routed=routed, prepared=prepared) as target:
        target.warm_up([*chosen, burn, HONEST])
        alone = [cpu_s(target.observe(HONEST, ())) for _ in range(ALONE)]
        before, state = host.before(target), host.host_state(target)
        runs = _at_once(target, _order(chosen, burn, jobs), on_job)
        return (
            _hostile(runs),
            *_honest(runs, statistics.median(alone)),
            *_limits(runs),
            finding("left behind", host.left_behind(target, before), "nothing"),
            finding("changes of the host", "; ".join(host.changes(state, host.host_state(target))), "none"),
        )


def _patient(case: Case) -> Case:
    """Who is to be ended by a short wall limit has to come to what he is ended in, with others beside him."""
    limits = case.table.limits
    wall_s = limits.get("wall_time_s")
    if wall_s is None or wall_s > SHORT_WALL_S:
        return case
    limits = {**limits, "wall_time_s": 3 * wall_s}
    return msgspec.structs.replace(case, table=msgspec.structs.replace(case.table, limits=limits))


def _order(cases: Sequence[Case], burn: Case, jobs: int) -> list[Case]:
    """Hostile ones in an order that is the same each time, an honest one and one that burns CPU now and then."""
    chance = random.Random(jobs)  # noqa: S311  # an order, not a secret
    hostile = itertools.chain.from_iterable(chance.sample(cases, len(cases)) for _ in itertools.count())
    return [
        HONEST if number % HONEST_EVERY == 0 else burn if number % BURN_EVERY == 1 else next(hostile)
        for number in range(max(jobs, 2))
    ]


def _at_once(target: LauncherTarget, order: Sequence[Case], on_job: Callable[[], None]) -> list[_Run]:
    count = JOBS_AT_ONCE_PER_CORE * (os.cpu_count() or 1)

    def work(number: int) -> list[_Run]:
        done = []
        with target.another_client() as own:
            for case in order[number::count]:
                done.append(_Run(case=case, seen=own.observe(case, case.args)))
                on_job()
        return done

    with ThreadPoolExecutor(count) as threads:
        return [run for part in threads.map(work, range(count)) for run in part]


def _hostile(runs: Sequence[_Run]) -> Finding:
    hostile = [run for run in runs if run.case is not HONEST]
    judged = [(run.case.id, judge(_unhurried(run.case), run.seen)) for run in hostile]
    wrong = [f"{name}: {each.state}, {each.evidence}" for name, each in judged if each.state is not State.HELD]
    return finding(f"{len(hostile)} hostile jobs", "; ".join(wrong[:5]), "each as when it is alone")


def _unhurried(case: Case) -> Case:
    """Without bounds of time: among others a job waits for its turn. How far the CPU limit holds is asked apart."""
    return msgspec.structs.replace(case, table=msgspec.structs.replace(case.table, cpu_time_s=None, wall_time_s=None))


def _honest(runs: Sequence[_Run], alone_s: float) -> tuple[Finding, Finding]:
    honest = [run.seen for run in runs if run.case is HONEST]
    wrong = [seen for seen in honest if seen.verdict is not Verdict.OK or seen.answer != "held"]
    ratio = statistics.median(map(cpu_s, honest)) / alone_s
    text = f"{ratio:.3f} times that of the job alone ({alone_s:.3f} s)"
    return (
        finding(f"{len(honest)} honest jobs", f"{len(wrong)} lost their verdict" if wrong else "", "all ok"),
        finding("their median CPU time", text if ratio > SLOWER_MAX else "", text),
    )


def _limits(runs: Sequence[_Run]) -> tuple[Finding, ...]:
    beyond = sorted(
        cpu_s(run.seen) - float(run.case.table.limits["cpu_time_s"]) for run in runs if run.case.id == CPU_BURN
    )
    worst_s = beyond[int(0.95 * (len(beyond) - 1))]
    text = f"{1000 * worst_s:.1f} ms, 95th percentile of {len(beyond)}"
    return (finding("CPU beyond its limit", text if worst_s > BEYOND_LIMIT_MAX_S else "", text),)


def cpu_s(seen: Observation) -> float:
    """CPU time of what was seen."""
    return seen.facts.cpu_time_ns / NANOSECONDS if seen.facts is not None else 0.0


def finding(what: str, wrong: str, right: str) -> Finding:
    """Held with the evidence `right`, where nothing is `wrong`."""
    return Finding(what=what, state=State.BROKEN if wrong else State.HELD, evidence=wrong or right)
