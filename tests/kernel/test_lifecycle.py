"""Launchers and sandboxes end in every way that they can, and nothing of them stays."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jailrig import PYTHON, SCALE, LauncherUnderTest

from sandboxd.errors import LauncherUnavailable
from sandboxd.instance import RUN_ROOT
from sandboxd.jail import slots
from sandboxd.result import Verdict
from sandboxd.spec import MIB
from sandboxd.verdict import decide


def pid_1_of(launcher: LauncherUnderTest) -> int:
    """The one PID 1 of a launcher with one job: the launcher's only child that has one."""
    children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split()
    (pid,) = set(map(int, children)) & set(launcher.sandbox_pids())
    return pid


def mounts() -> int:
    """In the launcher's own namespace, which is the host's."""
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def namespaces_of_our_sandboxes(launcher: LauncherUnderTest) -> int:
    """Kinds of namespaces that a process of a live sandbox is in and the launcher is not."""
    own = {os.readlink(entry) for entry in Path(f"/proc/{launcher.process.pid}/ns").iterdir()}
    found = set()
    for pid in launcher.sandbox_pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {os.readlink(entry) for entry in Path(f"/proc/{pid}/ns").iterdir()} - own
    return len({name.split(":")[0] for name in found})


def test_many_in_a_row_leave_nothing(launcher: LauncherUnderTest) -> None:
    for _ in range(10):
        launcher.run(("true",))
    launcher.await_nothing_left()
    fds, mounted = launcher.open_fds(), mounts()
    for _ in range(100):
        assert launcher.run(("true",)).verdict == "ok"
    launcher.await_nothing_left()
    launcher.await_fds(fds)
    assert mounts() == mounted
    children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split()
    states = [re.findall(r"State:\s+(\w)", Path(f"/proc/{pid}/status").read_text()) for pid in children]
    assert ["Z"] not in states, "a process was not reaped"


def test_a_sandboxs_namespaces_live_and_die_with_it(launcher: LauncherUnderTest) -> None:
    with launcher.live_python("print('up', flush=True)\ninput()") as program:
        program.await_output(b"up")
        assert namespaces_of_our_sandboxes(launcher) == 8
        made = {os.readlink(f"/proc/{pid}/ns/net")[5:-1] for pid in launcher.sandbox_pids()}
        assert len(made) == 1
    launcher.await_nothing_left()
    left = subprocess.run(["lsns", "--noheadings", "--output", "NS"], capture_output=True, text=True, check=True).stdout
    assert not made & set(left.split())
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "nsfs" in line]


def test_a_client_that_goes_away_takes_its_sandbox_along(launcher: LauncherUnderTest) -> None:
    program = f"""
from sandboxd.jail.client import LauncherClient
from sandboxd.spec import StageSpec
client = LauncherClient("{launcher.socket}")
limits = client.catalogue().policy("default").defaults
argv = ("/bin/sh", "-c", "echo up; sleep 1000")
stage = StageSpec(name="run", policy="default", image="host", argv=argv, env={{}}, limits=limits)
client.run(stage, on_stdout=lambda chunk: print("up", flush=True), on_stderr=print)
"""
    with subprocess.Popen([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        assert launcher.sandbox_pids()
        client.kill()
    launcher.await_nothing_left()


@pytest.mark.parametrize("victim", ["launcher", "init"])
def test_after_a_sigkill_in_the_middle_of_a_job_nothing_is_left_and_the_next_one_runs(
    own_launcher: LauncherUnderTest, victim: str
) -> None:
    with own_launcher.live_python("print('up', flush=True)\nimport time; time.sleep(1000)", wall_time_s=60) as program:
        program.await_output(b"up")
        if victim == "launcher":
            own_launcher.kill()
        else:
            os.kill(pid_1_of(own_launcher), signal.SIGKILL)
        outcome = program.wait()
    if victim == "launcher":
        assert outcome is None
        assert isinstance(program.error, LauncherUnavailable)
        own_launcher.start()
    else:
        assert outcome is not None
        assert outcome.facts.init_died
        assert decide(outcome.facts, outcome.limits).verdict is Verdict.INTERNAL_ERROR, "our fault, not the program's"
    own_launcher.await_nothing_left()
    assert own_launcher.run(("true",)).verdict == "ok"


def test_with_its_launcher_every_process_of_a_sandbox_dies(own_launcher: LauncherUnderTest) -> None:
    source = """
        import os, time
        for _ in range(10):
            if os.fork() == 0:
                os.setsid()
                time.sleep(1000)
        print("up", flush=True)
        time.sleep(1000)
        """
    with own_launcher.live_python(source, wall_time_s=60) as program:
        program.await_output(b"up")
        pids = own_launcher.sandbox_pids()
        assert len(pids) >= 11
        handles = [os.pidfd_open(pid) for pid in pids]
        own_launcher.kill()
        program.wait()
    for handle in handles:
        assert select.select([handle], [], [], 5 * SCALE)[0], "a process outlived its launcher"
        os.close(handle)
    assert own_launcher.cgroups(), "the cgroups wait for the next start"
    assert own_launcher.slots()
    own_launcher.start()
    own_launcher.await_nothing_left()


def test_a_client_whose_launcher_was_started_anew_between_two_stages_does_not_notice(
    own_launcher: LauncherUnderTest,
) -> None:
    stage = own_launcher.stage(("true",))
    with own_launcher.client() as client:
        for _ in range(2):
            assert client.run(stage, on_stdout=print, on_stderr=print).facts.exit_code == 0
            own_launcher.kill()
            own_launcher.start()
        assert client.catalogue().languages
    own_launcher.await_nothing_left()


def test_a_launcher_told_to_stop_ends_its_jobs(own_launcher: LauncherUnderTest) -> None:
    with own_launcher.live_python("print('up', flush=True)\nimport time; time.sleep(1000)", wall_time_s=60) as program:
        program.await_output(b"up")
        assert own_launcher.stop() == 0
        program.wait()
    own_launcher.await_all_gone()


def test_two_instances_do_not_see_each_other(launcher: LauncherUnderTest, own_launcher: LauncherUnderTest) -> None:
    with launcher.live_python("print('up', flush=True)\ninput()\nprint('on')") as program:
        program.await_output(b"up")
        assert own_launcher.run(("true",)).verdict == "ok"
        own_launcher.kill()
        own_launcher.start()  # the sweep of one touches nothing of the other
        program.write(b"\n")
        program.await_output(b"on")


def test_a_slot_whose_claim_was_removed_by_hand_ends_as_any_other(launcher: LauncherUnderTest) -> None:
    with launcher.live_python("print('up', flush=True)\ninput()") as program:
        program.await_output(b"up")
        for number in launcher.slots():
            slots.release(number)
        program.write(b"\n")
        assert program.wait() is not None
    launcher.await_nothing_left()
    assert "callback failed" not in launcher.log.read_text()


def test_the_launcher_does_not_keep_what_jobs_sent(launcher: LauncherUnderTest) -> None:
    """Sandbox and streams know each other: an input of megabytes must not wait for the collector of cycles."""

    def anonymous_bytes() -> int:
        status = Path(f"/proc/{launcher.process.pid}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024

    files = {"input": bytes(8 * MIB)}
    launcher.run(("/usr/bin/true",), files=files)
    launcher.await_nothing_left()
    before = anonymous_bytes()
    source = "print('on', flush=True); input()"
    with launcher.live((PYTHON, "-c", source), files=files) as program:
        program.await_output(b"on")
        assert anonymous_bytes() - before < 4 * MIB, "while it runs, what was sent lies in the sandbox alone"
    for _ in range(10):
        launcher.run(("/usr/bin/true",), files=files)
    launcher.await_nothing_left()
    assert anonymous_bytes() - before < 8 * MIB


def test_two_sandboxes_have_different_ids(launcher: LauncherUnderTest) -> None:
    source = "print('up', flush=True)\ninput()"
    with launcher.live_python(source) as one, launcher.live_python(source) as other:
        one.await_output(b"up")
        other.await_output(b"up")
        owners = {os.stat(f"/proc/{pid}").st_uid // 65536 for pid in launcher.sandbox_pids()}
        assert len(owners) == 2
        assert {owner - slots.FIRST_ID // slots.IDS for owner in owners} <= set(launcher.slots())


def test_what_a_launcher_holds_is_inherited_by_no_sandbox(launcher: LauncherUnderTest) -> None:
    """Descriptors of others, received over sockets or opened: seen from the host in each PID 1 and in the spawner."""
    source = "print('up', flush=True)\ninput()"
    with launcher.live_python(source) as one, launcher.live_python(source) as other:
        one.await_output(b"up")
        other.await_output(b"up")
        children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split()
        for pid in {int(child) for child in children} - waiting_pids(launcher):
            held = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
            others = {link for link in held if link.split(":")[0] not in ("socket", "/dev/null")}
            assert others <= {"anon_inode:[signalfd]"}, f"{Path(f'/proc/{pid}/comm').read_text()} {held}"


def waiting_pids(launcher: LauncherUnderTest) -> set[int]:
    """Of prepared sandboxes, whose processes may be in the middle of something."""
    children = Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split()
    ours = set(launcher.sandbox_pids())
    spawned = {int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "sandboxd-spawn\n"}
    return {int(pid) for pid in children} - ours - spawned


def test_a_second_launcher_of_an_instance_is_refused(launcher: LauncherUnderTest) -> None:
    command = [sys.executable, "-I", "-m", "sandboxd", "launcher", "--instance", launcher.instance.name]
    environment = {"SANDBOXD_STATE_ROOT": launcher.instance.state_root, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30 * SCALE, check=False)
    assert second.returncode == 125
    assert "already running" in second.stderr
    assert launcher.run(("true",)).verdict == "ok"


@pytest.mark.parametrize("prefix", ["run-", "audit-"])
def test_what_a_killed_private_launcher_left_is_swept_by_the_next_one(state_root: Path, prefix: str) -> None:
    private = LauncherUnderTest(state_root, f"{prefix}{os.getpid()}")
    private.kill()
    assert (RUN_ROOT / private.instance.name).exists()
    another = LauncherUnderTest(state_root, f"sweeps-{os.getpid()}")
    assert not (RUN_ROOT / private.instance.name).exists()
    another.stop()
    another.await_all_gone()


def test_control_runs_are_refused_for_the_default_instance() -> None:
    command = [sys.executable, "-I", "-m", "sandboxd", "launcher", "--instance", "default", "--without", "seccomp"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30 * SCALE, check=False)
    assert refused.returncode == 2
    assert "refused for the instance 'default'" in refused.stderr


def test_a_launcher_told_to_stop_while_it_starts_leaves_nothing(state_root: Path) -> None:
    name = f"hasty-{os.getpid()}"
    command = [sys.executable, "-I", "-m", "sandboxd", "launcher", "--instance", name]
    environment = {"SANDBOXD_STATE_ROOT": str(state_root), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as hasty:
        while not (RUN_ROOT / name / "lock").exists():
            assert hasty.poll() is None
        hasty.terminate()
        assert hasty.wait(30 * SCALE) == 0
    assert not (RUN_ROOT / name).exists()


def test_favor_dynmods_is_a_hierarchy_that_no_path_leads_to_and_is_gone_with_the_launcher(state_root: Path) -> None:
    name = f"dynmods-{os.getpid()}"
    command = [sys.executable, "-I", "-m", "sandboxd", "launcher", "--instance", name, "--favor-dynmods"]
    environment = {"SANDBOXD_STATE_ROOT": str(state_root), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    before = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as own:
        while not (RUN_ROOT / name / "launcher.sock").exists():
            assert own.poll() is None
            time.sleep(0.01)
        assert "name=sandboxd-dynmods:" in Path("/proc/self/cgroup").read_text()
        told = subprocess.run(
            [sys.executable, "-I", "-m", "sandboxd", "doctor"], capture_output=True, text=True, check=False
        )
        assert re.search(r"favordynmods\W+on", told.stdout), told.stdout
        assert Path("/proc/self/mountinfo").read_text() == before
        own.terminate()
        assert own.wait(30 * SCALE) == 0
    deadline_s = time.monotonic() + 10 * SCALE  # the kernel takes a hierarchy apart in a thread of its own
    while "sandboxd-dynmods" in Path("/proc/self/cgroup").read_text():
        assert time.monotonic() < deadline_s, "the hierarchy is left"
        time.sleep(0.05)
