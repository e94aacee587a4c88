"""Every step of a launch fails once: the error names the step, and nothing of the sandbox is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from faultrig import (
    ERRNO,
    STAGE_LIMIT_S,
    FailingWorkshop,
    a_stage,
    failing_job_step,
    in_loop,
    launch,
    launch_beside_others,
)

from sandboxd.audit.host import waiting_slots
from sandboxd.instance import Instance
from sandboxd.jail import plan, sandbox, syscalls, wire
from sandboxd.jail.admission import Admission
from sandboxd.jail.collect import Collected, collect
from sandboxd.jail.pool import RETRY_S
from sandboxd.spec import input_sizes


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


def test_each_step_of_the_job_list_fails_once_and_is_named(workshop: FailingWorkshop) -> None:
    stage = a_stage(workshop)
    steps = plan.job_plan(stage, input_sizes(stage))
    without_exec = [number for number, planned in enumerate(steps) if planned.phase is not wire.Phase.EXEC]

    async def fail_each(admission: Admission) -> None:
        for number in without_exec:
            with failing_job_step(number):
                facts = await launch(admission, stage)
            assert facts.failure is not None, f"step {number}, {steps[number].step.name}, failed unseen"
            assert (facts.failure.step, facts.failure.errno) == (steps[number].step.name, ERRNO)
        assert (await launch(admission, stage)).exit_code == 0, "the next sandbox does not run"

    async def warmed(admission: Admission) -> None:
        assert (await launch(admission, stage)).exit_code == 0
        await fail_each(admission)

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


@pytest.mark.parametrize(("command", "elsewhere"), [("sleep 60 & exit 0", True), ("exit 0", False)])
def test_a_write_layer_is_freed_where_nobody_waits_for_it(
    workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch, command: str, elsewhere: bool
) -> None:
    """A hundred thousand files take half a second. Where PID 1 lives on, its end frees them."""
    close, closed_in = os.close, []

    def watched(fd: int) -> None:
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(os.fstat(fd).st_mode) and "sandboxd-test-mark" in os.listdir(f"/proc/self/fd/{fd}/box"):
                closed_in.append(threading.current_thread() is threading.main_thread())
        close(fd)

    stage = msgspec.structs.replace(a_stage(workshop), argv=("sh", "-c", f"touch sandboxd-test-mark; {command}"))

    async def run(admission: Admission) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "close", watched)
            assert (await launch(admission, stage)).exit_code == 0
            while not closed_in:
                await asyncio.sleep(0.01)

    in_loop(workshop, run)
    assert closed_in == [not elsewhere]


def test_files_are_taken_out_beside_everything_else(workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes, also where PID 1 does not wait for it."""
    taking, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Collected:
        taking.set()
        assert go_on.wait(STAGE_LIMIT_S)
        return collect(*arguments)

    monkeypatch.setattr(sandbox, "collect", slow)
    leaves = msgspec.structs.replace(a_stage(workshop), argv=("sh", "-c", "sleep 60 & exit 0"), collect=("folder/*",))

    async def run(admission: Admission) -> None:
        first = asyncio.ensure_future(launch_beside_others(admission, leaves))
        while not taking.is_set():
            await asyncio.sleep(0.001)
        assert (await launch_beside_others(admission, a_stage(workshop))).exit_code == 0
        assert not first.done()
        go_on.set()
        assert (await first).exit_code == 0
        assert await admission.wait_idle(STAGE_LIMIT_S) == 0

    in_loop(workshop, run)


def test_files_that_cannot_be_taken_out_are_our_failure(
    workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is free, say: what a stage leaves counts as omitted only where that is the program's doing."""
    openat2 = syscalls.openat2

    def fail(dir_fd: int, path: str | bytes, *arguments: int) -> int:
        if path == "file":
            raise OSError(errno.EMFILE, "Too many open files")
        return openat2(dir_fd, path, *arguments)

    monkeypatch.setattr(syscalls, "openat2", fail)

    async def run(admission: Admission) -> None:
        facts = await launch(admission, msgspec.structs.replace(a_stage(workshop), collect=("folder/*",)))
        assert facts.failure is not None
        assert (facts.failure.step, facts.failure.errno) == ("Measure", errno.EMFILE)

    in_loop(workshop, run)


def test_where_no_thread_can_take_files_out_the_failure_is_told_and_nothing_is_left(workshop: FailingWorkshop) -> None:
    async def run(admission: Admission) -> None:
        threads = ThreadPoolExecutor(1)
        threads.shutdown()
        asyncio.get_running_loop().set_default_executor(threads)
        for command in ("exit 0", "sleep 60 & exit 0"):
            leaves = msgspec.structs.replace(a_stage(workshop), argv=("sh", "-c", command), collect=("folder/*",))
            facts = await launch(admission, leaves)
            assert facts.failure is not None
            assert facts.failure.step == "Measure"

    in_loop(workshop, run)
