"""An init that was taken over may report anything: in any order, with any descriptor, and then end, stay, or go on.

The launcher survives it, the sandbox ends within its deadlines and says what was wrong, limits hold, nothing is left,
and the next job runs. PID 1 turns hostile at its birth or at a report, the payload's process before or after it knows
its job; outer and the spawner, which are root in the host's namespaces, do not.
"""

from __future__ import annotations

import enum
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from faultrig import STAGE_LIMIT_S, FailingWorkshop, a_stage, in_loop, launch_beside_others
from fuzzrig import TIMEOUT_S, explore
from hypothesis import given
from hypothesis import strategies as st
from jailrig import SCALE

from sandboxd.audit.host import open_files
from sandboxd.instance import Instance
from sandboxd.jail import reports, sandbox
from sandboxd.jail.admission import Admission
from sandboxd.jail.reports import ReportKind
from sandboxd.jail.sandbox import Sandbox
from sandboxd.jail.spawner import Spawner
from sandboxd.result import Ending, Facts, Verdict
from sandboxd.verdict import decide

ROOT = Path(__file__).resolve().parents[2]
INIT = ROOT / "sandboxd" / "jail" / "init"
SCRIPTS = 100
DEADLINE_S = 0.3 * SCALE
WALL_S = 0.3 * SCALE
CPU_S = 0.2 * SCALE
MESSAGES_MAX = 8
BIRTH = 0
AS_TOLD = 2**64 - 2
"""A time in a report: the one of the report that it stands for."""
LATER = 2**62


class Then(enum.IntEnum):
    GO_ON = 0
    EXIT = 1
    STAY = 2
    HANG_UP = 3


class Descriptor(enum.IntEnum):
    NULL_DEVICE = 0
    SILENT_PIPE = 1
    ENDED_PIPE = 2
    FOLDER = 3
    OWN_PIDFD = 4
    EPOLL = 5
    MEMFD = 6
    CONTROL = 7
    PATH = 8
    GIVEN = 9


class Message(NamedTuple):
    content: bytes
    descriptor: Descriptor = Descriptor.NULL_DEVICE
    descriptors: int = 0
    repeat: int = 1

    def packed(self) -> bytes:
        return struct.pack("=4I64s", len(self.content), self.repeat, self.descriptor, self.descriptors, self.content)


class Script(NamedTuple):
    at: int
    said: list[Message]
    then: Then

    def packed(self) -> bytes:
        said = b"".join(message.packed() for message in self.said).ljust(MESSAGES_MAX * 80, b"\0")
        return struct.pack("=4I", self.at, self.then, len(self.said), 0) + said


def report(
    kind: int, *, phase: int = 0, step: int = 0, error: int = 0, status: int = 0, alone: int = 0,
    exec_ns: int = AS_TOLD, end_ns: int = AS_TOLD, payload_cpu_ns: int = 0, init_cpu_ns: int = 0,
) -> bytes:  # fmt: skip
    return reports._REPORT.pack(kind, phase, step, error, status, alone, exec_ns, end_ns, payload_cpu_ns, init_cpu_ns)


INT32 = st.sampled_from([0, 1, 2, 4, 5, 9, 11, 60, 127, 255, 256, 0x137F, 0xFFFF, 2**31 - 1])
TIMES = st.sampled_from([AS_TOLD, AS_TOLD, 0, LATER, 2**64 - 1])
COUNTS = st.sampled_from([0, 1, 10**6, 10**12, 2**63, 2**64 - 1])
REPORTS = st.builds(
    report, st.integers(0, 11), phase=INT32, step=INT32, error=st.one_of(INT32, st.just(-(2**31))), status=INT32,
    alone=INT32, exec_ns=TIMES, end_ns=TIMES, payload_cpu_ns=COUNTS, init_cpu_ns=COUNTS,
)  # fmt: skip
CONTENTS = st.one_of(REPORTS, REPORTS, REPORTS, st.binary(max_size=64))
MESSAGES = st.builds(
    Message,
    CONTENTS,
    st.sampled_from(Descriptor),
    st.sampled_from([0, 0, 0, 1, 1, 2, 4]),
    st.sampled_from([1, 1, 1, 2, 200]),
)
MOMENTS = [BIRTH, ReportKind.TREE, ReportKind.READY, ReportKind.HELD, ReportKind.STARTED, ReportKind.ENDED]
SCRIPT = st.builds(Script, st.sampled_from(MOMENTS), st.lists(MESSAGES, max_size=MESSAGES_MAX), st.sampled_from(Then))

Hostile = Callable[[Script], Facts]


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An init that follows a script, and the script."""
    folder = tmp_path_factory.mktemp("hostile")
    program, script = folder / "init", folder / "script"
    script.write_bytes(Script(BIRTH, [], Then.GO_ON).packed())
    sources = [str(Path(__file__).with_name("hostile_init.c")), str(INIT / "steps.c")]
    flags = ["-std=gnu17", "-O1", "-static", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f'-DSCRIPT="{script}"']
    subprocess.run(["gcc", *flags, f"-I{INIT}", *sources, "-o", str(program)], check=True)
    return program, script


@pytest.fixture
def hostile(
    workshop: FailingWorkshop, taken_over: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hostile]:
    """Runs a job in a sandbox whose init follows the script, and one in a true sandbox after it."""
    monkeypatch.setattr(sandbox, "BUILD_DEADLINE_S", DEADLINE_S)
    monkeypatch.setattr(sandbox, "KILL_RETRY_S", 0.1)
    program, script = taken_over
    hostile_spawner = Spawner(str(program), workshop._reserved_fd)
    true_spawner, instance = workshop.spawner, Instance(name=workshop.name)
    stage = a_stage(workshop)
    limits = {"wall_time_ns": int(WALL_S * 1e9), "cpu_time_ns": int(CPU_S * 1e9)}
    stage = msgspec.structs.replace(stage, limits=msgspec.structs.replace(stage.limits, **limits))

    def run(told: Script) -> Facts:
        found: list[Facts] = []
        with script.open("r+b") as file:
            file.write(told.packed())

        async def both(admission: Admission) -> None:
            for spawner in (hostile_spawner, true_spawner):
                workshop.spawner = spawner
                before = open_files(instance, os.getpid())
                found.append(await launch_beside_others(admission, stage))
                assert await admission.wait_idle(STAGE_LIMIT_S) == 0, "a sandbox is left"
                assert open_files(instance, os.getpid()) <= before, "descriptors are left"

        in_loop(workshop, both)
        facts, after = found
        assert after.exit_code == 0, "the next sandbox does not run"
        return facts

    yield run
    hostile_spawner.close()
    workshop.spawner = true_spawner


@pytest.mark.timeout(TIMEOUT_S)
def test_the_launcher_survives_an_init_that_says_anything(workshop: FailingWorkshop, hostile: Hostile) -> None:
    limits = workshop.policies["default"].defaults

    @given(SCRIPT)
    def survives(told: Script) -> None:
        begun = time.monotonic()
        facts = hostile(told)
        took_s = time.monotonic() - begun
        assert took_s < 2 * DEADLINE_S + WALL_S + 2 * SCALE, "it took its time"
        assert facts.wall_time_ns < took_s * 1e9, facts
        assert facts.cpu_time_ns < took_s * 1e9 * workshop.host.cpus, facts
        assert decide(facts, limits).verdict in Verdict
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=Facts) == facts

    explore(survives, SCRIPTS)


TOLD = {
    "a start to come, which no wall limit would end": (
        Script(ReportKind.STARTED, [Message(report(ReportKind.STARTED, exec_ns=LATER))], Then.STAY), "Report"),
    "a start before the job, which nothing would end": (
        Script(ReportKind.READY, [Message(report(kind)) for kind in (ReportKind.READY, ReportKind.STARTED)], Then.STAY),
        "Report"),
    "CPU time of its own, which no CPU limit would count": (
        Script(ReportKind.STARTED, [Message(report(ReportKind.STARTED, payload_cpu_ns=LATER))], Then.STAY), "Report"),
    "more CPU time of PID 1 than was used": (
        Script(ReportKind.HELD, [Message(report(ReportKind.HELD, init_cpu_ns=LATER))], Then.STAY), "Report"),
    "an end to come": (
        Script(ReportKind.ENDED, [Message(report(ReportKind.ENDED, alone=1, end_ns=LATER))], Then.STAY), "Report"),
    "an end that is none": (
        Script(ReportKind.ENDED, [Message(report(ReportKind.ENDED, alone=1, status=0x137F))], Then.STAY), "Measure"),
    "too little, with a descriptor": (
        Script(ReportKind.READY, [Message(b"x", Descriptor.MEMFD, 1)], Then.GO_ON), "Report"),
    "nothing, with a descriptor": (
        Script(ReportKind.READY, [Message(b"", Descriptor.MEMFD, 1)], Then.GO_ON), "Report"),
    "a listener that is none": (
        Script(ReportKind.READY, [Message(report(ReportKind.READY), Descriptor.ENDED_PIPE, 1)], Then.STAY), "Report"),
    "an outer that never ends": (
        Script(BIRTH, [Message(report(ReportKind.OUTER), Descriptor.SILENT_PIPE, 1)], Then.STAY), "Report"),
    "a PID 1 that has ended": (
        Script(BIRTH, [Message(report(ReportKind.PIDFD), Descriptor.ENDED_PIPE, 1)], Then.STAY), "Report"),
    "a kind that is none": (Script(ReportKind.HELD, [Message(report(0))], Then.STAY), "Report"),
    "a failure, over and over": (
        Script(ReportKind.HELD, [Message(report(ReportKind.FAILED, step=2**31, error=1), repeat=200)], Then.STAY),
        "Init"),
    "four failures, one more than there are processes of ours": (
        Script(ReportKind.HELD, [Message(report(ReportKind.FAILED, step=2**31, error=1), repeat=4)], Then.STAY),
        "Init"),
    "nothing more": (Script(ReportKind.READY, [], Then.HANG_UP), "Build"),
    "the start, and never the end": (Script(ReportKind.ENDED, [], Then.STAY), None),
}  # fmt: skip
"""What the launcher is told, and the step that it names; None: a limit ended it."""


@pytest.mark.parametrize("told", TOLD)
def test_what_an_init_cannot_truly_say_is_named(workshop: FailingWorkshop, hostile: Hostile, told: str) -> None:
    script, step = TOLD[told]
    facts = hostile(script)
    if step is None:
        assert facts.ending is Ending.WALL_TIME
    else:
        assert facts.failure is not None
        assert facts.failure.step == step
        assert decide(facts, workshop.policies["default"].defaults).verdict is Verdict.INTERNAL_ERROR


def test_who_says_that_it_is_alone_and_is_not_is_killed_before_anybody_is_answered(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What still lives could write into the next job's output."""
    alive: list[int] = []
    finish = Sandbox._finish

    def counted(live: Sandbox) -> None:
        alive.append(live._leaf.processes())
        finish(live)

    monkeypatch.setattr(Sandbox, "_finish", counted)
    said = [Message(report(ReportKind.STARTED)), Message(report(ReportKind.ENDED, alone=1))]
    hostile(Script(ReportKind.STARTED, said, Then.STAY))
    assert len(alive) == 2, "the hostile one and the next"
    assert max(alive) <= 1


def test_a_true_script_changes_nothing(hostile: Hostile) -> None:
    assert hostile(Script(ReportKind.ENDED, [], Then.GO_ON)).exit_code == 0
