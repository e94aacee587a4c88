"""Installs seccomp programs and becomes a command: `/usr/bin/python3 -I seccomp_exec.py PROGRAM_FILE... -- COMMAND`.

As a payload is started, but for all that is not seccomp. A process of its own: no test runs under a filter itself.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2


class Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main() -> None:
    """Ends by execve; 125 when a filter cannot be installed."""
    divider = sys.argv.index("--")
    libc = ctypes.CDLL(None, use_errno=True)
    programs = []
    for path in sys.argv[1:divider]:
        with open(path, "rb") as file:
            content = file.read()
        programs.append(Program(len(content) // 8, content))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        sys.exit(125)
    for program in programs:
        if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
            sys.exit(125)
    command = sys.argv[divider + 1 :]
    os.execv(command[0], command)  # noqa: S606 - that is what this is for


if __name__ == "__main__":
    main()
