"""Two sandboxes at once, or one after the other, share nothing; nor does the kernel's log tell of them.

The channels themselves are cases of the audit (`sandboxd/audit/cases/channels.toml`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jailrig import PYTHON, LauncherUnderTest

from sandboxd.audit.corpus import PROGRAMS
from sandboxd.audit.host import KernelLog

HOLD = "\nprint('held', flush=True)\ninput()\n"


def test_two_live_sandboxes_have_ids_of_their_own(launcher: LauncherUnderTest) -> None:
    show = "print(open('/proc/self/uid_map').read().split()[1], flush=True)"
    with launcher.live_python(show + HOLD) as peer:
        first = int(peer.await_output(b"held").split()[0])
        second = int(launcher.python(show).text)
    assert abs(first - second) >= 65536


def test_a_key_cannot_be_left_for_the_next(launcher: LauncherUnderTest) -> None:
    """Also without the filter keyrings are the user namespace's; here the calls do not exist at all."""
    before = Path("/proc/key-users").read_text()
    ran = launcher.python(
        """
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        for number in (248, 249, 250):
            libc.syscall(number, b"user", b"canary", b"x", 1, -4)
            print(errno.errorcode[ctypes.get_errno()])
        """
    )
    assert ran.text == "ENOSYS\n" * 3
    launcher.await_nothing_left()
    ours = [line for line in Path("/proc/key-users").read_text().splitlines() if line not in before.splitlines()]
    assert not [line for line in ours if 0x70000000 <= int(line.split(":")[0]) < 0x7FFE0000], ours


def test_nothing_is_left_for_the_next_in_the_very_same_slot(launcher: LauncherUnderTest) -> None:
    """Files, unnamed ones, memory, shared memory and keys; the audit does the same in whichever slot it gets."""
    program = {"residue.py": (PROGRAMS / "residue.py").read_bytes()}

    def told(role: str) -> list[str]:
        return launcher.run((PYTHON, "residue.py", role), files=program).text.split()

    assert told("both")[1] == "succeeded", "what is planted is found where it is"
    word, slot = told("plant")
    assert word == "planted"
    # The lowest free one is taken: the same again soon, but for what else the host runs, or waits, at this moment.
    for _ in range(40):
        found, answer = told("search")
        assert answer == "held"
        if found == slot:
            break
    else:
        pytest.fail("the slot was not used again")


def test_crashes_and_denials_do_not_flood_the_kernels_log(launcher: LauncherUnderTest) -> None:
    log = KernelLog()
    assert log.is_readable
    log.new_lines()
    ran = launcher.python(
        """
        import ctypes, os, signal
        libc = ctypes.CDLL(None)
        denied = crashed = 0
        for _ in range(2000):
            denied += libc.unshare(0x10000000) != 0
            try:
                open("/usr/denied", "w")
            except OSError:
                denied += 1
        for _ in range(300):
            if os.fork() == 0:
                os.kill(os.getpid(), signal.SIGSEGV) if _ % 2 else ctypes.string_at(0)
            crashed += os.WIFSIGNALED(os.wait()[1])
        print(denied, crashed)
        """,
        wall_time_s=30,
        cpu_time_s=20,
    )
    assert ran.text == "4000 300\n"
    assert len(log.new_lines()) < 100
    log.close()


def test_a_crash_leaves_no_core_and_takes_no_time(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import ctypes, resource
        big = bytearray(64 << 20)
        print(resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1, flush=True)
        ctypes.string_at(0)
        """,
        collect=("**",),
    )
    assert ran.text == "True\n"
    assert (ran.verdict, ran.facts.signal) == ("signalled", 11)
    assert set(ran.files) == {"main.py"}
    assert not list(Path("/").glob("core*"))
    assert not os.path.exists("/var/lib/systemd/coredump") or not any(
        "python3" in name and "1879" in name for name in os.listdir("/var/lib/systemd/coredump")
    )
