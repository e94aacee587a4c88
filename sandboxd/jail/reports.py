"""What init reports: fixed-size records over the control socket, each once, each sender's in order (`struct report` of
`init/wire.h`)."""

from __future__ import annotations

import enum
import os
import socket
import struct

from sandboxd.errors import ProtocolError
from sandboxd.jail import syscalls
from sandboxd.spec import Struct

_REPORT = struct.Struct("=3Ii2I4Q")
SIZE_BYTES = _REPORT.size


class ReportKind(enum.IntEnum):
    """`enum report_kind`."""

    PIDFD = 1
    TREE = 2
    READY = 3
    HELD = 4
    STARTED = 5
    NOEXEC = 6
    ENDED = 7
    FAILED = 8
    OUTER = 9


_KINDS = frozenset(ReportKind)
FAILURES_MAX = 3
"""Of outer, PID 1 and the payload's process, each of which ends with it."""
_AFTER = {
    ReportKind.OUTER: None,
    ReportKind.PIDFD: None,
    ReportKind.TREE: ReportKind.PIDFD,
    ReportKind.READY: ReportKind.TREE,
    ReportKind.HELD: ReportKind.TREE,
    ReportKind.STARTED: ReportKind.READY,
    ReportKind.NOEXEC: ReportKind.STARTED,
    ReportKind.ENDED: ReportKind.HELD,
}
"""What must have come before."""
_WITH_FD = (ReportKind.OUTER, ReportKind.PIDFD, ReportKind.TREE)
_FD_IS = {
    ReportKind.OUTER: syscalls.is_child,
    ReportKind.PIDFD: syscalls.is_child,
    ReportKind.READY: syscalls.is_seccomp_listener,
}
"""What is waited for until the sandbox is gone must be what it should: another descriptor may stay silent for ever."""


class Report(Struct, frozen=True, kw_only=True):
    kind: ReportKind
    phase: int
    step: int
    error: int
    status: int
    alone: bool
    exec_ns: int
    end_ns: int
    payload_cpu_ns: int
    init_cpu_ns: int
    fd: int | None


class ReportReader:
    """Reads reports and insists on their order; owns nothing it returns."""

    def __init__(self) -> None:
        self._seen: set[ReportKind | None] = {None}
        self._failures = 0

    def read(self, control: socket.socket) -> Report | None:
        """The next report; None at end of file. Raises BlockingIOError when there is none yet, ProtocolError out of
        order."""
        data, fds = syscalls.receive(control, _REPORT.size + 1, 1)
        if not data and not fds:
            return None
        try:
            return self._report(data, fds)
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise

    def _report(self, data: bytes, fds: list[int]) -> Report:
        if len(data) != _REPORT.size:
            raise ProtocolError(f"init sent {len(data)} bytes instead of {_REPORT.size}")
        number, phase, step, error, status, alone, exec_ns, end_ns, payload_ns, init_ns = _REPORT.unpack(data)
        kind = self._check(number, fds)
        return Report(
            kind=kind,
            phase=phase,
            step=step,
            error=error,
            status=status,
            alone=bool(alone),
            exec_ns=exec_ns,
            end_ns=end_ns,
            payload_cpu_ns=payload_ns,
            init_cpu_ns=init_ns,
            fd=fds[0] if fds else None,
        )

    def _check(self, number: int, fds: list[int]) -> ReportKind:
        """FAILED may come at any time, from PID 1 also before outer sent its pidfd: the order goes on without it."""
        if number not in _KINDS:
            raise ProtocolError(f"init sent a report of kind {number}")
        kind = ReportKind(number)
        if kind is ReportKind.FAILED:
            self._failures += 1
            if self._failures > FAILURES_MAX:
                raise ProtocolError(f"init sent more than {FAILURES_MAX} failures")
        else:
            if kind in self._seen or _AFTER[kind] not in self._seen:
                raise ProtocolError(f"init sent {kind.name} out of order")
            self._seen.add(kind)
        if bool(fds) != (kind in _WITH_FD) and kind is not ReportKind.READY:
            raise ProtocolError(f"init sent {kind.name} with {len(fds)} descriptors")
        if fds and kind in _FD_IS and not _FD_IS[kind](fds[0]):
            raise ProtocolError(f"init sent {kind.name} with another descriptor than is due")
        return kind
