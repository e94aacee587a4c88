"""Prepared sandboxes: each is used once, is as strong as any other, and is gone with its job or its launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from jailrig import SCALE, LauncherUnderTest
from rig import wait_until

from sandboxd.audit.host import waiting_slots
from sandboxd.jail.slots import number_of
from sandboxd.jail.sweeper import RECORD
from sandboxd.spec import MIB

BOUND = 6
POLICIES = 4


@pytest.fixture(scope="module")
def _pooled(state_root: Path) -> Iterator[LauncherUnderTest]:
    under_test = LauncherUnderTest(state_root, f"pool-{os.getpid()}", prepared=BOUND)
    yield under_test
    assert under_test.stop() == 0, under_test.log.read_text()
    under_test.await_all_gone()


@pytest.fixture
def pooled(_pooled: LauncherUnderTest) -> Iterator[LauncherUnderTest]:
    """A launcher whose pool is full, and is full again after the test; nothing else is left."""
    await_full(_pooled)
    yield _pooled
    _pooled.await_nothing_left()
    await_full(_pooled)


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 10) -> None:
    deadline_s = time.monotonic() + limit_s * SCALE
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)


def await_full(launcher: LauncherUnderTest) -> set[int]:
    """Slots of the sandboxes that wait, once there is one of each policy."""
    wait_for(lambda: len(waiting_slots(launcher.instance)) >= POLICIES and not launcher.slots(), "the pool is not full")
    return waiting_slots(launcher.instance)


def slot_of(printed: str) -> int:
    """Of a job that printed /proc/self/uid_map."""
    return number_of(int(printed.split()[1]))


def test_a_job_gets_a_prepared_sandbox_and_another_takes_its_place(pooled: LauncherUnderTest) -> None:
    before = await_full(pooled)
    used = slot_of(pooled.run(("cat", "/proc/self/uid_map")).text)
    assert used in before
    await_full(pooled)


def test_no_sandbox_is_used_twice(pooled: LauncherUnderTest) -> None:
    seen = set()
    for _ in range(3 * BOUND):
        ran = pooled.bash("readlink /proc/self/ns/pid; ls -A /box /tmp /dev/shm; touch /tmp/trace /dev/shm/trace trace")
        namespace, *listed = ran.text.split()
        seen.add((namespace, pooled.run(("true",)).facts.processes_peak))
        assert listed == ["/box:", "main.sh", "/dev/shm:", "/tmp:"]
    assert len(seen) >= 3, "namespaces' numbers are used again by the kernel, not always the same"


def test_a_prepared_sandbox_has_the_walls_of_a_cold_one(pooled: LauncherUnderTest, launcher: LauncherUnderTest) -> None:
    look = (
        "grep -E 'Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Sig|Shd' /proc/self/status; "
        "ulimit -a; umask; id; pwd; env; ls -l /proc/self/fd"
    )
    cold, prepared = (each.bash(look) for each in (launcher, pooled))

    def without_varying(text: str) -> list[str]:
        return [line.split(" -> ")[0][-1] if " -> " in line else line for line in text.splitlines()]

    assert without_varying(prepared.text) == without_varying(cold.text)
    assert prepared.outcome.isolation == cold.outcome.isolation


@pytest.mark.parametrize("memory_mib", [32, 64, 128, 256, 512])
def test_a_jobs_own_limits_hold_whatever_it_was_built_with(pooled: LauncherUnderTest, memory_mib: int) -> None:
    limits = {"memory_bytes": memory_mib * MIB, "disk_bytes": memory_mib * MIB // 4, "processes": memory_mib // 4}
    space = pooled.run(("stat", "-f", "-c", "%b %S", "/tmp"), **limits)
    blocks, size = map(int, space.text.split())
    assert blocks * size == limits["disk_bytes"]
    eats = f"x = bytearray({memory_mib // 2} << 20); print(len(x))"
    assert pooled.python(eats, **limits).verdict == "ok"
    assert pooled.python(f"x = b'x' * ({2 * memory_mib} << 20)", **limits).verdict == "memory_exceeded"
    forks = (
        "import os, time\nn = 0\ntry:\n  while True:\n    if os.fork() == 0: time.sleep(9)\n    n += 1\n"
        "except OSError: print(n)"
    )
    assert int(pooled.python(forks, **limits).text) == limits["processes"] - 1


def test_the_measurements_are_of_the_job_alone(pooled: LauncherUnderTest, launcher: LauncherUnderTest) -> None:
    prepared, cold = (min(each.run(("true",)).facts.cpu_time_ns for _ in range(10)) for each in (pooled, launcher))
    assert prepared < 2 * cold, "what was used before the job is not counted"
    facts = pooled.run(("sleep", "0.2")).facts
    assert 0.2e9 <= facts.wall_time_ns < 0.3e9 * SCALE
    assert facts.processes_peak == 1


def test_stdin_streamed_or_whole_reaches_a_prepared_sandbox(pooled: LauncherUnderTest) -> None:
    assert pooled.run(("cat",), stdin=b"whole").stdout == b"whole"
    assert pooled.run(("cat",)).stdout == b""
    with pooled.live(("cat",)) as program:
        program.write(b"streamed")
        program.await_output(b"streamed")


def test_the_pool_grows_where_jobs_miss_it_and_stays_within_its_bound(pooled: LauncherUnderTest) -> None:
    most = 0
    for _ in range(4):
        threads = [threading.Thread(target=pooled.run, args=(("true",),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        most = max(most, len(await_full(pooled)))
    time.sleep(0.3)
    assert POLICIES < max(most, len(await_full(pooled))) <= BOUND


@pytest.mark.parametrize("bound", [1, 2])
def test_with_few_places_those_have_them_whom_jobs_ask_for(state_root: Path, bound: int) -> None:
    few = LauncherUnderTest(state_root, f"few-{os.getpid()}", prepared=bound)
    try:
        wait_for(lambda: len(waiting_slots(few.instance)) == bound, "the pool is not full")
        assert few.run(("true",)).verdict == "ok"
        for _ in range(3):
            wait_for(lambda: len(waiting_slots(few.instance)) == bound and not few.slots(), "the pool is not full")
            waiting = waiting_slots(few.instance)
            assert slot_of(few.run(("cat", "/proc/self/uid_map")).text) in waiting
    finally:
        assert few.stop() == 0
        few.await_all_gone()


def test_one_whose_cgroup_stays_takes_nobodys_place_and_its_slot_comes_back(own_launcher: LauncherUnderTest) -> None:
    own_launcher.stop()
    own_launcher.prepared = 1
    own_launcher.start()
    assert own_launcher.run(("true",)).verdict == "ok"
    wait_for(
        lambda: len(waiting_slots(own_launcher.instance)) == 1 and not own_launcher.slots(), "the pool is not full"
    )
    (slot,) = waiting_slots(own_launcher.instance)
    (leaf,) = (path for path in leaves(own_launcher) if path.name == f"slot-{slot}")
    pids = (leaf / "cgroup.procs").read_text().split()
    (leaf / "foreign").mkdir()
    try:
        os.kill(min(map(int, pids)), signal.SIGKILL)
        wait_for(lambda: slot not in waiting_slots(own_launcher.instance), "it is still there")
        time.sleep(0.3)  # until the launcher has heard of it: given to a job in this moment, it would be our failure
        for _ in range(2):
            assert own_launcher.run(("true",)).verdict == "ok"  # the first one cold: nobody is told of a death
            wait_for(lambda: waiting_slots(own_launcher.instance) - {slot} != set(), "no other is prepared")
        wait_for(lambda: "its uid slot stays taken" in own_launcher.log.read_text(), "it is not told", 20)
        assert slot in own_launcher.slots()
    finally:
        (leaf / "foreign").rmdir()
    wait_for(lambda: slot not in own_launcher.slots(), "the slot stays taken", 20)


@pytest.mark.parametrize("victim", [0, 1], ids=["PID 1", "the payload's process"])
def test_one_that_dies_while_it_waits_is_replaced(pooled: LauncherUnderTest, victim: int) -> None:
    slot = min(await_full(pooled))
    (leaf,) = (path for path in leaves(pooled) if path.name == f"slot-{slot}")
    pids = sorted(map(int, (leaf / "cgroup.procs").read_text().split()))
    os.kill(pids[victim], signal.SIGKILL)
    wait_for(lambda: slot not in waiting_slots(pooled.instance), "it is still there")
    assert pooled.run(("true",)).verdict == "ok"
    await_full(pooled)


def leaves(launcher: LauncherUnderTest) -> list[Path]:
    """Folders of the v2 hierarchy, waiting or not."""
    record = msgspec.json.decode((launcher.instance.run_dir / RECORD).read_bytes(), type=list[str])
    return list(Path(record[0]).glob("slot-*"))


def test_with_a_launcher_that_is_killed_its_prepared_sandboxes_die(state_root: Path) -> None:
    launcher = LauncherUnderTest(state_root, f"pool-own-{os.getpid()}", prepared=BOUND)
    await_full(launcher)
    pids = [int(pid) for leaf in leaves(launcher) for pid in (leaf / "cgroup.procs").read_text().split()]
    assert len(pids) >= 2 * POLICIES
    launcher.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "a process outlived its launcher")
    launcher.start()
    await_full(launcher)
    assert launcher.stop() == 0
    launcher.await_all_gone()


@pytest.mark.timeout(60 * SCALE)
def test_a_jobs_end_does_not_delay_the_next_prepared_sandbox(own_launcher: LauncherUnderTest) -> None:
    """Jobs in a row, with time for one to be built between them: each finds one."""
    own_launcher.stop()
    own_launcher.prepared = 4
    own_launcher.start()
    assert own_launcher.run(("true",)).verdict == "ok"
    found = []
    for _ in range(20):
        time.sleep(0.15 * SCALE)
        found.append(bool(waiting_slots(own_launcher.instance)))
        assert own_launcher.run(("true",)).verdict == "ok"
    assert found.count(True) >= 18


def spawners_of(launcher: LauncherUnderTest) -> list[int]:
    found = []
    for pid in Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text() == "sandboxd-spawn\n":
                found.append(int(pid))
    return found


def spawner_of(launcher: LauncherUnderTest) -> int:
    (pid,) = spawners_of(launcher)
    return pid


def test_a_spawner_that_died_is_started_again(own_launcher: LauncherUnderTest) -> None:
    assert own_launcher.run(("true",)).verdict == "ok"
    before = spawner_of(own_launcher)
    os.kill(before, signal.SIGKILL)
    assert own_launcher.run(("true",)).verdict == "ok"
    # In a sandbox that was ready already, perhaps: then the next one is built in a moment.
    wait_until(lambda: spawners_of(own_launcher) not in ([], [before]), 5 * SCALE)


def test_a_spawner_that_stands_still_does_not_delay_the_launchers_end(own_launcher: LauncherUnderTest) -> None:
    assert own_launcher.run(("true",)).verdict == "ok"
    os.kill(spawner_of(own_launcher), signal.SIGSTOP)
    began_s = time.monotonic()
    assert own_launcher.stop() == 0
    assert time.monotonic() - began_s < 5 * SCALE
    assert not own_launcher.instance.run_dir.exists()


@pytest.mark.timeout(60 * SCALE)
def test_a_spawner_that_does_nothing_costs_one_job_not_the_service(own_launcher: LauncherUnderTest) -> None:
    assert own_launcher.run(("true",)).verdict == "ok"
    os.kill(spawner_of(own_launcher), signal.SIGSTOP)
    for _ in range(own_launcher.prepared + 1):  # those that are ready already serve as ever
        ran = own_launcher.run(("true",))
        if ran.verdict != "ok":
            break
    assert ran.verdict == "internal_error"
    assert ran.facts.failure is not None
    assert ran.facts.failure.step == "Build"
    assert own_launcher.run(("true",)).verdict == "ok"
