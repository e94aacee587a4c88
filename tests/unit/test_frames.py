"""A byte stream is cut into the same frames, however it arrives."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import ProtocolError
from sandboxd.jail.protocol import CHUNK_BYTES, HEADER, RUN_BYTES, TO_LAUNCHER, Frames, Kind, frame

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]))


@settings(deadline=None, max_examples=50)
@given(st.lists(SIZES, max_size=6), st.lists(st.integers(1, 100_000), min_size=1, max_size=20))
def test_frames_do_not_depend_on_how_the_stream_is_split(sizes: list[int], cuts: list[int]) -> None:
    bodies = [bytes([number]) * size for number, size in enumerate(sizes)]
    stream = memoryview(b"".join(frame(Kind.RUN, body) for body in bodies))
    frames, found = Frames(TO_LAUNCHER), []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.setblocking(False)
        turn = 0
        while stream:
            sent = theirs.send(stream[: cuts[turn % len(cuts)]])
            stream, turn = stream[sent:], turn + 1
            while True:
                try:
                    complete = frames.receive(ours)
                except BlockingIOError:
                    break
                assert complete is not None
                found += [(kind, bytes(body)) for kind, body in complete]
    assert found == [(Kind.RUN, body) for body in bodies]
    assert frames.pending_bytes == 0


def test_the_end_of_the_stream_is_told_in_a_long_body_too() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        frames = Frames(TO_LAUNCHER)
        with theirs:
            theirs.sendall(HEADER.pack(Kind.RUN, 1_000_000) + bytes(100))
        assert list(frames.receive(ours) or ()) == []
        assert frames.pending_bytes == 1_000_000, "what was announced is kept free"
        assert frames.receive(ours) is None


@pytest.mark.parametrize(
    "header", [HEADER.pack(0, 0), HEADER.pack(Kind.OUTCOME, 0), HEADER.pack(Kind.RUN, RUN_BYTES + 1)]
)
def test_what_may_not_be_sent_is_refused_by_its_header(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Frames(TO_LAUNCHER).feed(header))
