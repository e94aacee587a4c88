"""The audit's own judgement: pure, and told row by row. A corpus that is written wrongly is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from sandboxd.audit import corpus, report, suite
from sandboxd.audit.corpus import Case, Severity, Table
from sandboxd.audit.judge import Observation, State, judge, judge_control, judge_without
from sandboxd.errors import InputError
from sandboxd.result import Ending, Verdict, no_facts

FACTS = no_facts(None, Ending.NONE)
TABLE = Table(
    name="new",
    severity=Severity.ESCAPE,
    source="a page",
    program="attempts",
    answers=("EPERM", "ENOSYS"),
    control=("seccomp",),
)


def case(**changes: object) -> Case:
    table = msgspec.structs.replace(TABLE, **changes)
    return Case(id="new unshare=1", topic="namespaces", args=("unshare=1",), table=table)


def seen(stdout: str, verdict: Verdict | None = Verdict.OK, **facts: object) -> Observation:
    return Observation(
        stdout=stdout.encode(),
        stderr=b"",
        verdict=verdict,
        exit_code=0,
        signal=None,
        facts=msgspec.structs.replace(FACTS, **facts),
        reason="a reason",
    )


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("unshare=1 EPERM\n", State.HELD),
        ("unshare=1 ENOSYS\n", State.HELD),
        ("unshare=1 succeeded\n", State.BROKEN),
        ("unshare=1 EINVAL\n", State.DIFFERS),
        ("", State.DIFFERS),
    ],
)
def test_with_all_walls_the_answer_decides(said: str, state: State) -> None:
    assert judge(case(), seen(said)).state is state


def test_our_own_failure_is_no_wall() -> None:
    failed = seen("", Verdict.INTERNAL_ERROR)
    assert judge(case(), failed).state is State.FAILED
    assert judge_without(case(), "userns", failed).state is State.FAILED
    assert judge_control(case(), failed).state is State.FAILED


@pytest.mark.parametrize("said", ["EPERM", "EINVAL"])
def test_with_a_wall_off_anything_but_success_holds(said: str) -> None:
    assert judge_without(case(), "userns", seen(said)).state is State.HELD
    assert judge_without(case(), "userns", seen("succeeded")).state is State.BROKEN


def test_a_program_that_says_nothing_proves_nothing() -> None:
    assert judge_without(case(), "userns", seen("")).state is State.FAILED


def test_a_control_has_to_work() -> None:
    assert judge_control(case(), seen("succeeded")).state is State.HELD
    assert judge_control(case(), seen("EPERM")).state is State.DIFFERS
    assert judge_control(case(unproven_answers=("EPERM",)), seen("EPERM")).state is State.UNPROVEN


def test_what_is_told_as_open_is_so_with_that_wall_off_alone() -> None:
    told = case(open_without=("mount",))
    assert judge_without(told, "mount", seen("succeeded")).state is State.NOT_DEFENDED
    assert judge_without(told, "mount", seen("EPERM")).state is State.HELD
    assert judge_without(told, "userns", seen("succeeded")).state is State.BROKEN
    assert judge(told, seen("succeeded")).state is State.BROKEN


def test_a_flood_that_made_too_few_was_none() -> None:
    flood = case(at_least=100, answers=("EAGAIN",))
    assert judge(flood, seen("100 EAGAIN")).state is State.HELD
    for said in ("99 EAGAIN", "EAGAIN", "many EAGAIN"):
        assert judge(flood, seen(said)).state is State.DIFFERS


def test_an_untrue_verdict_is_broken_where_the_case_is_about_it() -> None:
    wrong = seen("EPERM", Verdict.RUNTIME_ERROR)
    assert judge(case(), wrong).state is State.DIFFERS
    assert judge(case(severity=Severity.INTEGRITY), wrong).state is State.BROKEN


@pytest.mark.parametrize(
    ("expected", "facts", "words"),
    [
        ({"cpu_time_s": (0.5, 0.7)}, {"cpu_time_ns": 800_000_000}, "CPU time 0.8"),
        ({"wall_time_s": (0.5, 0.7)}, {"wall_time_ns": 400_000_000}, "wall time 0.4"),
        ({"memory_peak_bytes": (0, 1000)}, {"memory_peak_bytes": 1001}, "memory peak"),
        ({"processes_peak_max": 16}, {"processes_peak": 17}, "17 processes"),
        ({"signal": "SIGKILL"}, {"signal": 15}, "SIGTERM"),
    ],
)
def test_a_measurement_out_of_its_range_is_told(
    expected: Mapping[str, object], facts: Mapping[str, object], words: str
) -> None:
    judged = judge(case(**expected), seen("EPERM", **facts))
    assert judged.state is State.DIFFERS
    assert words in judged.evidence


def test_a_target_that_measures_nothing_is_judged_by_what_the_program_says() -> None:
    bare = msgspec.structs.replace(seen("EPERM", None), facts=None)
    assert judge(case(cpu_time_s=(0.5, 0.7)), bare).state is State.HELD


def test_the_shipped_cases_are_read_and_each_can_fail_or_says_why_not() -> None:
    cases = corpus.load()
    assert len(cases) > 300
    assert len({each.id for each in cases}) == len(cases)
    uncontrolled = [each for each in cases if each.table.uncontrolled]
    assert all(len(each.table.uncontrolled) > 15 for each in uncontrolled)
    assert {each.table.severity for each in cases} >= set(Severity) - {Severity.PEER_DENIAL}
    used = {name for each in cases for name in (each.table.program, *each.table.files)}
    assert used | {"honest.py"} == {
        path.name for path in corpus.PROGRAMS.iterdir() if path.suffix != ".c" and path.is_file()
    }


def test_every_case_is_run_with_all_walls_and_every_grave_one_with_each_wall_off() -> None:
    cases = corpus.load()
    runs = suite.plan(cases, quick=False)
    assert [run for run in runs if run.kind == suite.ALL_WALLS].__len__() == len(cases)
    grave = [each for each in cases if each.table.severity in corpus.GRAVE and each.table.depth]
    depth = [run for run in runs if run.kind == suite.DEPTH]
    also = sum(len(each.table.also_without) for each in cases if each not in grave)
    assert len(depth) == 7 * len(grave) + also
    assert also > 0
    assert {run.without for run in depth} == {(layer,) for layer in suite.LAYERS}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('program = "none-such"', "there is no program"),
        ('files = ["none-such"]', "there is no program"),
        ('control = ["walls"]', "unknown layers: walls"),
        ("control = []", "exactly one of"),
        ('answers = ["succeeded"]', "no answer of an attack that fails"),
        ('severity = "dreadful"', "severity"),
        ("colour = 1", "colour"),
    ],
)
def test_a_case_that_is_written_wrongly_is_refused_by_name(tmp_path: Path, change: str, words: str) -> None:
    lines = {
        "name": '"mine"', "severity": '"escape"', "source": '"x"', "program": '"attempts"', "control": '["seccomp"]',
    }  # fmt: skip
    key, _, value = change.partition(" = ")
    lines[key] = value
    text = "[[case]]\n" + "\n".join(f"{name} = {value}" for name, value in lines.items())
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        corpus.load(tmp_path)
    assert "mine" in str(caught.value)
    assert words in str(caught.value)


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    table = '[[case]]\nname = "a"\nseverity = "escape"\nsource = "x"\nprogram = "attempts"\ncontrol = ["caps"]\n'
    (tmp_path / "mine.toml").write_text(table * 2)
    with pytest.raises(InputError, match="two cases"):
        corpus.load(tmp_path)


def test_what_a_program_said_cannot_change_the_page() -> None:
    row = suite.Row(
        case="a", topic="t", severity="escape", source="s", walls=suite.ALL_WALLS, state=State.DIFFERS,
        evidence="| \x1b[2J\n| forged | row |",
    )  # fmt: skip
    found = suite.Report(
        version="1", against="sandboxd", quick=True, prepared=False, date="2026-01-01", kernel="k", machine="m",
        cpu="c", cgroup="g", isolation={}, rows=(row,), changes=(), seconds=1.0,
    )  # fmt: skip
    page = report.markdown(found)
    assert "\x1b" not in page
    assert "\n| forged" not in page
    assert not found.is_green
