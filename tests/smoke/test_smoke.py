"""The sandbox in short: hello, each limit, a fork bomb, nothing left; for every form of cgroups, and when emulated."""

from __future__ import annotations

import pytest
from jailrig import SCALE, LauncherUnderTest

MIB = 1 << 20
CPU_S = 0.3 * SCALE
"""Enough for an interpreter's start even where everything is emulated."""
WALL_S = 3.0 * SCALE


def test_a_program_reads_its_input_and_says_hello(launcher: LauncherUnderTest) -> None:
    ran = launcher.python("print('hello', input())", stdin=b"world\n", wall_time_s=WALL_S)
    assert (ran.verdict, ran.text) == ("ok", "hello world\n")


def test_it_has_no_rights_and_sees_nothing_of_the_host(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash(
        """
        id -u
        grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
        ls /root /home /run
        cd /proc
        echo [0-9]*
        """,
        wall_time_s=WALL_S,
    )
    assert ran.text.split() == [
        *("1000", "CapEff:", "0000000000000000", "CapBnd:", "0000000000000000", "NoNewPrivs:", "1", "Seccomp:", "2"),
        *("/home:", "/root:", "/run:", "2"),
    ]


def test_the_cpu_limit_counts_children_that_nobody_waits_for(launcher: LauncherUnderTest) -> None:
    loops = "(while :; do :; done) & disown; while :; do :; done"
    ran = launcher.bash(loops, cpu_time_s=CPU_S, wall_time_s=min(WALL_S * 3, 120))
    assert ran.verdict == "cpu_time_exceeded"
    assert ran.facts.cpu_time_ns >= CPU_S * 1e9


def test_the_wall_limit_ends_a_sleeper(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("sleep 1000", wall_time_s=0.5 * SCALE)
    assert ran.verdict == "wall_time_exceeded"


def test_the_memory_limit_is_the_kernels(launcher: LauncherUnderTest) -> None:
    ran = launcher.python("x = b'x' * (200 << 20)", memory_bytes=64 * MIB, wall_time_s=WALL_S)
    assert ran.verdict == "memory_exceeded"
    assert ran.facts.own_limit_hit


def test_a_child_over_the_memory_limit_takes_the_job_along(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        "import os\nif os.fork() == 0: x = b'x' * (200 << 20)\nos.wait()\nos._exit(0)",
        memory_bytes=64 * MIB,
        wall_time_s=WALL_S,
    )
    assert ran.verdict == "memory_exceeded"


def test_the_process_limit_holds_against_a_fork_bomb(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash(
        "bomb() { bomb | bomb & }; bomb; sleep 1000", processes=20, wall_time_s=1.5 * SCALE, cpu_time_s=60
    )
    assert ran.verdict in ("wall_time_exceeded", "cpu_time_exceeded")
    if ran.facts.processes_peak is not None:  # pids.peak is younger than Linux 6.1
        assert ran.facts.processes_peak <= 20


def test_the_output_limit_ends_a_flood(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("yes", output_bytes=65536, wall_time_s=WALL_S)
    assert ran.verdict == "output_exceeded"
    assert len(ran.stdout) == ran.facts.stdout_bytes


@pytest.mark.parametrize("folder", ["/box", "/tmp", "/dev/shm"])
def test_the_disk_limit_is_enospc(launcher: LauncherUnderTest, folder: str) -> None:
    ran = launcher.bash(
        f"head -c 100M /dev/zero > {folder}/big; stat -c %s {folder}/big", disk_bytes=4 * MIB, wall_time_s=WALL_S
    )
    assert 0 < int(ran.text) <= 4 * MIB
    assert b"No space left on device" in ran.stderr


def test_daemons_do_not_outlive_their_program(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("for i in 1 2 3 4 5; do setsid sleep 1000 & done; exit 7", wall_time_s=WALL_S)
    assert (ran.verdict, ran.facts.exit_code) == ("runtime_error", 7)
    launcher.await_nothing_left()


def test_what_one_program_wrote_the_next_does_not_see(launcher: LauncherUnderTest) -> None:
    assert launcher.bash("echo secret | tee /box/a /tmp/a /dev/shm/a", wall_time_s=WALL_S).verdict == "ok"
    assert launcher.bash("ls /box /tmp /dev/shm", wall_time_s=WALL_S).text.split() == [
        "/box:",
        "main.sh",
        "/dev/shm:",
        "/tmp:",
    ]
