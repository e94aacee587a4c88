"""The client's end of the launcher's socket: what workers and `sandboxd run` use. One stage at a time, any number in
a row."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from sandboxd.catalogue import Catalogue
from sandboxd.errors import InputError, LauncherUnavailable, ProtocolError
from sandboxd.jail import protocol
from sandboxd.jail.inputs import Outbox
from sandboxd.jail.protocol import CHUNK_BYTES, COUNT, STDIN_WINDOW_BYTES, Frames, Kind, Over, Refusal, frame
from sandboxd.result import StageOutcome
from sandboxd.spec import StageSpec

ANSWER_S = 10.0
"""What a launcher that lives takes at most, to tell its offer or to end a stage."""
_RETRY_S = 0.05


class LauncherClient:
    """Connects when first needed and keeps the connection; after a LauncherUnavailable the next call connects anew."""

    def __init__(self, socket_path: Path | str, *, connect_timeout_s: float = 15.0) -> None:
        self._path = str(socket_path)
        self._timeout_s = connect_timeout_s
        self._sock: socket.socket | None = None
        self._frames = Frames(protocol.TO_CLIENT)
        self._outbox = Outbox()

    def catalogue(self) -> Catalogue:
        """What the launcher offers. Raises LauncherUnavailable, also when it hangs, and ProtocolError."""
        with self._connected() as sock:
            sock.settimeout(ANSWER_S)
            sock.sendall(frame(Kind.CATALOGUE))
            for kind, body in self._incoming(sock):
                sock.settimeout(None)
                if kind is Kind.OFFER:
                    return protocol.decode(body, Catalogue)
                raise ProtocolError(f"{kind.name} instead of OFFER")
        raise LauncherUnavailable(f"the launcher at {self._path} went away")

    def run(
        self,
        stage: StageSpec,
        *,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
        stdin_fd: int | None = None,
        cancel_fd: int | None = None,
        on_idle: Callable[[], None] | None = None,
        idle_s: float = 1.0,
    ) -> StageOutcome:
        """Runs one stage and hands out its output as it comes.

        `stdin_fd` is read in chunks when `stage.stdin` is None. The sandbox is killed once `cancel_fd` is readable.
        `on_idle` is called at least every `idle_s` seconds while the stage runs.

        Raises: InputError (refused by the launcher's policies), LauncherUnavailable (the sandbox died with it),
        ProtocolError.
        """
        with self._connected() as sock:
            return _Run(
                sock, self._frames, self._outbox, stage, on_stdout, on_stderr, stdin_fd, cancel_fd, on_idle, idle_s
            ).outcome()

    def forget(self) -> None:
        """Nothing of the last stage stays here. The next one does it as well; who waits for that one calls this when
        he has handed on what came of the last."""
        self._outbox.clear()

    def close(self) -> None:
        self._outbox.close()  # whoever still reads it has nobody who would see what comes of it
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        if self._sock is not None and _is_over(self._sock):
            self.close()  # the launcher was started anew meanwhile: nothing was lost with this connection
        if self._sock is None:
            self._sock = self._connect()
            self._frames = Frames(protocol.TO_CLIENT)
        try:
            yield self._sock
        except OSError as error:
            self.close()
            raise LauncherUnavailable(f"the launcher at {self._path} went away: {error}") from error
        except InputError as error:
            if isinstance(error, _Unreadable):
                self.close()
            raise
        except BaseException:
            self.close()  # in the middle of a stage: end of file kills its sandbox
            raise

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + self._timeout_s
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(self._path)
            except PermissionError as error:
                sock.close()
                raise LauncherUnavailable(
                    f"{self._path}: permission denied; run as root or as the service user"
                ) from error
            except OSError as error:
                sock.close()
                if time.monotonic() >= deadline:
                    raise LauncherUnavailable(f"no launcher at {self._path}: {error.strerror}") from error
                time.sleep(_RETRY_S)
            else:
                return sock

    def _incoming(self, sock: socket.socket) -> Iterator[tuple[Kind, bytes | bytearray]]:
        while (frames := self._frames.receive(sock)) is not None:
            yield from frames


class _Unreadable(InputError):
    """What was to be sent on cannot be read, in the middle of a stage."""


class _Run:
    """One stage under way."""

    def __init__(
        self,
        sock: socket.socket,
        frames: Frames,
        outbox: Outbox,
        stage: StageSpec,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
        stdin_fd: int | None,
        cancel_fd: int | None,
        on_idle: Callable[[], None] | None,
        idle_s: float,
    ) -> None:
        self._sock = sock
        self._frames = frames
        self._descriptors: list[int] = []
        self._sinks = {Kind.STDOUT: on_stdout, Kind.STDERR: on_stderr}
        self._on_idle = on_idle
        self._idle_s = idle_s
        self._killed_s = math.inf
        self._window = STDIN_WINDOW_BYTES
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._stdin_fd = stdin_fd if stage.stdin is None else None
        self._cancel_fd = cancel_fd
        for fd in (self._stdin_fd, cancel_fd):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)
        with outbox.packed(stage) as (run, contents):
            _send(sock, frame(Kind.RUN, protocol.encode(run)), contents)
        if stage.stdin is None and stdin_fd is None:
            sock.sendall(frame(Kind.STDIN_END))

    def outcome(self) -> StageOutcome:
        """Raises as `LauncherClient.run`."""
        try:
            return self._await_outcome()
        finally:
            for fd in self._descriptors:
                os.close(fd)

    def _await_outcome(self) -> StageOutcome:
        next_idle = time.monotonic() + self._idle_s
        while True:
            ready = self._poll.poll(max(0, (next_idle - time.monotonic()) * 1000))
            if time.monotonic() >= next_idle:
                next_idle = time.monotonic() + self._idle_s
                if self._on_idle is not None:
                    self._on_idle()
            if time.monotonic() > self._killed_s + ANSWER_S:
                raise TimeoutError("it was told to end the stage, and does not answer")
            for fd, _events in ready:
                if fd == self._sock.fileno():
                    outcome = self._receive()
                    if outcome is not None:
                        return outcome
                elif fd == self._cancel_fd:
                    self._poll.unregister(fd)
                    self._killed_s = time.monotonic()
                    self._sock.sendall(frame(Kind.KILL))
                else:
                    self._forward_stdin(fd)

    def _receive(self) -> StageOutcome | None:
        frames = self._frames.receive(self._sock, self._descriptors)
        if frames is None:
            raise ConnectionResetError("end of file in the middle of a stage")
        for kind, body in frames:
            match kind:
                case Kind.STDOUT | Kind.STDERR:
                    self._sinks[kind](bytes(body))
                case Kind.TAKEN:
                    self._on_taken(COUNT.unpack(body)[0])
                case Kind.OUTCOME:
                    return self._with_contents(protocol.decode(body, Over))
                case Kind.REFUSED:
                    refusal = protocol.decode(body, Refusal)
                    raise InputError(refusal.field, refusal.message)
                case _:
                    raise ProtocolError(f"{kind.name} does not fit here")
        return None

    def _with_contents(self, over: Over) -> StageOutcome:
        """The outcome with its files' contents, out of the descriptor that came with it."""
        outcome = over.outcome
        if len(over.sizes) != len(outcome.files) or bool(self._descriptors) != any(over.sizes):
            raise ProtocolError("an outcome whose files and descriptor do not fit together")
        if not self._descriptors:
            return outcome
        files, offset = [], 0
        for file, size in zip(outcome.files, over.sizes, strict=True):
            content = os.pread(self._descriptors[0], size, offset)
            if len(content) != size:
                raise ProtocolError("the descriptor of an outcome holds less than it says")
            files.append(msgspec.structs.replace(file, content=content))
            offset += size
        return msgspec.structs.replace(outcome, files=tuple(files))

    def _forward_stdin(self, fd: int) -> None:
        """Sends one chunk; with the window used up stdin is left alone until the payload took some. Raises InputError
        when it cannot be read."""
        try:
            chunk = os.read(fd, min(CHUNK_BYTES, self._window))
        except OSError as error:
            raise _Unreadable("stdin", f"cannot be read: {error.strerror}") from None
        if chunk:
            self._window -= len(chunk)
            self._sock.sendall(frame(Kind.STDIN, chunk))
            if self._window == 0:
                self._poll.unregister(fd)
        else:
            self._stdin_fd = None
            self._poll.unregister(fd)
            self._sock.sendall(frame(Kind.STDIN_END))

    def _on_taken(self, count: int) -> None:
        if self._window == 0 and self._stdin_fd is not None:
            self._poll.register(self._stdin_fd, select.POLLIN)
        self._window += count


def _send(sock: socket.socket, message: bytes, fd: int | None) -> None:
    """All of it, the descriptor with its first byte."""
    if fd is not None:
        message = message[socket.send_fds(sock, [message], [fd]) :]
    if message:
        sock.sendall(message)


def _is_over(sock: socket.socket) -> bool:
    """Whether the other end has closed an idle connection."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
