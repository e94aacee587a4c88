"""What came of a case: pure, so that each line of the table can be looked at."""

from __future__ import annotations

import enum

from sandboxd.audit.corpus import SUCCEEDED, Case, Severity
from sandboxd.result import Facts, Verdict
from sandboxd.spec import NANOSECONDS, Struct
from sandboxd.verdict import signal_name


class State(enum.StrEnum):
    """How a run of a case ended."""

    HELD = "held"
    BROKEN = "BROKEN"
    """The attack worked, or the verdict is untrue."""
    LEFT = "LEFT BEHIND"
    """Something of it stayed on the host."""
    DIFFERS = "DIFFERS"
    """Refused, but not as the case says: somebody should look."""
    FAILED = "FAILED"
    """The sandbox or the program could not be run: nothing is known."""


class Observation(Struct, frozen=True, kw_only=True):
    """What a target saw of a program's run. A target that measures nothing gives no facts."""

    stdout: bytes
    stderr: bytes
    verdict: Verdict | None
    exit_code: int | None
    signal: str | None
    facts: Facts | None
    reason: str = ""

    @property
    def answer(self) -> str:
        """The last word that the program said."""
        words = self.stdout.decode(errors="replace").split()
        return words[-1] if words else ""


class Judged(Struct, frozen=True, kw_only=True):
    state: State
    evidence: str


def judge(case: Case, seen: Observation) -> Judged:
    """A run with the walls that the case is about."""
    if failure := _failure(seen):
        return failure
    if seen.answer == SUCCEEDED:
        return Judged(state=State.BROKEN, evidence=_said(seen))
    untrue = State.BROKEN if case.table.severity is Severity.INTEGRITY else State.DIFFERS
    if seen.facts is not None and (wrong := _wrong(case, seen, seen.facts)):
        return Judged(state=untrue, evidence=wrong)
    if case.table.answers and seen.answer not in case.table.answers:
        return Judged(state=State.DIFFERS, evidence=f"{_said(seen)}, expected {' or '.join(case.table.answers)}")
    return Judged(state=State.HELD, evidence=seen.answer or seen.reason)


def judge_without(seen: Observation) -> Judged:
    """A run with a wall taken away: whatever it answers, it must not have worked."""
    if failure := _failure(seen):
        return failure
    return Judged(state=State.BROKEN if seen.answer == SUCCEEDED else State.HELD, evidence=_said(seen))


def judge_control(case: Case, seen: Observation) -> Judged:
    """A control run is held when the attack works: the case can fail, and it is that wall which stops it."""
    if failure := _failure(seen):
        return failure
    state = State.HELD if seen.answer in case.table.control_answers else State.DIFFERS
    return Judged(state=state, evidence=_said(seen))


def _failure(seen: Observation) -> Judged | None:
    if seen.verdict is Verdict.INTERNAL_ERROR:
        return Judged(state=State.FAILED, evidence=seen.reason)
    return None


def _said(seen: Observation) -> str:
    return seen.answer[:80] or seen.reason or seen.stderr.decode(errors="replace").strip()[-80:] or "nothing"


def _wrong(case: Case, seen: Observation, facts: Facts) -> str:
    """What of verdict and measurements is not as the case says; empty when all is."""
    table = case.table
    if seen.verdict not in table.verdicts:
        words = seen.stderr.decode(errors="replace").strip()[-120:]
        return f"verdict {seen.verdict}, expected {' or '.join(table.verdicts)}; {words or seen.reason}"
    if table.exit_code_is_arg is not None and str(seen.exit_code) != case.args[table.exit_code_is_arg]:
        return f"exit code {seen.exit_code}, expected {case.args[table.exit_code_is_arg]}"
    if table.signal_is_arg is not None and str(facts.signal) != case.args[table.signal_is_arg]:
        return f"signal {facts.signal}, expected {case.args[table.signal_is_arg]}"
    found = None if facts.signal is None else signal_name(facts.signal)
    if table.signal is not None and found != table.signal:
        return f"signal {found}, expected {table.signal}"
    for name, value, bounds in (
        ("CPU time", facts.cpu_time_ns / NANOSECONDS, table.cpu_time_s),
        ("wall time", facts.wall_time_ns / NANOSECONDS, table.wall_time_s),
        ("memory peak", facts.memory_peak_bytes, table.memory_peak_bytes),
    ):
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            return f"{name} {value:g}, expected {bounds[0]:g} to {bounds[1]:g}"
    most = table.processes_peak_max
    if most is not None and facts.processes_peak is not None and facts.processes_peak > most:
        return f"{facts.processes_peak} processes at once, expected at most {most}"
    return ""
