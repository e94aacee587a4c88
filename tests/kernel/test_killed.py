"""SIGKILL in every phase: of what builds a sandbox, of what holds it, of the program's process, of the launcher."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from faultrig import (
    STAGE_LIMIT_S,
    FailingWorkshop,
    a_stage,
    failing_job_step,
    in_loop,
    launch,
    launch_beside_others,
)
from jailrig import SCALE, LauncherUnderTest
from rig import wait_until

from sandboxd.audit.host import job_traces, left_behind, waiting_slots
from sandboxd.errors import LauncherUnavailable
from sandboxd.instance import Instance
from sandboxd.jail import plan, sandbox, wire
from sandboxd.jail.admission import Admission
from sandboxd.jail.inputs import Inputs
from sandboxd.jail.reports import Report, ReportKind
from sandboxd.jail.sandbox import Owner, Sandbox, State
from sandboxd.jail.sweeper import RECORD
from sandboxd.result import Ending, Facts, Verdict
from sandboxd.spec import StageSpec, input_sizes
from sandboxd.verdict import Judgement, decide

MOMENTS = int(os.environ.get("KILL_MOMENTS", "16"))
"""At which a launcher is killed, spread over the time that a short job takes."""
JOB_S = 0.012
DIES = 0
"""The `errno` of a step at which its process dies."""


def judged(workshop: FailingWorkshop, facts: Facts) -> Judgement:
    return decide(facts, workshop.policies["default"].defaults)


def shell(workshop: FailingWorkshop, command: str) -> StageSpec:
    return msgspec.structs.replace(a_stage(workshop), argv=("sh", "-c", command))


# At each step, by the process that executes it


def test_the_death_of_a_process_at_any_step_of_the_build_list_is_our_fault_and_named(
    workshop: FailingWorkshop,
) -> None:
    """Outer, PID 1 and the payload's. What the others then cannot do may be told first."""
    listed = plan.build_plan(workshop.inputs(workshop.policies["default"], 0))
    named = {"Spawn", "Build"} | {planned.step.name for planned in listed if planned.phase is wire.Phase.OUTER}
    workshop.fault = DIES

    async def die_at_each(admission: Admission) -> None:
        for number, planned in enumerate(listed):
            workshop.fail_at = number
            facts = await launch(admission, a_stage(workshop))
            at = f"step {number}, {planned.step.name}: {facts}"
            assert judged(workshop, facts).verdict is Verdict.INTERNAL_ERROR, at
            assert facts.failure is not None, at
            assert facts.failure.step in named, at
            assert facts.exit_code is None, at
        workshop.fail_at = None
        assert (await launch(admission, a_stage(workshop))).exit_code == 0, "the next sandbox does not run"

    assert {planned.phase for planned in listed} == set(wire.Phase) - {wire.Phase.JOB, wire.Phase.EXEC}
    in_loop(workshop, die_at_each)


def test_the_death_of_the_payloads_process_before_its_program_is_never_the_programs(workshop: FailingWorkshop) -> None:
    stage = a_stage(workshop)
    steps = plan.job_plan(stage, input_sizes(stage))

    async def die_at_each(admission: Admission) -> None:
        for number, planned in enumerate(steps):
            if planned.phase is wire.Phase.JOB:
                with failing_job_step(number, DIES):
                    facts = await launch(admission, stage)
                at = f"step {number}, {planned.step.name}: {facts}"
                assert judged(workshop, facts).verdict is Verdict.INTERNAL_ERROR, at
                assert facts.failure is not None, at
                assert facts.failure.step == "Start", at
        assert (await launch(admission, stage)).exit_code == 0, "the next sandbox does not run"

    in_loop(workshop, die_at_each)


# From outside, at each message and in each state


def send(live: Sandbox, victim: str, number: signal.Signals = signal.SIGKILL) -> None:
    pidfd = {"outer": live._outer_fd, "init": live._pidfd}.get(victim, -1)
    if pidfd >= 0:
        signal.pidfd_send_signal(pidfd, number)
    elif victim == "payload":
        (init,) = re.findall(r"^Pid:\t(\d+)$", Path(f"/proc/self/fdinfo/{live._pidfd}").read_text(), re.MULTILINE)
        pids = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        if pids:  # it may have ended by itself
            os.kill(int(pids[0]), number)


def disturbed(
    workshop: FailingWorkshop,
    stage: StageSpec,
    moment: ReportKind,
    disturb: Callable[[Sandbox], None],
    *,
    before: bool = False,
) -> Facts:
    """What is recorded of a job whose sandbox was disturbed right when the launcher heard of `moment`; `before`: before
    it did anything about it."""
    found: list[Facts] = []
    heard = Sandbox._on_report

    def on_report(live: Sandbox, report: Report) -> None:
        if not before:
            heard(live, report)
        if report.kind is moment:
            disturb(live)
        if before:
            heard(live, report)

    async def run(admission: Admission) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sandbox, "_on_report", on_report)
            found.append(await launch(admission, stage))
        assert (await launch(admission, a_stage(workshop))).exit_code == 0, "the next sandbox does not run"

    in_loop(workshop, run)
    return found[0]


MOMENTS_OF = [
    ("outer", ReportKind.OUTER),
    ("outer", ReportKind.PIDFD),
    ("init", ReportKind.PIDFD),
    ("init", ReportKind.TREE),
    ("init", ReportKind.READY),
    ("init", ReportKind.HELD),
    ("init", ReportKind.STARTED),
    ("payload", ReportKind.READY),
    ("payload", ReportKind.HELD),
    ("payload", ReportKind.STARTED),
]


@pytest.mark.parametrize(("victim", "moment"), MOMENTS_OF)
def test_a_sandbox_that_loses_a_process_of_ours_says_so_and_leaves_nothing(
    workshop: FailingWorkshop, victim: str, moment: ReportKind
) -> None:
    facts = disturbed(workshop, shell(workshop, "sleep 0.1"), moment, lambda live: send(live, victim))
    if facts.exit_code == 0:
        assert victim == "outer", "it had done its work already"
    elif victim == "payload" and facts.cpu_time_ns:
        assert judged(workshop, facts).signal == "SIGKILL", "its program ran, and was killed"
    else:
        assert judged(workshop, facts).verdict is Verdict.INTERNAL_ERROR
        assert facts.exit_code is None
        assert facts.failure is not None or (facts.init_died and facts.cpu_time_ns), "named, unless the program ran"


@pytest.mark.parametrize(
    ("victim", "moment"),
    [("outer", ReportKind.OUTER), ("init", ReportKind.PIDFD), ("init", ReportKind.TREE), ("payload", ReportKind.READY)],
)
def test_a_process_of_ours_that_stands_still_costs_a_deadline(
    workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch, victim: str, moment: ReportKind
) -> None:
    monkeypatch.setattr(sandbox, "BUILD_DEADLINE_S", 0.3 * SCALE)
    monkeypatch.setattr(sandbox, "KILL_RETRY_S", 0.1)
    facts = disturbed(
        workshop,
        shell(workshop, "exit 0"),
        moment,
        lambda live: send(live, victim, signal.SIGSTOP),
        before=moment in (ReportKind.TREE, ReportKind.READY),  # else it may have its job already, and be done
    )
    if facts.exit_code == 0:
        assert victim == "outer", "it had done its work already"
    elif facts.ending is Ending.WALL_TIME:
        assert victim == "init", "it had held already, and could not tell of the program's end"
    else:
        assert facts.failure is not None
        assert (facts.failure.step, facts.failure.errno) in {("Build", errno.ETIMEDOUT), ("Start", errno.ETIMEDOUT)}


@pytest.mark.parametrize(
    ("command", "state", "verdict"),
    [
        ("exit 0", State.OVER, Verdict.OK),
        ("exit 3", State.OVER, Verdict.RUNTIME_ERROR),
        ("kill -SEGV $$", State.OVER, Verdict.SIGNALLED),
        ("sleep 60 & exit 3", State.ENDING, Verdict.RUNTIME_ERROR),
    ],
)
def test_init_that_is_killed_when_the_programs_end_was_told_changes_no_verdict(
    workshop: FailingWorkshop, command: str, state: State, verdict: Verdict
) -> None:
    states: list[State] = []

    def kill(live: Sandbox) -> None:
        states.append(live.state)
        send(live, "init")

    facts = disturbed(workshop, shell(workshop, command), ReportKind.ENDED, kill)
    assert states == [state]
    assert judged(workshop, facts).verdict is verdict
    assert facts.failure is None


def test_a_job_whose_prepared_sandbox_died_unseen_fails_with_the_step(
    workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PID 1 and the payload's process die right when a job takes them, before the launcher can know."""
    run = Sandbox.run
    taken: list[State] = []

    def kill_and_run(live: Sandbox, owner: Owner, stage: StageSpec, inputs: Inputs) -> None:
        taken.append(live.state)
        send(live, "init")
        assert select.select([live._pidfd], [], [], STAGE_LIMIT_S)[0], "it does not die"
        run(live, owner, stage, inputs)

    async def take(admission: Admission) -> None:
        admission.start()
        while len(waiting_slots(Instance(name=workshop.name))) < len(workshop.policies):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the last report is to be heard, too
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "run", kill_and_run)
            facts = await launch_beside_others(admission, a_stage(workshop))
        assert judged(workshop, facts).verdict is Verdict.INTERNAL_ERROR
        assert facts.failure is not None
        assert (facts.failure.step, facts.failure.errno) == ("Give", errno.EPIPE)
        assert (await launch_beside_others(admission, a_stage(workshop))).exit_code == 0
        admission.close()
        assert await admission.wait_idle(STAGE_LIMIT_S) == 0

    in_loop(workshop, take, prepared_max=len(workshop.policies))
    assert taken == [State.READY]


# The launcher


@pytest.fixture
def killed_launcher(state_root: Path) -> Iterator[LauncherUnderTest]:
    under_test = LauncherUnderTest(state_root, f"killed-{os.getpid()}")
    yield under_test
    under_test.stop()
    under_test.await_all_gone()


def processes(launcher: LauncherUnderTest) -> set[int]:
    """All in the instance's v2 cgroups: the launcher, its spawner, outer, and those of sandboxes, waiting or not."""
    parent = Path(msgspec.json.decode((launcher.instance.run_dir / RECORD).read_bytes(), type=list[str])[0])
    return {int(pid) for path in parent.rglob("cgroup.procs") for pid in path.read_text().split()}


@pytest.mark.timeout(120 * SCALE)
def test_a_launcher_killed_at_any_moment_of_a_job_leaves_what_the_next_one_sweeps(
    killed_launcher: LauncherUnderTest,
) -> None:
    launcher, endings = killed_launcher, []
    before = job_traces(launcher)
    for moment in range(MOMENTS):
        stage = launcher.stage(("sh", "-c", "echo on; sleep 0.003"), files={"a": "b"})
        ended: list[str] = []

        def run(stage: StageSpec = stage, ended: list[str] = ended) -> None:
            try:
                ended.append(launcher.run_stage(stage).verdict)
            except LauncherUnavailable:
                ended.append("LauncherUnavailable")

        client = threading.Thread(target=run)
        client.start()
        time.sleep(moment * JOB_S / MOMENTS)
        launcher.kill()
        client.join(20 * SCALE)
        assert ended, f"the client still waits, {moment} of {MOMENTS}"
        endings += ended
        wait_until(lambda: not processes(launcher), 5 * SCALE)  # of themselves: nobody has swept yet
        launcher.prepared = 4 * (moment % 2)  # the next job's sandbox is built for it, or was built before
        launcher.start()
        wait_until(lambda: len(waiting_slots(launcher.instance)) >= launcher.prepared, 10 * SCALE)
        assert not left_behind(launcher, before), f"{moment} of {MOMENTS}"
        assert launcher.run(("true",)).verdict == "ok"
    assert set(endings) <= {"ok", "LauncherUnavailable"}
    assert "LauncherUnavailable" in endings
