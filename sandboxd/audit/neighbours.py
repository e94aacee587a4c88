"""An honest job beside each kind of noise, and many jobs at their memory limit at once.

Beside a storm an honest job must keep its verdict, and use no more CPU time than beside a neighbour that merely
computes: what a shared cache or a hypervisor takes is in both. Jobs that all run into their memory limit together must
each be told so, while the launcher serves on and the host's own OOM killer stays away.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from sandboxd.audit import host
from sandboxd.audit.corpus import Case, Severity, Table
from sandboxd.audit.judge import State
from sandboxd.audit.soak import HONEST, SLOWER_MAX, Finding, cpu_s, finding
from sandboxd.audit.target import LauncherTarget, Routed
from sandboxd.errors import LauncherUnavailable
from sandboxd.result import Verdict
from sandboxd.spec import MIB, NANOSECONDS

QUIET = "spin"
STORMS = ("sync", "fsync", "memcpy", "membarrier", "mappings", "futex", "churn", "unix-gc")
STORM_S = 3.5
HONEST_RUNS = 7
TRIES = 3
"""A storm is called noisy when it is so each time: a shared machine is so now and then."""
EATERS_PER_CORE = 16
EATER_BYTES = 128 * MIB
STEPS = len(STORMS) + 1
Observed = tuple[Verdict | None, float]
"""A job's verdict and CPU time in seconds."""


def neighbours(state_root: Path, routed: Routed, on_step: Callable[[], None], *, prepared: bool) -> tuple[Finding, ...]:
    """Calls `on_step` after each of STEPS. Raises LauncherUnavailable."""
    with LauncherTarget(98, state_root, routed=routed, prepared=prepared) as target:
        target.warm_up([HONEST, _storm(QUIET)])
        found: list[Finding] = []
        for kind in STORMS:
            found.append(_beside(target, kind))
            on_step()
        found += _eaters(target)
        on_step()
        return tuple(found)


def _storm(kind: str) -> Case:
    """For about as long as the honest jobs beside it take: its wall limit ends it."""
    table = Table(
        name="storm",
        severity=Severity.PEER_DENIAL,
        source="what disturbs others without taking more than its share",
        program="storm",
        limits={"cpu_time_s": 10, "wall_time_s": STORM_S, "disk_bytes": 16 * MIB, "memory_bytes": 128 * MIB},
        uncontrolled="the neighbour that merely computes is the control",
    )
    return Case(id=f"storm {kind}", topic="neighbours", args=(kind,), table=table)


def _beside(target: LauncherTarget, kind: str) -> Finding:
    for _ in range(TRIES):
        quiet, noisy = _honest_beside(target, QUIET), _honest_beside(target, kind)
        found = compared(kind, quiet, noisy)
        if found.state is State.HELD:
            break
    return found


def compared(kind: str, quiet: Sequence[Observed], noisy: Sequence[Observed]) -> Finding:
    """Verdicts and CPU times of honest jobs beside a storm against those beside a neighbour that computes."""
    lost = sum(verdict is not Verdict.OK for verdict, _ in noisy)
    ratio = statistics.median(used for _, used in noisy) / statistics.median(used for _, used in quiet)
    told = f"{ratio:.3f} times the CPU time beside one that computes"
    wrong = f"{lost} verdicts lost" if lost else told if ratio > SLOWER_MAX else ""
    return finding(f"an honest job beside a storm of {kind}", wrong, told)


def _honest_beside(target: LauncherTarget, kind: str) -> list[Observed]:
    """Verdict and CPU time of some honest jobs, while `kind` goes on for longer than they take."""
    with target.another_client() as other, ThreadPoolExecutor(1) as thread:
        storm = _storm(kind)
        beside = thread.submit(other.observe, storm, storm.args)
        seen = [target.observe(HONEST, ())]
        while not beside.done() and len(seen) < HONEST_RUNS:
            seen.append(target.observe(HONEST, ()))
        ended = beside.result()
    if (
        ended.verdict is not Verdict.WALL_TIME_EXCEEDED
        or ended.facts is None
        or ended.facts.wall_time_ns < STORM_S * NANOSECONDS
    ):
        raise LauncherUnavailable(f"the storm of {kind} was none: {ended.reason} {ended.stderr.decode()[-200:]}")
    return [(each.verdict if each.answer == "held" else None, cpu_s(each)) for each in seen]


def _eaters(target: LauncherTarget) -> tuple[Finding, ...]:
    eater = msgspec.structs.replace(_storm(QUIET), id="eater", args=("memory",))
    limits = {"memory_bytes": EATER_BYTES, "cpu_time_s": 10, "wall_time_s": 60}
    eater = msgspec.structs.replace(eater, table=msgspec.structs.replace(eater.table, limits=limits))
    count = EATERS_PER_CORE * (os.cpu_count() or 1)

    def eat(_number: int) -> Verdict | None:
        with target.another_client() as own:
            return own.observe(eater, eater.args).verdict

    with contextlib.closing(host.KernelLog()) as log, ThreadPoolExecutor(count) as threads:
        verdicts = list(threads.map(eat, range(count)))
        spared = not any(host.GLOBAL_OOM in line for line in log.new_lines())
    wrong = sum(verdict is not Verdict.MEMORY_EXCEEDED for verdict in verdicts)
    served = target.observe(HONEST, ()).answer == "held" and target.process.poll() is None
    return (
        finding(f"{count} jobs at their memory limit", f"{wrong} were told something else" if wrong else "", "told so"),
        finding("the launcher afterwards", "" if served else "serves nobody", "serves on"),
        finding("the host's own memory", "" if spared else "ran out: its OOM killer struck", "did not run out"),
    )
