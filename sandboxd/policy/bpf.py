"""Evaluates classic BPF programs as seccomp runs them: a filter's answers without installing it.

Tests ask it about every rule; the launcher asks it what a reported call would have been answered.

The instructions that the kernel's seccomp_check_filter() admits and libseccomp makes; anything else is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ARCH_I386 = 0x40000003
X32_BIT = 0x40000000

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

_INSTRUCTION = struct.Struct("<HBBI")
# nr, arch, instruction pointer, six arguments: struct seccomp_data.
_DATA = struct.Struct("<II Q 6Q")


def evaluate(program: bytes, nr: int, args: Sequence[int] = (), *, arch: int = AUDIT_ARCH["x86_64"]) -> int:
    """What the program returns for this system call: `ALLOW`, `KILL_PROCESS`, `ERRNO | errno`."""
    data = _DATA.pack(nr, arch, 0, *(*args, *[0] * (6 - len(args))))
    instructions = list(_INSTRUCTION.iter_unpack(program))
    accumulator, counter = 0, 0
    while True:
        code, jump_true, jump_false, k = instructions[counter]
        counter += 1
        match code:
            case 0x20:  # ld [k]
                if k % 4 or k + 4 > _DATA.size:
                    raise ValueError(f"load of offset {k}")
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:  # and #k
                accumulator &= k
            case 0x05:  # ja k
                counter += k
            case 0x15:  # jeq #k
                counter += jump_true if accumulator == k else jump_false
            case 0x25:  # jgt #k
                counter += jump_true if accumulator > k else jump_false
            case 0x35:  # jge #k
                counter += jump_true if accumulator >= k else jump_false
            case 0x45:  # jset #k
                counter += jump_true if accumulator & k else jump_false
            case 0x06:  # ret #k
                return int(k)
            case _:
                raise ValueError(f"instruction {code:#x} at {counter - 1}")
