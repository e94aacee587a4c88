"""Of a stream the first and the last half of the bound are kept, and everything else is counted exactly."""

from __future__ import annotations

import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.output import KeptOutput, StreamText

CHUNKS = st.lists(st.binary(max_size=40), max_size=30)
LIMITS = st.integers(min_value=0, max_value=60)


def keep(limit: int, *chunks: bytes) -> KeptOutput:
    kept = KeptOutput(limit)
    for chunk in chunks:
        kept.feed(chunk)
    return kept


def content(text: StreamText) -> bytes:
    return base64.b64decode(text.content) if text.encoding == "base64" else text.content.encode("utf-8")


@given(LIMITS, CHUNKS)
def test_the_first_and_last_half_are_kept_however_the_stream_is_cut(limit: int, chunks: list[bytes]) -> None:
    stream = b"".join(chunks)
    head, tail = keep(limit, *chunks).kept()
    if len(stream) <= limit:
        assert head + tail == stream
    else:
        assert head == stream[: limit // 2]
        assert tail == stream[len(stream) - (limit - limit // 2) :]


@given(LIMITS, CHUNKS)
def test_what_is_shown_and_what_is_dropped_make_the_whole(limit: int, chunks: list[bytes]) -> None:
    stream = b"".join(chunks)
    kept = keep(limit, *chunks)
    text = kept.text()
    shown = content(text)
    assert kept.total_bytes == len(stream)
    assert len(shown) <= limit
    assert len(shown) + text.dropped_bytes == len(stream)
    if text.gap_at_bytes is None:
        assert (shown, text.dropped_bytes) == (stream, 0)
    else:
        assert text.dropped_bytes > 0
        assert stream.startswith(shown[: text.gap_at_bytes])
        assert stream.endswith(shown[text.gap_at_bytes :])


@given(LIMITS, st.text(max_size=100))
def test_text_stays_text_and_its_gap_lies_between_characters(limit: int, text: str) -> None:
    stream = text.encode("utf-8")
    shown = keep(limit, stream).text()
    assert shown.encoding == "utf8"
    gap = shown.gap_at_bytes
    if gap is not None:
        data = shown.content.encode("utf-8")
        assert text.startswith(data[:gap].decode("utf-8"))
        assert text.endswith(data[gap:].decode("utf-8"))
        # No more is cut than the characters at the two edges: at most three bytes each.
        assert shown.dropped_bytes - (len(stream) - limit) <= 6


@given(LIMITS, CHUNKS)
def test_base64_is_used_exactly_for_what_is_not_utf8(limit: int, chunks: list[bytes]) -> None:
    kept = keep(limit, *chunks)
    stream = b"".join(chunks)
    if len(stream) <= limit:
        try:
            stream.decode("utf-8")
            encoding = "utf8"
        except UnicodeDecodeError:
            encoding = "base64"
        assert kept.text().encoding == encoding


def test_a_gap_in_the_middle_of_a_character_drops_the_character() -> None:
    text = keep(8, "€€€€€".encode()).text()
    assert text == StreamText(content="€€", encoding="utf8", dropped_bytes=9, gap_at_bytes=3)


def test_binary_output_is_kept_to_the_byte() -> None:
    text = keep(4, b"\xff\x00\x01\x02\x03\xfe").text()
    assert text.encoding == "base64"
    assert (content(text), text.dropped_bytes, text.gap_at_bytes) == (b"\xff\x00\x03\xfe", 2, 2)


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_output_within_the_bound_has_no_gap(size: int) -> None:
    text = keep(100, b"x" * size).text()
    assert (text.content, text.dropped_bytes, text.gap_at_bytes) == ("x" * size, 0, None)


def test_a_bound_of_nothing_keeps_nothing_and_counts_all() -> None:
    text = keep(0, b"abc", b"de").text()
    assert (text.content, text.dropped_bytes, text.gap_at_bytes) == ("", 5, 0)


@pytest.mark.parametrize("chunk_bytes", [1000, 65536, 1 << 20])
def test_memory_is_bounded_however_much_is_printed(chunk_bytes: int) -> None:
    limit, total = 1 << 16, 1 << 26
    chunk = bytes(chunk_bytes)
    kept = KeptOutput(limit)
    tracemalloc.start()
    for _ in range(total // chunk_bytes):
        kept.feed(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * limit + 2 * chunk_bytes
    assert kept.text().dropped_bytes == total // chunk_bytes * chunk_bytes - limit
