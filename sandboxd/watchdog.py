"""Signs of life: a process that hangs is ended and started anew, as one that died is.

The protocol is systemd's, sd_notify(3): who has NOTIFY_SOCKET in its environment sends READY=1, STOPPING=1, and
WATCHDOG=1 again and again. `serve` listens to its children so, and systemd to a unit with WatchdogSec.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import struct
import time
from pathlib import Path

from sandboxd.instance import SERVICE_USER

BEAT_S = 2.0
"""Between two signs of life, at least."""
SILENT_MAX_S = 30.0
"""After so long without one a child of `serve` is killed. A worker may wait for Redis for two thirds of it."""
_CREDENTIALS = struct.Struct("=3i")
MESSAGES_MAX = 64
"""Of one look: many times what the children of a service send, and more than the kernel keeps (max_dgram_qlen)."""
_MESSAGE_BYTES = 256
_next_beat_s = 0.0


def notify(state: str) -> None:
    """Tells whoever started this process how it stands; does nothing where nobody asks for that."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return  # who listens is gone, or does not keep up: both are his to notice


def beat() -> None:
    """Called by a process's main loop, as often as it likes."""
    global _next_beat_s  # of the process, as its environment is
    now_s = time.monotonic()
    if now_s >= _next_beat_s:
        _next_beat_s = now_s + BEAT_S
        notify("WATCHDOG=1")


class Listener:
    """A supervisor's end: a socket to which root and the service user may send; the kernel says who did (unix(7))."""

    def __init__(self, path: Path) -> None:
        """At `path`, where a dead predecessor's may lie. Its folder keeps others away."""
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._path.unlink(missing_ok=True)
        self.socket.bind(str(self._path))
        with contextlib.suppress(KeyError):  # no service user: root alone
            os.chown(self._path, pwd.getpwnam(SERVICE_USER).pw_uid, 0)
        self._path.chmod(0o600)
        self.socket.setblocking(False)
        self.address = str(self._path)
        """For NOTIFY_SOCKET."""

    def receive(self) -> tuple[set[int], bool]:
        """Pids of those who gave a sign of life since the last time, and whether somebody sends so many messages that
        others' may have been lost: nobody can be called silent then."""
        alive: set[int] = set()
        for _ in range(MESSAGES_MAX):
            try:
                data, ancillary, _flags, _address = self.socket.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return alive, False
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and b"WATCHDOG=1" in data:
                    alive.add(_CREDENTIALS.unpack(content)[0])
        return alive, True

    def close(self) -> None:
        self.socket.close()
        self._path.unlink(missing_ok=True)
