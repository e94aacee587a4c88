"""Messages between a client (worker, `sandboxd run`) and the launcher, over a stream socket of the instance's run
directory.

    client                                  launcher
      CATALOGUE                    ->
                                   <-       OFFER
      RUN stage, descriptor        ->                      of what its files and its stdin hold, if anything
      STDIN chunk ... STDIN_END    ->                      only when the stage's stdin is streamed
                                   <-       TAKEN n        the payload's pipe took n bytes of it
                                   <-       STDOUT, STDERR chunk ...
      KILL                         ->                      at any time after RUN
                                   <-       OUTCOME, descriptor, or REFUSED; of what the stage leaves, if anything

One stage at a time on a connection; any number in a row. End of file from the client kills its sandbox. A frame is a
type, a length and a body; every type has its bound, and a peer that breaks it is cut off. Bodies are msgpack of the
frozen structs.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from sandboxd.catalogue import Catalogue
from sandboxd.errors import ProtocolError
from sandboxd.jail import syscalls
from sandboxd.result import StageOutcome
from sandboxd.spec import KIB, MIB, InputSizes, StageSpec, Struct

HEADER = struct.Struct("=B3xI")
COUNT = struct.Struct("=I")
"""Body of TAKEN."""
CHUNK_BYTES = 64 * KIB
STDIN_WINDOW_BYTES = 1 * MIB
"""Sent and not yet TAKEN: a client that sends more is cut off. Reading from it never stops, so that its end is seen."""
RUN_BYTES = 4 * MIB
INPUT_BYTES = 64 * MIB
"""Of a stage's files and stdin, which come in a descriptor."""
OUTCOME_BYTES = 4 * MIB
BUFFERED_BYTES = 512 * MIB
"""Of unfinished frames, stages, untaken stdin and unread answers, all clients together: they must not use up the
launcher's memory."""
COLLECT_FILES_MAX = 256
COLLECT_BYTES_MAX = 32 * MIB
"""Of what a stage leaves, which goes to the client in a descriptor."""


class Kind(enum.IntEnum):
    """Type of a frame."""

    CATALOGUE = 1
    RUN = 2
    STDIN = 3
    STDIN_END = 4
    KILL = 5
    OFFER = 16
    STDOUT = 17
    STDERR = 18
    OUTCOME = 19
    REFUSED = 20
    TAKEN = 21


TO_LAUNCHER = {Kind.CATALOGUE: 0, Kind.RUN: RUN_BYTES, Kind.STDIN: CHUNK_BYTES, Kind.STDIN_END: 0, Kind.KILL: 0}
"""What a client may send, and the bound of each body in bytes."""
TO_CLIENT = {
    Kind.OFFER: MIB,
    Kind.STDOUT: CHUNK_BYTES,
    Kind.STDERR: CHUNK_BYTES,
    Kind.OUTCOME: OUTCOME_BYTES,
    Kind.REFUSED: CHUNK_BYTES,
    Kind.TAKEN: COUNT.size,
}


class Run(Struct, frozen=True, kw_only=True):
    """A stage to run. Its files and its stdin are empty here: `sizes` says what of the descriptor is theirs."""

    stage: StageSpec
    sizes: InputSizes


class Over(Struct, frozen=True, kw_only=True):
    """A stage's outcome. Its files are empty here: `sizes` says what of the descriptor is theirs."""

    outcome: StageOutcome
    sizes: tuple[int, ...] = ()


class Refusal(Struct, frozen=True, kw_only=True):
    """The stage was not started: the request's fault."""

    field: str
    message: str


def frame(kind: Kind, body: bytes = b"") -> bytes:
    """One message as bytes."""
    return HEADER.pack(kind, len(body)) + body


class Frames:
    """Cuts a byte stream into frames; `allowed` are the types the peer may send, with their bounds.

    A long body is received where it will stay: `room()` is the place, `advance()` tells how much came.
    """

    def __init__(self, allowed: dict[Kind, int]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()
        self._kind: Kind | None = None
        self._body = bytearray()
        self._filled = 0

    @property
    def pending_bytes(self) -> int:
        """Kept for frames that are not complete yet."""
        return len(self._buffer) + len(self._body)

    def room(self) -> memoryview | None:
        """Where the rest of a long body belongs; None when `feed` is to be used."""
        return None if self._kind is None else memoryview(self._body)[self._filled :]

    def advance(self, count: int) -> Iterator[tuple[Kind, bytes | bytearray]]:
        """`count` bytes were put into `room()`."""
        self._filled += count
        if self._kind is not None and self._filled == len(self._body):
            kind, body = self._kind, self._body
            self._kind, self._body, self._filled = None, bytearray(), 0
            yield kind, body

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes | bytearray]]:
        """Complete frames so far. Raises ProtocolError for an unknown type or a body over its bound."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            number, length = HEADER.unpack_from(self._buffer)
            bound = self._allowed.get(number)
            if bound is None:
                raise ProtocolError(f"unexpected message of type {number}")
            if length > bound:
                raise ProtocolError(f"{Kind(number).name} of {length} bytes; at most {bound}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                if length > CHUNK_BYTES:
                    self._begin_long(Kind(number), length)
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Kind(number), body

    def _begin_long(self, kind: Kind, length: int) -> None:
        self._kind, self._body = kind, bytearray(length)
        self._filled = len(self._buffer) - HEADER.size
        self._body[: self._filled] = self._buffer[HEADER.size :]
        self._buffer.clear()

    def receive(
        self, sock: socket.socket, descriptors: list[int] | None = None
    ) -> Iterator[tuple[Kind, bytes | bytearray]] | None:
        """One read, and the frames that it completes; None at end of file. A descriptor that came along is added to
        `descriptors`, if they may. Raises as `feed` and recv(2)."""
        room = self.room()
        if room is not None:
            with room:
                count = sock.recv_into(room)
            return self.advance(count) if count else None
        if descriptors is None:
            data = sock.recv(CHUNK_BYTES)
        else:
            data, fds = syscalls.receive(sock, CHUNK_BYTES, 1)
            descriptors += fds
        return self.feed(data) if data else None


encode = msgspec.msgpack.encode
T = TypeVar("T")


# Made here, once: msgspec prepares a type when it is first decoded, and two threads that both do so crash the process.
_DECODERS: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Catalogue, Over, Refusal, Run)
}


def decode(body: bytes | bytearray, kind: type[T]) -> T:
    """A body as a value of one of the types that are sent. Raises ProtocolError with the key that is wrong."""
    try:
        value: T = _DECODERS[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed {kind.__name__}: {error}") from error
    return value
