"""What arrives on the launcher's sockets, byte by byte: reports of an init, and frames of a client."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
from fuzzrig import TIMEOUT_S, explore
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import ProtocolError
from sandboxd.jail import reports
from sandboxd.jail.protocol import CHUNK_BYTES, HEADER, TO_LAUNCHER, Frames, Kind
from sandboxd.jail.reports import Report, ReportKind, ReportReader

EXAMPLES = 300


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def heard(reader: ReportReader, ours: socket.socket) -> list[Report]:
    """All that has arrived; raises what the reader raises."""
    found: list[Report] = []
    while True:
        try:
            report = reader.read(ours)
        except BlockingIOError:
            return found
        assert report is not None
        found.append(report)


def packed(kind: int) -> bytes:
    return reports._REPORT.pack(kind, *[0] * 9)


REPORTS = st.one_of(st.integers(0, 11).map(packed), st.binary(min_size=1, max_size=80))
IN_ORDER = [ReportKind.OUTER, ReportKind.PIDFD, ReportKind.TREE, ReportKind.READY, ReportKind.HELD, ReportKind.STARTED]


@pytest.mark.timeout(TIMEOUT_S)
def test_a_report_is_read_in_its_order_or_refused_and_no_descriptor_is_lost() -> None:
    @given(st.integers(0, len(IN_ORDER)), st.lists(st.tuples(REPORTS, st.integers(0, 3)), max_size=6))
    def reads(true_ones: int, said: list[tuple[bytes, int]]) -> None:
        pidfd, before = os.pidfd_open(os.getppid()), open_descriptors()
        child = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
        child_fd = os.pidfd_open(child)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        reader, kinds = ReportReader(), set()
        try:
            with ours, theirs:
                for kind in IN_ORDER[:true_ones]:
                    socket.send_fds(theirs, [packed(kind)], [child_fd] if kind in IN_ORDER[:3] else [])
                for content, descriptors in said:
                    socket.send_fds(theirs, [content], [pidfd] * descriptors)
                for number in range(true_ones + len(said)):
                    try:
                        report = reader.read(ours)
                    except ProtocolError:
                        assert number >= true_ones, "a true report is refused"
                        continue
                    assert report is not None
                    if report.fd is not None:
                        os.close(report.fd)
                    assert report.kind is ReportKind.FAILED or report.kind not in kinds
                    assert number < true_ones or report.kind not in (ReportKind.OUTER, ReportKind.PIDFD), "not a child"
                    kinds.add(report.kind)
        finally:
            signal.pidfd_send_signal(child_fd, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(child_fd)
            assert open_descriptors() == before
            os.close(pidfd)

    explore(reads, EXAMPLES)


@pytest.mark.parametrize("kind", [ReportKind.OUTER, ReportKind.PIDFD])
def test_what_is_waited_for_must_be_a_childs_pidfd(pair: tuple[socket.socket, socket.socket], kind: ReportKind) -> None:
    """Anything else may never become readable, and the sandbox would never be gone; or be so at once, and it would be
    measured while it lives."""
    ours, theirs = pair
    silent, end = os.pipe()
    parent = os.pidfd_open(os.getppid())
    before = open_descriptors()
    for fd in (silent, parent, theirs.fileno()):
        socket.send_fds(theirs, [packed(kind)], [fd])
        with pytest.raises(ProtocolError, match="another descriptor"):
            heard(ReportReader(), ours)
    assert open_descriptors() == before
    for fd in (silent, end, parent):
        os.close(fd)


def test_a_child_that_has_ended_already_is_known_by_its_pidfd(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    found = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as the launcher does
    child = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
    fd = os.pidfd_open(child)
    try:
        for ended in (False, True):
            if ended:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                with pytest.raises(ChildProcessError):
                    os.waitpid(child, 0)
            socket.send_fds(theirs, [packed(ReportKind.PIDFD)], [fd])
            (report,) = heard(ReportReader(), ours)
            assert report.fd is not None
            os.close(report.fd)
    finally:
        signal.signal(signal.SIGCHLD, found)
        os.close(fd)


def expected(stream: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """The frames at a stream's start, and whether it goes on with a header that is refused."""
    found, at = [], 0
    while len(stream) - at >= HEADER.size:
        number, length = HEADER.unpack_from(stream, at)
        if number not in TO_LAUNCHER or length > TO_LAUNCHER[number]:
            return found, True
        if len(stream) - at - HEADER.size < length:
            break
        found.append((number, stream[at + HEADER.size : at + HEADER.size + length]))
        at += HEADER.size + length
    return found, False


LENGTHS = st.one_of(
    st.integers(0, 300), st.sampled_from([CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2**31, 2**32 - 1])
)
PIECES = st.one_of(
    st.binary(max_size=40),
    st.builds(HEADER.pack, st.sampled_from([*Kind, 0, 255]), LENGTHS),
    st.builds(lambda kind, size: HEADER.pack(kind, size) + bytes(size), st.sampled_from(Kind), st.integers(0, 200_000)),
)


@pytest.mark.timeout(TIMEOUT_S)
def test_any_stream_is_cut_as_its_headers_say_however_it_arrives() -> None:
    @given(st.lists(PIECES, max_size=6), st.lists(st.integers(1, 90_000), min_size=1, max_size=10))
    def cut(pieces: list[bytes], sizes: list[int]) -> None:
        stream = b"".join(pieces)
        frames, found, refused, turn, left = Frames(TO_LAUNCHER), [], False, 0, memoryview(stream)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            try:
                while left:
                    left = left[theirs.send(left[: sizes[turn % len(sizes)]]) :]
                    turn += 1
                    while True:
                        try:
                            complete = frames.receive(ours)
                        except BlockingIOError:
                            break
                        assert complete is not None
                        for kind, body in complete:
                            found.append((int(kind), bytes(body)))
                        assert frames.pending_bytes <= max(TO_LAUNCHER.values()) + CHUNK_BYTES + HEADER.size
            except ProtocolError:
                refused = True
        assert (found, refused) == expected(stream)

    explore(cut, EXAMPLES)
