"""What came of a case: pure, so that each line of the table can be looked at."""

from __future__ import annotations

import enum

from sandboxd.audit.corpus import SUCCEEDED, Case, Severity
from sandboxd.result import Facts, Verdict
from sandboxd.spec import NANOSECONDS, Struct
from sandboxd.verdict import signal_name

_EVIDENCE_MAX = 80


class State(enum.StrEnum):
    """How a run of a case ended."""

    HELD = "held"
    UNPROVEN = "unproven"
    """The control did not show that the attack can work: this kernel refuses everybody, or another wall stood."""
    NOT_DEFENDED = "not defended"
    """It works with that wall alone taken away, and is told so."""
    BROKEN = "BROKEN"
    """The attack worked, or the verdict is untrue."""
    LEFT = "LEFT BEHIND"
    """Something of it stayed on the host."""
    DIFFERS = "DIFFERS"
    """Refused, but not as the case says: somebody should look."""
    FAILED = "FAILED"
    """The sandbox or the program could not be run: nothing is known."""


NO_FINDING = frozenset({State.HELD, State.UNPROVEN, State.NOT_DEFENDED})
"""States that are as they should be, or as is told."""


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
        words = self._words()
        return words[-1] if words else ""

    @property
    def last_words(self) -> str:
        """The answer and what was said just before it: which of many, say."""
        return " ".join(self._words())[-_EVIDENCE_MAX:]

    @property
    def count(self) -> int | None:
        """The number that it said before, if it did."""
        words = self._words()
        return int(words[-2]) if len(words) > 1 and words[-2].isdecimal() else None

    def _words(self) -> list[str]:
        return self.stdout.decode(errors="replace").split()


class Judged(Struct, frozen=True, kw_only=True):
    state: State
    evidence: str


def judge(case: Case, seen: Observation) -> Judged:
    """A run with the walls that the case is about."""
    if failure := _failure(seen):
        return failure
    if seen.answer == SUCCEEDED:
        return Judged(state=State.BROKEN, evidence=seen.last_words)
    untrue = State.BROKEN if case.table.severity is Severity.INTEGRITY else State.DIFFERS
    if seen.facts is not None and (wrong := _wrong(case, seen, seen.facts)):
        return Judged(state=untrue, evidence=wrong)
    if case.table.answers and seen.answer not in case.table.answers:
        return Judged(state=State.DIFFERS, evidence=f"{_said(seen)}, expected {' or '.join(case.table.answers)}")
    if case.table.at_least is not None and (seen.count or 0) < case.table.at_least:
        return Judged(state=State.DIFFERS, evidence=f"made {seen.count}, expected at least {case.table.at_least}")
    if case.table.at_most is not None and (seen.count or 0) > case.table.at_most:
        return Judged(state=State.BROKEN, evidence=f"made {seen.count}, expected at most {case.table.at_most}")
    # Where any word will do, the verdict is what counts.
    evidence = seen.answer if case.table.answers else seen.reason or seen.answer
    return Judged(state=State.HELD, evidence=evidence)


def judge_without(case: Case, layer: str, seen: Observation) -> Judged:
    """A run with a wall taken away: whatever it answers, it must not have worked."""
    if failure := _failure(seen):
        return failure
    if seen.answer == SUCCEEDED:
        told = layer in case.table.open_without
        return Judged(state=State.NOT_DEFENDED if told else State.BROKEN, evidence=_said(seen))
    # Without a word nothing is known of it.
    return Judged(state=State.HELD if seen.answer else State.FAILED, evidence=_said(seen))


def judge_control(case: Case, seen: Observation) -> Judged:
    """A control run is held when the attack works: the case can fail, and it is that wall which stops it."""
    if failure := _failure(seen):
        return failure
    if seen.answer == SUCCEEDED:
        return Judged(state=State.HELD, evidence=_said(seen))
    told = seen.answer in case.table.unproven_answers
    return Judged(state=State.UNPROVEN if told else State.DIFFERS, evidence=_said(seen))


def _failure(seen: Observation) -> Judged | None:
    if seen.verdict is Verdict.INTERNAL_ERROR:
        return Judged(state=State.FAILED, evidence=seen.reason)
    return None


def _said(seen: Observation) -> str:
    said = seen.stderr.decode(errors="replace").strip()
    return seen.answer[:_EVIDENCE_MAX] or seen.reason or said[-_EVIDENCE_MAX:] or "nothing"


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
        ("output", max(facts.stdout_bytes, facts.stderr_bytes), table.output_bytes),
    ):
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            return f"{name} {value:g}, expected {bounds[0]:g} to {bounds[1]:g}"
    most = table.processes_peak_max
    if most is not None and facts.processes_peak is not None and facts.processes_peak > most:
        return f"{facts.processes_peak} processes at once, expected at most {most}"
    return ""
