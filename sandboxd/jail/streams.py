"""A payload's stdin, stdout and stderr, as the launcher holds them: pipes that never block, counted byte for byte."""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Callable

from sandboxd.jail.inputs import readable
from sandboxd.jail.protocol import CHUNK_BYTES


class Stream(enum.IntEnum):
    STDOUT = 0
    STDERR = 1


class Streams:
    """Made with the sandbox. `ends` are the payload's descriptors 0, 1 and 2: the caller passes them on and closes
    them. stdin is empty until the job brings its own.

    All are given to the payload's id, so that it can open /dev/stdin and its siblings.
    """

    def __init__(self, owner_id: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner_id = owner_id
        self._on_chunk: Callable[[Stream, bytes], None] | None = None
        self._on_taken: Callable[[int], object] = int
        self._fds = [-1, -1]
        self._stdin = -1
        self._queue = bytearray()
        self._closing = False
        self._paused = False
        self.total_bytes = [0, 0]
        self.ends: list[int] = []
        try:
            self.ends.append(readable(-1, 0, 0))
            for stream in Stream:
                self._fds[stream], write_end = os.pipe2(os.O_CLOEXEC)
                self.ends.append(write_end)
                os.set_blocking(self._fds[stream], False)
                os.fchown(write_end, owner_id, owner_id)
            for stream in Stream:
                self._loop.add_reader(self._fds[stream], self._read_chunk, stream)
        except BaseException:
            self.close()
            raise

    def connect(self, on_chunk: Callable[[Stream, bytes], None], on_taken: Callable[[int], None]) -> None:
        """Whom output, and what the payload took of stdin, is told."""
        self._on_chunk = on_chunk
        self._on_taken = on_taken

    def open_stdin(self) -> int:
        """A pipe for chunks that will come: the payload's end, which the caller passes on and closes."""
        read_end, self._stdin = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._stdin, False)
        os.fchown(read_end, self._owner_id, self._owner_id)
        return read_end

    def close_ends(self) -> None:
        """The payload has its ends, or will never get them."""
        for fd in self.ends:
            os.close(fd)
        self.ends.clear()

    def write_stdin(self, chunk: bytes) -> None:
        """Queues a chunk; `on_taken` is called as the pipe takes it. What a payload that closed stdin would get is
        dropped, and counts as taken."""
        if self._stdin >= 0:
            self._queue += chunk
            self._flush_stdin()
        else:
            self._on_taken(len(chunk))

    def close_stdin(self) -> None:
        """The payload sees the end once it has read what is queued."""
        self._closing = True
        if self._stdin >= 0:
            self._flush_stdin()

    def _flush_stdin(self) -> None:
        try:
            while self._queue:
                taken = os.write(self._stdin, self._queue[:CHUNK_BYTES])
                del self._queue[:taken]
                self._on_taken(taken)
        except BlockingIOError:
            self._loop.add_writer(self._stdin, self._flush_stdin)
            return
        except BrokenPipeError:
            self._on_taken(len(self._queue))
            self._queue.clear()
            self._closing = True
        self._loop.remove_writer(self._stdin)
        if self._closing:
            os.close(self._stdin)
            self._stdin = -1

    def pause(self, paused: bool) -> None:
        """Back-pressure: while paused nothing is read, and the payload blocks on a full pipe."""
        if paused == self._paused:
            return
        self._paused = paused
        for stream in Stream:
            if self._fds[stream] >= 0:
                if paused:
                    self._loop.remove_reader(self._fds[stream])
                else:
                    self._loop.add_reader(self._fds[stream], self._read_chunk, stream)

    def _read_chunk(self, stream: Stream) -> None:
        """One read, when there is something: the end closes the stream."""
        chunk = self._read(stream)
        if chunk:
            self._take(stream, chunk)
        elif chunk is not None:
            self._close(stream)

    def _read(self, stream: Stream) -> bytes | None:
        """Empty at the end, None when nothing is there now."""
        try:
            return os.read(self._fds[stream], CHUNK_BYTES)
        except BlockingIOError:
            return None

    def _take(self, stream: Stream, chunk: bytes) -> None:
        self.total_bytes[stream] += len(chunk)
        if self._on_chunk is not None:
            self._on_chunk(stream, chunk)

    def drain(self) -> None:
        """Reads what a dead sandbox left in its pipes: at most a pipe's capacity each. They are closed later: an answer
        need not wait for that."""
        for stream in Stream:
            while self._fds[stream] >= 0 and (chunk := self._read(stream)):
                self._take(stream, chunk)

    def _close(self, stream: Stream) -> None:
        if self._fds[stream] >= 0:
            self._loop.remove_reader(self._fds[stream])
            os.close(self._fds[stream])
            self._fds[stream] = -1

    def close(self) -> None:
        """Idempotent."""
        self.close_ends()
        for stream in Stream:
            self._close(stream)
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
