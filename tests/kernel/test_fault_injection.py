"""Every step of a launch fails once: the error names the step, and nothing of the sandbox is left."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from sandboxd.audit.host import waiting_slots
from sandboxd.errors import InternalError
from sandboxd.instance import RUN_ROOT, Instance
from sandboxd.jail import plan, slots, sweeper, syscalls, wire
from sandboxd.jail.admission import Admission
from sandboxd.jail.cgroup_host import open_cgroups
from sandboxd.jail.cgroups import Cgroups
from sandboxd.jail.images import make_host_image
from sandboxd.jail.inputs import pack, received
from sandboxd.jail.plan import BuildInputs
from sandboxd.jail.pool import RETRY_S
from sandboxd.jail.sandbox import Sandbox
from sandboxd.jail.slots import Slots
from sandboxd.jail.steps import Fail
from sandboxd.jail.streams import Stream
from sandboxd.jail.wire import PlannedStep
from sandboxd.jail.workshop import Workshop, remove_tree
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.result import Facts
from sandboxd.spec import InputFile, StageSpec, input_sizes

ERRNO = errno.EXDEV
"""Which no step of ours answers by itself."""
STAGE_LIMIT_S = 20


class FailingWorkshop(Workshop):
    """The real one; a step of the build list, chosen by the test, is replaced by one that fails."""

    fail_at: int | None = None
    name = f"faults-{os.getpid()}"

    def build_list(self, inputs: BuildInputs) -> int:
        if self.fail_at is None:
            return super().build_list(inputs)
        steps = list(plan.build_plan(inputs))
        steps[self.fail_at] = PlannedStep(steps[self.fail_at].phase, Fail(ERRNO))
        # Not kept: a list for each failure. The test's process ends soon.
        return syscalls.sealed_memfd("failing", wire.encode(steps))


class Recorder:
    """Owner of one sandbox; hands it a job and keeps what came of it."""

    def __init__(self, stage: StageSpec) -> None:
        run, contents = pack(stage)
        self.stage, self.inputs = run.stage, received(run, contents)
        self.facts: asyncio.Future[Facts] = asyncio.get_running_loop().create_future()

    def on_admitted(self, sandbox: Sandbox) -> None:
        sandbox.run(self, self.stage, self.inputs)

    def on_output(self, stream: Stream, chunk: bytes) -> None:
        pass

    def on_stdin_taken(self, count: int) -> None:
        pass

    def on_over(self, facts: Facts, files: tuple[InputFile, ...], files_omitted: int) -> None:
        self.facts.set_result(facts)

    def on_failed(self, error: InternalError) -> None:
        self.facts.set_exception(error)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[FailingWorkshop]:
    instance = Instance(name=FailingWorkshop.name, state_root=str(tmp_path))
    RUN_ROOT.mkdir(0o755, exist_ok=True)
    instance.run_dir.mkdir(0o755)
    lock = sweeper.take_lock(instance)  # or the next launcher that starts on this host takes its slots for abandoned
    cgroups: Cgroups = open_cgroups(instance.name)
    sweeper.record(instance, cgroups.parents())
    made_slots = Slots(instance.name)
    made = FailingWorkshop(
        cgroups=cgroups,
        slots=made_slots,
        policies=load_policies(policy_folder()),
        image=make_host_image(instance.run_dir, instance.cache_dir, []),
        policy_folder=policy_folder(),
        cache_dir=instance.cache_dir,
        run_dir=instance.run_dir,
        without=frozenset(),
    )
    yield made
    made.close()
    made_slots.close()
    cgroups.close()
    remove_tree(instance.run_dir)
    os.close(lock)
    assert not any(parent.exists() for parent in cgroups.parents()), "cgroups are left"
    assert instance.name not in slots.claimed().values(), "slots are left"


def children() -> set[str]:
    """`pid name state` of each child of this process, zombies included."""
    found = set()
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        found.add(f"{pid} {name} {rest.split()[0]}")
    return found


async def launch(admission: Admission, stage: StageSpec) -> Facts:
    facts = await launch_beside_others(admission, stage)
    await admission.wait_idle(STAGE_LIMIT_S)
    return facts


async def launch_beside_others(admission: Admission, stage: StageSpec) -> Facts:
    recorder = Recorder(stage)
    admission.check(recorder.stage, recorder.inputs.sizes)
    admission.admit(recorder, recorder.stage)
    return await asyncio.wait_for(recorder.facts, STAGE_LIMIT_S)


def in_loop(workshop: Workshop, test: Callable[[Admission], Awaitable[None]], prepared_max: int = 0) -> None:
    async def main() -> None:
        await test(Admission(workshop, prepared_max=prepared_max))

    before = children()
    asyncio.run(main())
    assert {child for child in children() - before if "sandboxd-init" in child} == set(), "processes are left"


def a_stage(workshop: Workshop) -> StageSpec:
    policy = workshop.policies["default"]
    files = (InputFile(path="folder/file", content=b"content"),)
    return StageSpec(
        name="run", policy="default", image="host", argv=("true",), env={}, limits=policy.defaults, files=files
    )


def test_each_step_of_the_build_list_fails_once_and_is_named(workshop: FailingWorkshop) -> None:
    stage = a_stage(workshop)
    listed = plan.build_plan(workshop.inputs(workshop.policies["default"], 0))

    async def fail_each(admission: Admission) -> None:
        for number, planned in enumerate(listed):
            workshop.fail_at = number
            facts = await launch(admission, stage)
            assert facts.failure is not None, f"step {number}, {planned.step.name}, failed unseen"
            assert (facts.failure.step, facts.failure.errno) == (planned.step.name, ERRNO)
            assert facts.exit_code is None
        workshop.fail_at = None
        assert (await launch(admission, stage)).exit_code == 0, "the next sandbox does not run"

    assert len(listed) > 80
    in_loop(workshop, fail_each)


def test_each_step_of_the_job_list_fails_once_and_is_named(
    workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = a_stage(workshop)
    real_plan = plan.job_plan
    steps = real_plan(stage, input_sizes(stage))
    without_exec = [number for number, planned in enumerate(steps) if planned.phase is not wire.Phase.EXEC]

    async def fail_each(admission: Admission) -> None:
        for number in without_exec:

            def encode(
                planned: tuple[PlannedStep, ...],
                argv: tuple[str, ...] = (),
                env: Iterable[str] = (),
                number: int = number,
            ) -> list[bytes]:
                if not argv:  # the build list of a slot that is used for the first time
                    return real_encode(planned)
                failing = [*planned[:number], PlannedStep(planned[number].phase, Fail(ERRNO)), *planned[number + 1 :]]
                return real_encode(failing, argv, env)

            with monkeypatch.context() as patch:
                patch.setattr(wire, "encode", encode)
                facts = await launch(admission, stage)
            assert facts.failure is not None, f"step {number}, {steps[number].step.name}, failed unseen"
            assert (facts.failure.step, facts.failure.errno) == (steps[number].step.name, ERRNO)
        assert (await launch(admission, stage)).exit_code == 0, "the next sandbox does not run"

    async def warmed(admission: Admission) -> None:
        assert (await launch(admission, stage)).exit_code == 0
        await fail_each(admission)

    real_encode = wire.encode
    assert len(without_exec) == 7, "a folder, a file, five limits"
    in_loop(workshop, warmed)


def test_a_prepared_sandbox_that_cannot_be_built_is_tried_again_later(workshop: FailingWorkshop) -> None:
    async def fail_then_not(admission: Admission) -> None:
        workshop.fail_at = 30
        admission.start()
        await asyncio.sleep(0.5)
        workshop.fail_at = None
        assert (await launch_beside_others(admission, a_stage(workshop))).exit_code == 0, "a cold one is made"
        await asyncio.sleep(1.5 * RETRY_S)
        assert len(waiting_slots(Instance(name=workshop.name))) >= 1
        admission.close()
        await admission.wait_idle(STAGE_LIMIT_S)

    in_loop(workshop, fail_then_not, prepared_max=2)


def test_prepared_sandboxes_give_way_to_jobs_where_there_is_room_for_few(
    workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fill(admission: Admission) -> None:
        admission.start()
        while len(waiting_slots(Instance(name=workshop.name))) < 4:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(admission, "_sandboxes_max", 4)
        stage = msgspec.structs.replace(a_stage(workshop), argv=("sleep", "0.3"))
        jobs = [launch_beside_others(admission, stage) for _ in range(4)]
        assert [facts.exit_code for facts in await asyncio.gather(*jobs)] == [0] * 4
        admission.close()
        await admission.wait_idle(STAGE_LIMIT_S)

    in_loop(workshop, fill, prepared_max=4)
