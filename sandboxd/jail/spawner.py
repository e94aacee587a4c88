"""The process that makes sandboxes' first processes: init, executed once, forks one for each that is asked for.

A fork of its small image takes a tenth of a millisecond; `posix_spawn` from here would block the event loop for four
times that, until the exec. Whom it makes are children of the launcher (CLONE_PARENT).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence

import structlog

log = structlog.get_logger()

_SOCKET_FD = 3
_STDIO = range(3)
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
"""By Python, and by the launcher."""


class Spawner:
    """Started with the launcher, and again should it have died."""

    def __init__(self, init_path: str, null_fd: int) -> None:
        self._init_path = init_path
        self._null_fd = null_fd
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._start()

    def spawn(self, descriptors: Sequence[int]) -> None:
        """Asks for a sandbox with these (`enum spawn_part`). What comes of it is reported on its control socket, which
        ends when nothing does. Raises OSError."""
        if self._socket is None:
            self._start()
        try:
            self._send(descriptors)
        except (BrokenPipeError, ConnectionResetError):
            log.error("the spawner died, and is started again")
            self.close()
            self._start()
            self._send(descriptors)

    def _send(self, descriptors: Sequence[int]) -> None:
        if self._socket is not None:
            socket.send_fds(self._socket, [b"s"], descriptors)

    def _start(self) -> None:
        """posix_spawn, never fork: this process has a big heap, and libraries may have threads."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # one that takes nothing any more must not stop the launcher
        with theirs:
            actions = [(os.POSIX_SPAWN_DUP2, self._null_fd, fd) for fd in _STDIO]
            actions.append((os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD))
            try:
                pid = os.posix_spawn(
                    self._init_path,
                    ["sandboxd-init"],
                    {},
                    file_actions=actions,
                    setsigmask=[],
                    setsigdef=_IGNORED,
                )
            except BaseException:
                ours.close()
                raise
        self._socket = ours
        # Not by its number: that is free for others as soon as it ends, for nobody reaps it but the kernel.
        self._pidfd = os.pidfd_open(pid)

    def close(self) -> None:
        """It is killed, for it may stand still; what it has not begun ends with it. `spawn` starts another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            ended.poll()
            os.close(self._pidfd)
            self._pidfd = -1
