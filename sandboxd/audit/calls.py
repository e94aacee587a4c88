"""What the filter of ordinary jobs decides for every system call, and the reviewed table of that.

The case `every call` asks the kernel from inside a sandbox. It cannot tell a call that the filter refuses from one that
the kernel refuses in the same words; the compiled program, evaluated here, can.
"""

from __future__ import annotations

import errno
import platform
from collections.abc import Iterator

from sandboxd.audit.corpus import PROGRAMS
from sandboxd.policy import bpf
from sandboxd.policy.load import policy_folder, profile_path
from sandboxd.policy.profile import load_profile
from sandboxd.policy.seccomp import compile_profile, syscall_name

MACHINE = "x86_64"
"""Whose numbers were reviewed."""
TABLE = PROGRAMS / f"syscalls-{MACHINE}.txt"
NUMBERS = range(1024)
ARGUMENTS = (2**64 - 1, 0)
"""The value of all six arguments; a column of the table for each."""
UNKNOWN = "ENOSYS"
"""The decision about numbers that the table leaves out."""
_HEAD = "# number, name, decision with all arguments -1, with all 0; numbers that are not here: ENOSYS"


def decided() -> list[str]:
    """The table's lines, as the compiled filter decides."""
    program = compile_profile(load_profile(profile_path(policy_folder(), "default")))[0]
    lines = [_HEAD]
    for number in NUMBERS:
        name, decisions = syscall_name(number), [_decision(program, number, value) for value in ARGUMENTS]
        if set(decisions) != {UNKNOWN} or not name.isdecimal():
            lines.append(f"{number} {name} {' '.join(decisions)}")
    return lines


def differences() -> Iterator[str]:
    """What the filter decides otherwise than was reviewed; nothing on another machine than that of the table."""
    if platform.machine() != MACHINE:
        return
    reviewed, found = _by_number(TABLE.read_text().splitlines()), _by_number(decided())
    for number in NUMBERS:
        before, now = (each.get(number, [UNKNOWN] * len(ARGUMENTS)) for each in (reviewed, found))
        if before != now:
            yield f"{number} ({syscall_name(number)}): {', '.join(now)}; reviewed: {', '.join(before)}"


def _decision(program: bytes, number: int, value: int) -> str:
    """`allowed`, `killed`, an errno's name, or `succeeded` for a call that is answered as if it had been made."""
    answer = bpf.evaluate(program, number, (value,) * 6, arch=bpf.AUDIT_ARCH[MACHINE])
    if answer in (bpf.ALLOW, bpf.KILL_PROCESS):
        return "allowed" if answer == bpf.ALLOW else "killed"
    name = errno.errorcode.get(answer & 0xFFFF, "succeeded")
    return "EOPNOTSUPP" if name == "ENOTSUP" else name


def _by_number(lines: list[str]) -> dict[int, list[str]]:
    return {int(words[0]): words[2:] for words in map(str.split, lines[1:])}
