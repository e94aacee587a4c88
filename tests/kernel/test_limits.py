"""Each limit: not reached, reached, and the verdict, not only the exit status."""

from __future__ import annotations

import os

import pytest
from jailrig import SCALE, LauncherUnderTest

MIB = 1 << 20
BURN = "while True: pass"
FORKING_BURN = """
import os
for _ in range(3):
    if os.fork() == 0:
        while True: pass
while True: pass
"""
DOUBLE_FORKING_BURN = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: pass
    os._exit(0)
time.sleep(60)
"""
AUTO_REAPED_BURN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end: pass
        os._exit(0)
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
    "program",
    [BURN, FORKING_BURN, DOUBLE_FORKING_BURN, AUTO_REAPED_BURN],
    ids=["loop", "forks", "double-forks", "auto-reaped"],
)
def test_cpu_time_of_all_descendants_counts_against_the_limit(launcher: LauncherUnderTest, program: str) -> None:
    ran = launcher.python(program, cpu_time_s=0.5 * SCALE, wall_time_s=30 * SCALE)
    assert ran.verdict == "cpu_time_exceeded"
    assert 0.5 * SCALE <= ran.facts.cpu_time_ns / 1e9 <= 0.7 * SCALE


def test_a_program_below_its_cpu_limit_is_left_alone(launcher: LauncherUnderTest) -> None:
    ran = launcher.python("sum(range(1000000))", cpu_time_s=5 * SCALE)
    assert ran.verdict == "ok"
    assert 0 < ran.facts.cpu_time_ns < 2e9 * SCALE


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import sys; sys.stdin.read(); import threading; threading.Event().wait()",
    ],
    ids=["sleeps", "stops itself", "waits for nothing"],
)
def test_wall_time_ends_what_uses_no_cpu(launcher: LauncherUnderTest, program: str) -> None:
    ran = launcher.python(program, wall_time_s=0.5 * SCALE)
    assert ran.verdict == "wall_time_exceeded"
    assert ran.facts.wall_time_ns >= 0.5e9 * SCALE


def test_memory_above_the_limit_is_memory_exceeded(launcher: LauncherUnderTest) -> None:
    ran = launcher.python("x = b'x' * (200 << 20)", memory_bytes=64 * MIB)
    assert ran.verdict == "memory_exceeded"
    assert ran.judgement is not None
    assert "64 MiB" in ran.judgement.reason


def test_memory_below_the_limit_is_left_alone(launcher: LauncherUnderTest) -> None:
    assert launcher.python("x = b'x' * (32 << 20)", memory_bytes=64 * MIB).verdict == "ok"


def test_a_child_killed_for_memory_is_memory_exceeded_though_its_parent_exits_0(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import os
        if os.fork() == 0:
            x = b'x' * (200 << 20)
        os.wait()
        os._exit(0)
        """,
        memory_bytes=64 * MIB,
    )
    assert ran.verdict == "memory_exceeded"


def test_touched_memory_is_reported_within_2_percent_and_1_mib(launcher: LauncherUnderTest) -> None:
    touch = "import mmap\nm = mmap.mmap(-1, 50 << 20)\nfor at in range(0, {} << 20, 4096): m[at] = 1"
    nothing, fifty = (launcher.python(touch.format(size)).facts.memory_peak_bytes for size in (0, 50))
    assert abs(fifty - nothing - 50 * MIB) <= 50 * MIB * 0.02 + MIB


def test_writing_a_file_larger_than_the_memory_limit_ends_in_enospc_not_in_an_oom_kill(
    launcher: LauncherUnderTest,
) -> None:
    ran = launcher.python(
        """
        import errno
        with open("big", "wb", buffering=0) as big:
            try:
                while True:
                    big.write(bytes(1 << 20))
            except OSError as error:
                print(errno.errorcode[error.errno])
        """,
        memory_bytes=64 * MIB,
    )
    assert (ran.verdict, ran.text) == ("ok", "ENOSPC\n")


def test_a_full_disk_and_a_failure_is_disk_exceeded(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("head -c 100M /dev/zero > big", disk_bytes=8 * MIB)
    assert ran.verdict == "disk_exceeded"


@pytest.mark.parametrize("folder", ["/box", "/tmp", "/dev/shm"])
def test_inodes_are_bounded_with_the_disk(launcher: LauncherUnderTest, folder: str) -> None:
    ran = launcher.python(
        f"""
        import errno
        made = 0
        try:
            while True:
                open(f"{folder}/{{made}}", "x").close()
                made += 1
        except OSError as error:
            print(errno.errorcode[error.errno], made)
        """,
        disk_bytes=4 * MIB,
        memory_bytes=128 * MIB,
        file_size_bytes=4 * MIB,
    )
    code, made = ran.text.split()
    assert code == "ENOSPC"
    assert int(made) <= 4 * MIB // 4096 + 16


def test_processes_above_the_limit_cannot_be_made(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import os, time
        made = 1
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60)
                made += 1
        except BlockingIOError:
            print(made)
        """,
        processes=10,
    )
    assert (ran.verdict, ran.text) == ("ok", "10\n")
    assert ran.facts.processes_peak == 10


def test_threads_count_as_processes(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import threading
        stop = threading.Event()
        made = 1
        try:
            while True:
                threading.Thread(target=stop.wait, daemon=True).start()
                made += 1
        except RuntimeError:
            print(made)
        """,
        processes=10,
    )
    assert ran.text == "10\n"


def test_a_fork_bomb_is_ended_by_its_limits(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("bomb() { bomb | bomb & }; bomb; sleep 60", wall_time_s=2 * SCALE, cpu_time_s=20 * SCALE)
    assert ran.verdict in ("wall_time_exceeded", "cpu_time_exceeded")
    assert ran.facts.processes_peak is not None
    assert ran.facts.processes_peak <= 64


def test_output_is_counted_to_the_byte_and_ended_at_the_policys_multiple(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("yes", output_bytes=65536)
    assert ran.verdict == "output_exceeded"
    assert len(ran.stdout) == ran.facts.stdout_bytes
    assert 16 * 65536 < ran.facts.stdout_bytes <= 16 * 65536 + 3 * 65536


def test_a_gigabyte_of_output_is_ended_early(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("head -c 1G /dev/zero >&2", output_bytes=65536)
    assert ran.verdict == "output_exceeded"
    assert ran.facts.stderr_bytes < 2 * MIB


def test_a_file_above_file_size_bytes_cannot_be_written(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("trap '' XFSZ; head -c 2M /dev/zero > big; stat -c %s big", file_size_bytes=MIB)
    assert ran.text == f"{MIB}\n"


def test_open_files_are_bounded(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        "import os\ntry:\n  while True: last = os.dup(0)\nexcept OSError: print(last + 1)", open_files=32
    )
    assert ran.text == "32\n"


def test_the_stack_is_bounded_by_stack_bytes(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("ulimit -s", stack_bytes=8 * MIB)
    assert ran.text == "8192\n"


def test_a_cancelled_program_ends_at_once(launcher: LauncherUnderTest) -> None:
    cancel = os.eventfd(1)
    try:
        ran = launcher.bash("sleep 60", cancel_fd=cancel)
    finally:
        os.close(cancel)
    assert ran.verdict == "cancelled"
