"""What is kept of a stream: its first and its last half, and an exact count of what lies between.

A program may print without end; what is held here never exceeds the bound and one chunk.
"""

from __future__ import annotations

import base64

from sandboxd.spec import Struct


class StreamText(Struct, frozen=True, kw_only=True):
    """A stream as a client gets it."""

    content: str
    encoding: str
    """`utf8`, or `base64` when what is kept is not UTF-8."""
    dropped_bytes: int
    """Bytes of the stream that are not in `content`."""
    gap_at_bytes: int | None
    """Where they are missing, as an offset into the bytes of `content` (before base64); None when nothing is missing.
    """


class KeptOutput:
    """Takes a stream chunk by chunk and keeps the first and the last half of `limit_bytes` of it."""

    def __init__(self, limit_bytes: int) -> None:
        self._head_max = limit_bytes // 2
        self._tail_max = limit_bytes - self._head_max
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0
        """All bytes of the stream so far."""

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the stream."""
        self.total_bytes += len(chunk)
        room = self._head_max - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        if len(chunk) >= self._tail_max:
            self._tail[:] = chunk[len(chunk) - self._tail_max :]
            return
        self._tail += chunk
        # Cut rarely: removing the front of a buffer at each small chunk would copy the whole buffer each time.
        if len(self._tail) > 2 * self._tail_max:
            del self._tail[: -self._tail_max]

    def kept(self) -> tuple[bytes, bytes]:
        """First and last part; the stream is one after the other when nothing was dropped."""
        tail = self._tail[-self._tail_max :] if self._tail_max else b""
        return bytes(self._head), bytes(tail)

    def text(self) -> StreamText:
        """The stream for a client; in UTF-8 the gap lies between characters, and cut characters count as dropped."""
        head, tail = self.kept()
        dropped = self.total_bytes - len(head) - len(tail)
        if dropped == 0:
            return _encode(head + tail, 0, None)
        whole_head, whole_tail = _without_cut_end(head), _without_cut_start(tail)
        cut = len(head) + len(tail) - len(whole_head) - len(whole_tail)
        text = _decode(whole_head + whole_tail)
        if text is None:
            return _encode(head + tail, dropped, len(head))
        return StreamText(content=text, encoding="utf8", dropped_bytes=dropped + cut, gap_at_bytes=len(whole_head))


def _encode(data: bytes, dropped: int, gap: int | None) -> StreamText:
    text = _decode(data)
    if text is not None:
        return StreamText(content=text, encoding="utf8", dropped_bytes=dropped, gap_at_bytes=gap)
    encoded = base64.b64encode(data).decode("ascii")
    return StreamText(content=encoded, encoding="base64", dropped_bytes=dropped, gap_at_bytes=gap)


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _without_cut_end(data: bytes) -> bytes:
    """`data` without the first bytes of a character whose rest was cut off; anything else that is not UTF-8 stays."""
    for length in range(1, min(4, len(data) + 1)):
        lead = data[-length]
        if lead & 0xC0 == 0x80:
            continue
        needed = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
        return data[:-length] if needed > length else data
    return data


def _without_cut_start(data: bytes) -> bytes:
    """`data` without up to three bytes that continue a character whose beginning was cut off."""
    length = 0
    while length < min(3, len(data)) and data[length] & 0xC0 == 0x80:
        length += 1
    return data[length:]
