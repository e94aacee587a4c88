"""A launcher's inside in the test's own process, so that a step, or a process of a sandbox, can be made to fail."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from sandboxd.audit.host import open_files
from sandboxd.errors import InternalError
from sandboxd.instance import Instance
from sandboxd.jail import plan, syscalls, wire
from sandboxd.jail.admission import Admission
from sandboxd.jail.collect import Collected
from sandboxd.jail.inputs import Outbox, received
from sandboxd.jail.plan import BuildInputs
from sandboxd.jail.sandbox import Sandbox
from sandboxd.jail.steps import Fail
from sandboxd.jail.streams import Stream
from sandboxd.jail.wire import PlannedStep
from sandboxd.jail.workshop import Workshop
from sandboxd.result import Facts
from sandboxd.spec import InputFile, StageSpec

ERRNO = errno.EXDEV
"""Which no step of ours answers by itself."""
STAGE_LIMIT_S = 20


class FailingWorkshop(Workshop):
    """The real one; a step of the build list, chosen by the test, is replaced by one that fails with `fault`."""

    fail_at: int | None = None
    fault = ERRNO
    name = f"faults-{os.getpid()}"

    def build_list(self, inputs: BuildInputs) -> int:
        if self.fail_at is None:
            return super().build_list(inputs)
        steps = list(plan.build_plan(inputs))
        steps[self.fail_at] = PlannedStep(steps[self.fail_at].phase, Fail(self.fault))
        # Not kept, and named as those that are: a list for each failure. The test's process ends soon.
        return syscalls.sealed_memfd("sandboxd-build", wire.encode(steps))


@contextlib.contextmanager
def failing_job_step(number: int, fault: int = ERRNO) -> Iterator[None]:
    """This step of every job's list fails with `fault`."""
    encode = wire.encode

    def failing(planned: Sequence[PlannedStep], argv: Sequence[str] = (), env: Iterable[str] = ()) -> list[bytes]:
        steps = list(planned)
        if argv:  # else it is the build list of a slot that is used for the first time
            steps[number] = PlannedStep(steps[number].phase, Fail(fault))
        return encode(steps, argv, env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "encode", failing)
        yield


class Recorder:
    """Owner of one sandbox; hands it a job and keeps what came of it."""

    def __init__(self, stage: StageSpec) -> None:
        with contextlib.closing(Outbox()) as outbox, outbox.packed(stage) as (run, contents):
            self.stage, self.inputs = run.stage, received(run, None if contents is None else os.dup(contents))
        self.facts: asyncio.Future[Facts] = asyncio.get_running_loop().create_future()

    def on_admitted(self, sandbox: Sandbox) -> None:
        sandbox.run(self, self.stage, self.inputs)

    def on_output(self, stream: Stream, chunk: bytes) -> None:
        pass

    def on_stdin_taken(self, count: int) -> None:
        pass

    def on_over(self, facts: Facts, collected: Collected) -> None:
        collected.close()
        self.facts.set_result(facts)

    def on_failed(self, error: InternalError) -> None:
        self.facts.set_exception(error)


def inits() -> set[str]:
    """Pids of this process's children that execute init, zombies included."""
    found = set()
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "sandboxd-init":
                found.add(pid)
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


def in_loop(workshop: FailingWorkshop, test: Callable[[Admission], Awaitable[None]], prepared_max: int = 0) -> None:
    async def main() -> None:
        await test(Admission(workshop, prepared_max=prepared_max))

    before, files = inits(), open_files(Instance(name=workshop.name), os.getpid())
    found = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as the launcher does
    try:
        asyncio.run(main())
        # A pidfd tells of an end just before the kernel looks whether to reap (do_notify_parent in kernel/signal.c).
        deadline = time.monotonic() + STAGE_LIMIT_S
        while (left := inits() - before) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert left == set(), "processes are left"
    finally:
        signal.signal(signal.SIGCHLD, found)
    assert open_files(Instance(name=workshop.name), os.getpid()) <= files, "descriptors are left"


def a_stage(workshop: Workshop) -> StageSpec:
    policy = workshop.policies["default"]
    files = (InputFile(path="folder/file", content=b"content"),)
    return StageSpec(
        name="run", policy="default", image="host", argv=("true",), env={}, limits=policy.defaults, files=files
    )
