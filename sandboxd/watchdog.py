"""Signs of life: a process that hangs is ended and started anew, as one that died is.

The protocol is systemd's, sd_notify(3): who has NOTIFY_SOCKET in its environment sends READY=1, STOPPING=1, and
WATCHDOG=1 again and again. `serve` listens to its children so, and systemd to a unit with WatchdogSec.
"""

from __future__ import annotations

import os
import socket
import struct
import time

BEAT_S = 2.0
"""Between two signs of life, at least."""
SILENT_MAX_S = 30.0
"""After so long without one a child of `serve` is killed. A worker may wait for Redis for two thirds of it."""
_CREDENTIALS = struct.Struct("=3i")
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
    """A supervisor's end: an abstract socket to which anybody may send; the kernel says who did (unix(7))."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind("")  # the kernel chooses a name
        self.socket.setblocking(False)
        self.address = "@" + self.socket.getsockname()[1:].decode()
        """For NOTIFY_SOCKET."""

    def receive(self) -> set[int]:
        """Pids of those who gave a sign of life since the last time."""
        alive: set[int] = set()
        while True:
            try:
                data, ancillary, _flags, _address = self.socket.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return alive
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and b"WATCHDOG=1" in data:
                    alive.add(_CREDENTIALS.unpack(content)[0])

    def close(self) -> None:
        self.socket.close()
