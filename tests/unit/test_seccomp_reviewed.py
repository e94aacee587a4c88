"""Every system call number from 0 to 1023, in a child inside the sandbox, with all arguments -1 and with all of them 0.

`syscalls-x86_64.txt` is the reviewed answer: what the filter decides for each. It is compared with what the compiled
program says (evaluated here) and with what the kernel answers in the sandbox. After a change of the profile that is
meant: `REWRITE_SYSCALLS=1 make test PYTEST_ARGS=tests/attacks/test_syscall_sweep.py`, and read the difference.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from jailrig import LauncherUnderTest

from sandboxd.policy import bpf
from sandboxd.policy.load import policy_folder, profile_path
from sandboxd.policy.profile import load_profile
from sandboxd.policy.seccomp import compile_profile, syscall_name

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the reviewed numbers are those of x86_64"),
]

GOLDEN = Path(__file__).with_name("syscalls-x86_64.txt")
NUMBERS = range(1024)
ALLOWED, KILLED, PRETENDED = "allowed", "killed", "succeeded"
ARGUMENTS = {"number": 2**64 - 1, "number-0": 0}
"""Name of the attempt: the value of all six arguments."""
UNFILTERED = {335: "uretprobe", 336: "uprobe"}
"""Since 6.14 the kernel lets these pass every filter, and refuses them itself to all but its own trampoline
(kernel/seccomp.c)."""


@pytest.fixture(scope="module")
def program() -> bytes:
    return compile_profile(load_profile(profile_path(policy_folder(), "default")))[0]


def decision(program: bytes, number: int, value: int) -> str:
    """`allowed`, `killed`, an errno's name, or `succeeded` for a call that is answered as if it had been made."""
    answer = bpf.evaluate(program, number, (value,) * 6, arch=bpf.AUDIT_ARCH["x86_64"])
    if answer in (bpf.ALLOW, bpf.KILL_PROCESS):
        return ALLOWED if answer == bpf.ALLOW else KILLED
    return plain(errno.errorcode.get(answer & 0xFFFF, PRETENDED))


def plain(name: str) -> str:
    return "EOPNOTSUPP" if name == "ENOTSUP" else name


def reviewed() -> dict[int, tuple[str, ...]]:
    lines = [line.split() for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#")]
    return {int(number): tuple(decisions) for number, _name, *decisions in lines}


def test_the_filter_decides_as_was_reviewed(program: bytes) -> None:
    decided = {number: tuple(decision(program, number, value) for value in ARGUMENTS.values()) for number in NUMBERS}
    if os.environ.get("REWRITE_SYSCALLS"):
        lines = ["# number, name, decision with all arguments -1, with all 0; numbers that are not here: ENOSYS"]
        lines += [
            f"{number} {syscall_name(number)} {' '.join(decisions)}"
            for number, decisions in decided.items()
            if set(decisions) != {"ENOSYS"} or not syscall_name(number).isdecimal()
        ]
        GOLDEN.write_text("\n".join(lines) + "\n")
    known = reviewed()
    assert decided == {number: known.get(number, ("ENOSYS", "ENOSYS")) for number in NUMBERS}


@pytest.mark.parametrize("attempt", ARGUMENTS)
def test_the_kernel_answers_as_the_filter_decided(
    launcher: LauncherUnderTest, attempts: bytes, program: bytes, attempt: str
) -> None:
    answers = sweep(launcher, attempts, attempt)
    assert set(answers) == set(NUMBERS)
    wrong = {}
    for number, answer in answers.items():
        expected = decision(program, number, ARGUMENTS[attempt])
        if number in UNFILTERED:
            assert answer != "succeeded"
        elif expected == KILLED:
            wrong |= {number: (expected, answer)} if answer != "SIGSYS" else {}
        elif expected != ALLOWED and answer != expected:
            wrong[number] = (expected, answer)
    assert not wrong
    assert launcher.run(("true",)).verdict == "ok"


def test_control_without_the_filter_more_of_them_are_known(
    launcher: LauncherUnderTest, control: Callable[..., LauncherUnderTest], attempts: bytes
) -> None:
    def unknown(under_test: LauncherUnderTest) -> int:
        return sum(answer == "ENOSYS" for answer in sweep(under_test, attempts, "number").values())

    assert unknown(control("seccomp")) < unknown(launcher) - 20


def sweep(launcher: LauncherUnderTest, attempts: bytes, attempt: str) -> dict[int, str]:
    ran = launcher.run(("./attempts", f"sweep={attempt}"), files={"attempts": attempts}, wall_time_s=60)
    assert ran.verdict == "ok", (ran.judgement, ran.stderr)
    return {int(line.split()[0].split("=")[1]): plain(line.split()[1]) for line in ran.text.splitlines()}
