"""Refused system calls, told: the launcher receives each as a notification, counts it, and answers as the filter would.

After `REPORTS_MAX` the listener is closed and the kernel answers alone, with ENOSYS: a program cannot keep the launcher
busy. Nothing is ever let through: a notification is answered with an errno, so its arguments may change under our eyes
without harm. seccomp_unotify(2), Linux 5.0.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import struct
from collections import Counter

from sandboxd.jail import abi
from sandboxd.policy import bpf
from sandboxd.policy.seccomp import RET_ACTION, RET_DATA, RET_ERRNO, syscall_name
from sandboxd.result import DeniedSyscall

REPORTS_MAX = 64
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
"""struct seccomp_notif: id, pid, flags; then struct seccomp_data: nr, arch, instruction pointer, arguments."""
_ANSWER = struct.Struct("=QqiI")
"""struct seccomp_notif_resp: id, value, error, flags."""


class DeniedCalls:
    """Owns the listener; closed when the sandbox is taken down, or earlier."""

    def __init__(self, listener: int, program: bytes) -> None:
        """`program` is the filter as it would answer by itself."""
        self._fd = listener
        self._program = program
        self._counts: Counter[int] = Counter()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._on_readable)

    def counted(self) -> tuple[DeniedSyscall, ...]:
        """By frequency, then by name."""
        named = ((syscall_name(number), count) for number, count in self._counts.items())
        return tuple(
            DeniedSyscall(name=name, count=count) for name, count in sorted(named, key=lambda x: (-x[1], x[0]))
        )

    def _on_readable(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(0)):
            self.close()  # hung up: nobody is left whom the filter binds
            return
        notification = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._fd, abi.SECCOMP_IOCTL_NOTIF_RECV, notification)
            self._answer(*_NOTIFICATION.unpack(notification))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):  # ENOENT: the caller was killed meanwhile
                raise
        if self._counts.total() >= REPORTS_MAX:
            self.close()

    def _answer(
        self, notification_id: int, _pid: int, _flags: int, number: int, arch: int, _ip: int, *args: int
    ) -> None:
        verdict = bpf.evaluate(self._program, number, args, arch=arch)
        refusal = verdict & RET_DATA if verdict & RET_ACTION == RET_ERRNO else errno.ENOSYS
        self._counts[number] += 1
        answer = bytearray(_ANSWER.pack(notification_id, 0, -refusal, 0))
        fcntl.ioctl(self._fd, abi.SECCOMP_IOCTL_NOTIF_SEND, answer)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
