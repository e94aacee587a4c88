"""The audit, as anybody runs it: every case holds, every control works, nothing stays on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from jailrig import SCALE

from sandboxd.audit import corpus, host, suite
from sandboxd.audit.corpus import Case
from sandboxd.audit.judge import NO_FINDING, State
from sandboxd.audit.suite import Report
from sandboxd.audit.target import LauncherTarget
from sandboxd.jail import slots

pytestmark = pytest.mark.root

AUDIT = (sys.executable, "-I", "-m", "sandboxd", "audit")


@pytest.mark.slow
@pytest.mark.timeout(300 * SCALE)
@pytest.mark.parametrize("options", [[], ["--prepared"]], ids=["cold", "prepared"])
def test_everything_holds_and_every_control_works(tmp_path: Path, options: list[str]) -> None:
    """The quick part: every case but the slow ones."""
    page = tmp_path / "audit.md"
    done = subprocess.run(
        [*AUDIT, "--quick", "--json", "--report", page, *options], capture_output=True, check=False, timeout=300 * SCALE
    )
    found = msgspec.json.decode(done.stdout, type=Report)
    wrong = [(row.case, row.walls, row.state, row.evidence) for row in found.rows if row.state not in NO_FINDING]
    assert (wrong, found.changes) == ([], ())
    assert done.returncode == 0
    assert {row.case for row in found.rows} == {case.id for case in corpus.load() if not case.table.slow}
    text = page.read_text()
    assert all(f"`{row.case}`" in text for row in found.rows)
    assert "## What is not defended" in text


def test_most_attacks_work_where_there_is_no_wall() -> None:
    done = subprocess.run(
        [*AUDIT, "--json", "--against", "none", "privileges", "namespaces", "processes"],
        capture_output=True, check=True, timeout=120 * SCALE,
    )  # fmt: skip
    found = msgspec.json.decode(done.stdout, type=Report)
    worked = sum(row.state is State.BROKEN for row in found.rows)
    assert worked > 0.8 * len(found.rows)


@pytest.mark.timeout(300 * SCALE)
def test_among_hostile_jobs_an_honest_one_keeps_its_verdict_and_nothing_is_left() -> None:
    """A short soak. Its figures are those of a busy machine here: what is left and what is untrue are not."""
    done = subprocess.run(
        [*AUDIT, "--quick", "--json", "--soak", "150", "verdicts"],
        capture_output=True,
        check=False,
        timeout=300 * SCALE,
    )
    rows = [row for row in msgspec.json.decode(done.stdout, type=Report).rows if row.topic == "soak"]
    found = {row.case: row.state for row in rows if row.case not in ("their median CPU time", "CPU beyond its limit")}
    assert len(rows) == 6
    assert len(found) == 4
    assert set(found.values()) == {State.HELD}, rows


def test_a_word_that_names_no_case_is_a_usage_error() -> None:
    done = subprocess.run([*AUDIT, "no such case"], capture_output=True, text=True, check=False, timeout=60 * SCALE)
    assert done.returncode == 2
    assert "no case has one of" in done.stderr


def test_an_attack_that_works_is_not_green() -> None:
    """Control of the audit itself: a program of which it is said that it must not work, and which does."""
    case = case_of("unknown number=600")
    assert suite.audit([case], quick=True).is_green
    works = msgspec.structs.replace(case, args=("number=39",))
    found = suite.audit([works], quick=True)
    assert not found.is_green
    assert [row.state for row in found.rows if row.walls == suite.ALL_WALLS] == [State.BROKEN]


@pytest.fixture(scope="module")
def target(state_root: Path) -> Iterator[LauncherTarget]:
    with LauncherTarget(9, state_root) as target:
        yield target


def case_of(name: str) -> Case:
    return next(case for case in corpus.load() if case.id == name)


def test_what_a_job_leaves_is_noticed(target: LauncherTarget) -> None:
    """Control of the post-conditions: something of each kind, made by hand."""
    before = host.job_traces(target)
    assert host.left_behind(target, before) == ""
    left = Path("/dev/shm/left-by-a-test")
    left.touch()
    assert host.left_behind(target, before) == "", "what others make is not looked at"
    os.chown(left, slots.FIRST_ID + 7, 0)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host, "SETTLE_S", 0.1)
            assert "left-by-a-test" in host.left_behind(target, before)
    finally:
        left.unlink()


def test_what_all_jobs_change_is_noticed(target: LauncherTarget) -> None:
    before = host.host_state(target)
    assert host.changes(before, before) == []
    changed = msgspec.structs.replace(
        before,
        sysctls={**before.sysctls, "kernel/hostname": "changed"},
        image_digests={"host": "another"},
        launcher_resident_bytes=before.launcher_resident_bytes + (17 << 20),
    )
    assert len(host.changes(before, changed)) == 3


def test_the_kernels_log_is_counted() -> None:
    log = host.KernelLog()
    assert log.new_lines() == 0
    Path("/dev/kmsg").write_text("a line of sandboxd's tests\n")
    assert log.new_lines() >= 1
    assert log.new_lines() == 0
    log.close()


def test_a_run_without_walls_differs_in_what_it_says(state_root: Path, target: LauncherTarget) -> None:
    case = case_of("identity filter")
    assert target.observe(case, case.args).answer == "held"
    with LauncherTarget(8, state_root, without=("seccomp",)) as open_target:
        assert open_target.observe(case, case.args).answer == "succeeded"
    assert suite.plan([case], quick=True)[0].walls == "all walls"
