"""A policy with `report_denied` tells what the filter refused; the program notices no difference."""

from __future__ import annotations

import errno

import pytest
from jailrig import LauncherUnderTest

CALLS = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number, arguments in {calls}:
    result = libc.syscall(number, *arguments)
    print(result, errno.errorcode.get(ctypes.get_errno()))
"""
# unshare(CLONE_NEWUSER), bpf, keyctl, personality(PER_LINUX32), socket(AF_ALG), a number that nobody knows; x86_64
REFUSED = "(272, (0x10000000,)), (321, (0, 0, 0)), (250, (0, 0)), (135, (8,)), (41, (38, 5, 0)), (1000, ())"


def test_refused_calls_are_listed_with_their_counts(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(CALLS.format(calls=f"({REFUSED}, (250, (0, 0)))"), policy="report")
    assert ran.verdict == "ok"
    assert ran.facts.denied is not None
    counts = {denied.name: denied.count for denied in ran.facts.denied}
    assert counts == {"keyctl": 2, "unshare": 1, "bpf": 1, "personality": 1, "socket": 1, "1000": 1}


def test_they_are_answered_as_the_filter_answers_without_reporting(launcher: LauncherUnderTest) -> None:
    program = CALLS.format(calls=f"({REFUSED})")
    silent, told = (launcher.python(program, policy=policy) for policy in ("default", "report"))
    assert silent.text == told.text
    assert silent.facts.denied is None
    assert "EPERM" in silent.text
    assert "ENOSYS" in silent.text


def test_after_64_the_kernel_answers_alone(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(CALLS.format(calls="((250, (0, 0)),) * 1000"), policy="report")
    assert ran.verdict == "ok"
    assert [(denied.name, denied.count) for denied in ran.facts.denied or ()] == [("keyctl", 64)]
    assert ran.text.splitlines() == [f"-1 {errno.errorcode[errno.ENOSYS]}"] * 1000


def test_threads_work_and_clone3_is_not_reported(launcher: LauncherUnderTest) -> None:
    program = "import threading\nfor _ in range(100): threading.Thread(target=int).start()\nprint('done')"
    ran = launcher.python(program, policy="report")
    assert (ran.verdict, ran.text, ran.facts.denied) == ("ok", "done\n", ())


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "os._exit(3)", "time.sleep(60)"])
def test_a_program_that_ends_while_a_thread_waits_for_an_answer_leaves_nothing(
    launcher: LauncherUnderTest, ending: str
) -> None:
    program = f"""
        import ctypes, os, threading, time
        libc = ctypes.CDLL(None)
        def call():
            while True: libc.syscall(250, 0, 0)
        for _ in range(4): threading.Thread(target=call, daemon=True).start()
        {ending}
        """
    ran = launcher.python(program, policy="report", wall_time_s=1)
    assert ran.verdict in ("signalled", "runtime_error", "wall_time_exceeded")
    launcher.await_nothing_left()
