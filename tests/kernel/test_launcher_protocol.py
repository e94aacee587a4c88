"""The launcher's border: it trusts nothing that a client sends, and one bad client disturbs no other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest
from jailrig import LauncherUnderTest

from sandboxd.errors import InputError
from sandboxd.instance import SERVICE_USER
from sandboxd.jail import abi, protocol, syscalls
from sandboxd.jail.protocol import HEADER, STDIN_WINDOW_BYTES, Kind, Over, frame
from sandboxd.spec import STDIN_MAX_BYTES, InputFile, StageSpec


@pytest.fixture
def raw(launcher: LauncherUnderTest) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(str(launcher.socket))
        yield connection
    assert launcher.run(("true",)).verdict == "ok", "the launcher serves others on"


def closed(connection: socket.socket) -> bool:
    """Whether the launcher cut the connection off, having said nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "sent",
    [
        HEADER.pack(99, 0),
        HEADER.pack(0, 0),
        HEADER.pack(Kind.OUTCOME, 0),
        HEADER.pack(Kind.RUN, protocol.RUN_BYTES + 1),
        HEADER.pack(Kind.CATALOGUE, 1),
        HEADER.pack(Kind.STDIN, protocol.CHUNK_BYTES + 1),
        HEADER.pack(Kind.RUN, 2**32 - 1),
        frame(Kind.RUN, b""),
        frame(Kind.RUN, b"\xc1"),
        frame(Kind.RUN, msgspec.msgpack.encode([])),
        frame(Kind.RUN, msgspec.msgpack.encode({"name": "run"})),
        frame(Kind.RUN, b"\x81" * 100_000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda sent: sent[:12].hex(),
)
def test_a_malformed_message_ends_the_connection(raw: socket.socket, sent: bytes) -> None:
    raw.sendall(sent)
    assert closed(raw)


def encoded(launcher: LauncherUnderTest, **changes: object) -> bytes:
    """A RUN message whose stage has these fields."""
    fields = msgspec.msgpack.decode(protocol.encode(launcher.stage(("sleep", "100"))))
    return run_message({**fields, **changes})


def run_message(stage: object, files: Sequence[int] = (), stdin: int = 0) -> bytes:
    sizes = {"files": files, "stdin": stdin}
    return frame(Kind.RUN, msgspec.msgpack.encode({"stage": stage, "sizes": sizes}))


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"mounts": ["/"]},
        {"argv": "x"},
        {"env": {1: "x"}},
        {"limits": {}},
        {"stdin": 7},
        {"argv": ["x"] * 513},
        {"files": [{"path": f"f{number}", "content": b""} for number in range(10_000)]},
        {"env": {f"v{number}": "" for number in range(10_000)}},
        {"collect": ["*"] * 10_000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_stage_of_another_shape_ends_the_connection(
    launcher: LauncherUnderTest, raw: socket.socket, change: dict[str, object]
) -> None:
    raw.sendall(encoded(launcher, **change))
    assert closed(raw)


def memfd(content: bytes = b"12345") -> int:
    return syscalls.sealed_memfd("inputs", [content])


def unsealed() -> int:
    fd = os.memfd_create("inputs", os.MFD_ALLOW_SEALING)
    os.write(fd, b"12345")
    return fd


def half_sealed() -> int:
    fd = unsealed()
    fcntl.fcntl(fd, abi.F_ADD_SEALS, abi.F_SEAL_SHRINK | abi.F_SEAL_GROW)
    return fd


def on_disk() -> int:
    fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"12345")
    return fd


FILE = [{"path": "f", "content": b""}]


@pytest.mark.parametrize(
    ("make", "stage", "sizes"),
    [
        (unsealed, {"files": FILE}, {"files": [5]}),
        (half_sealed, {"files": FILE}, {"files": [5]}),
        (on_disk, {"files": FILE}, {"files": [5]}),
        (lambda: os.pipe()[0], {"files": FILE}, {"files": [5]}),
        (lambda: os.open("/etc/shadow", os.O_RDONLY), {"files": FILE}, {"files": [5]}),
        (lambda: os.open("/", os.O_RDONLY), {"files": FILE}, {"files": [5]}),
        (memfd, {"files": FILE}, {"files": [6]}),
        (memfd, {"files": FILE}, {"files": [5], "stdin": 1}),
        (memfd, {"files": FILE}, {"files": [5, 0]}),
        (memfd, {"files": FILE}, {"files": []}),
        (memfd, {}, {"files": [5]}),
        (memfd, {}, {}),
        (memfd, {"files": [{"path": "f", "content": b"12345"}]}, {"files": [0]}),
        (memfd, {"stdin": b"12345"}, {}),
        (memfd, {"stdin": None}, {"stdin": 5}),
        (None, {"files": FILE}, {"files": [5]}),
        (None, {}, {"stdin": 5}),
    ],
)  # fmt: skip
def test_contents_come_sealed_and_in_full_or_not_at_all(
    launcher: LauncherUnderTest,
    raw: socket.socket,
    make: Callable[[], int] | None,
    stage: dict[str, object],
    sizes: dict[str, Any],
) -> None:
    fields = msgspec.msgpack.decode(protocol.encode(launcher.stage(("true",))))
    message = run_message({**fields, **stage}, **sizes)
    if make is None:
        raw.sendall(message)
    else:
        fd = make()
        socket.send_fds(raw, [message], [fd])
        os.close(fd)
    assert closed(raw)


def test_control_what_is_sealed_and_in_full_is_run(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    fields = msgspec.msgpack.decode(protocol.encode(launcher.stage(("cat", "f", "-"))))
    fd = memfd(b"12345abc")
    socket.send_fds(raw, [run_message({**fields, "files": FILE}, [5], 3)], [fd])
    os.close(fd)
    printed = b""
    while len(printed) < 8:
        kind, length = HEADER.unpack(raw.recv(HEADER.size, socket.MSG_WAITALL))
        assert kind == Kind.STDOUT
        printed += raw.recv(length, socket.MSG_WAITALL)
    assert printed == b"12345abc"


def test_descriptors_without_a_stage_are_not_gathered(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    before = launcher.open_fds()
    fds = [memfd() for _ in range(20)]
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for fd in fds:
            socket.send_fds(raw, [frame(Kind.CATALOGUE)], [fd])
    for fd in fds:
        os.close(fd)
    while not closed(raw):
        pass
    launcher.await_fds(before)


def test_a_stage_of_a_client_that_is_gone_already_is_not_begun(launcher: LauncherUnderTest) -> None:
    """The answer to the first message fails, and the second one is there already."""
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as gone:
            gone.connect(str(launcher.socket))
            gone.sendall(frame(Kind.CATALOGUE) + encoded(launcher, argv=["sleep", "60"]))
    launcher.await_nothing_left()


def test_one_stage_at_a_time(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    raw.sendall(encoded(launcher) * 2)
    assert closed(raw)
    launcher.await_nothing_left()


def test_a_frame_may_come_in_pieces_and_two_in_one(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    for byte in frame(Kind.CATALOGUE):
        raw.sendall(bytes([byte]))
    header = raw.recv(HEADER.size, socket.MSG_WAITALL)
    kind, length = HEADER.unpack(header)
    assert kind == Kind.OFFER
    assert len(raw.recv(length, socket.MSG_WAITALL)) == length
    raw.sendall(frame(Kind.CATALOGUE) * 2)
    for _ in range(2):
        kind, length = HEADER.unpack(raw.recv(HEADER.size, socket.MSG_WAITALL))
        assert kind == Kind.OFFER
        raw.recv(length, socket.MSG_WAITALL)


def test_a_client_that_stops_in_the_middle_of_a_frame_is_forgotten(
    launcher: LauncherUnderTest, raw: socket.socket
) -> None:
    raw.sendall(encoded(launcher)[:-1])
    raw.shutdown(socket.SHUT_WR)
    assert closed(raw)
    assert not launcher.slots()


def test_what_crosses_with_the_outcome_is_no_offence(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    """A client cannot know yet that its program has ended."""
    raw.sendall(encoded(launcher, argv=["true"], stdin=None))
    seen = 0
    while seen != Kind.OUTCOME:
        seen, length = HEADER.unpack(raw.recv(HEADER.size, socket.MSG_WAITALL))
        raw.recv(length, socket.MSG_WAITALL)
    raw.sendall(frame(Kind.STDIN, b"late") + frame(Kind.STDIN_END) + frame(Kind.KILL) + frame(Kind.CATALOGUE))
    assert HEADER.unpack(raw.recv(HEADER.size, socket.MSG_WAITALL))[0] == Kind.OFFER


def outcome_with_files(launcher: LauncherUnderTest, raw: socket.socket) -> Over:
    """Of a stage that leaves two files; its descriptor is closed."""
    raw.sendall(encoded(launcher, argv=["sh", "-c", "printf 12345 > a; printf abc > b"], collect=["*"]))
    data, fds, _, _ = socket.recv_fds(raw, protocol.CHUNK_BYTES, 1)
    assert (HEADER.unpack_from(data)[0], len(fds)) == (Kind.OUTCOME, 1)
    assert os.pread(fds[0], 9, 0) == b"12345abc"
    with pytest.raises(PermissionError):
        os.write(fds[0], b"x")
    os.close(fds[0])
    return protocol.decode(data[HEADER.size :], Over)


def test_what_a_stage_leaves_comes_in_a_descriptor(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    for _ in range(2):
        over = outcome_with_files(launcher, raw)
        assert [(file.path, file.content) for file in over.outcome.files] == [("a", b""), ("b", b"")]
        assert over.sizes == (5, 3)


def test_stdin_beyond_the_window_ends_the_connection(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    raw.sendall(encoded(launcher, stdin=None))
    chunk = frame(Kind.STDIN, bytes(protocol.CHUNK_BYTES))
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        raw.sendall(chunk * (4 * STDIN_WINDOW_BYTES // protocol.CHUNK_BYTES))


def test_a_client_that_asks_and_does_not_read_is_cut_off(launcher: LauncherUnderTest, raw: socket.socket) -> None:
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        raw.sendall(frame(Kind.CATALOGUE) * 1_000_000)


def refusal(launcher: LauncherUnderTest, stage: StageSpec) -> InputError:
    with pytest.raises(InputError) as caught:
        launcher.run_stage(stage)
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_bytes", 1 << 40),
        ("processes", 100_000),
        ("cpu_time_ns", 10**13),
        ("output_bytes", 1 << 40),
        ("open_files", 1 << 20),
    ],
)
def test_the_launchers_own_ceilings_hold_whatever_the_client_says(
    launcher: LauncherUnderTest, name: str, value: int
) -> None:
    stage = launcher.stage(("true",))
    stage = msgspec.structs.replace(stage, limits=msgspec.structs.replace(stage.limits, **{name: value}))
    error = refusal(launcher, stage)
    assert error.field.startswith("limits.")
    assert "at most" in error.message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"policy": "nothing"}, "policy"),
        ({"policy": "../default"}, "policy"),
        ({"image": "/"}, "image"),
        ({"argv": ()}, "command"),
        ({"argv": ("a\0b",)}, "command[0]"),
        ({"env": {"a=b": "c"}}, "env"),
        ({"env": {"a": "b\0"}}, "env"),
        ({"collect": ("../x",)}, "collect[0]"),
        ({"collect": ("/etc/*",)}, "collect[0]"),
        ({"stdin": bytes(STDIN_MAX_BYTES + 1)}, "stdin"),
        ({"files": (InputFile(path="../x", content=b""),)}, "files[0].path"),
        ({"files": (InputFile(path="", content=b""),)}, "files[0].path"),
        ({"files": (InputFile(path="a/../b", content=b""),)}, "files[0].path"),
        ({"files": (InputFile(path="x" * 256, content=b""),)}, "files[0].path"),
        ({"files": (InputFile(path="x/" * 16 + "x", content=b""),)}, "files[0].path"),
        ({"files": (InputFile(path="/x", content=b""),)}, "files[0].path"),
        ({"files": (InputFile(path="a\0b", content=b""),)}, "files[0].path"),
        ({"files": (InputFile(path="a", content=b""), InputFile(path="a", content=b""))}, "files[1].path"),
        ({"files": (InputFile(path="a", content=b""), InputFile(path="a/b", content=b""))}, "files[1].path"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_client_should_have_refused_the_launcher_refuses(
    launcher: LauncherUnderTest, change: dict[str, object], field: str
) -> None:
    error = refusal(launcher, msgspec.structs.replace(launcher.stage(("true",)), **change))
    assert error.field.startswith(field)


CONNECT = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(5)
s.connect(sys.argv[1])
s.sendall(bytes([1, 0, 0, 0, 0, 0, 0, 0]))
print(len(s.recv(8)))
"""


def ask_as(launcher: LauncherUnderTest, user: str, group: str) -> str:
    """What a client of that user and group gets: `8`, an answer's header; anything else is none."""
    gid = str(pwd.getpwnam(group).pw_gid)
    who = [f"--reuid={user}", f"--regid={gid}", "--clear-groups"]
    command = ["setpriv", *who, "/usr/bin/python3", "-c", CONNECT, str(launcher.socket)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_only_root_and_the_service_user_may_speak_to_it(launcher: LauncherUnderTest) -> None:
    info = os.stat(launcher.socket)
    assert stat.S_IMODE(info.st_mode) == 0o660
    assert (info.st_uid, info.st_gid) == (0, pwd.getpwnam(SERVICE_USER).pw_gid)
    assert ask_as(launcher, "root", "root") == "8"
    assert ask_as(launcher, SERVICE_USER, SERVICE_USER) == "8"
    assert ask_as(launcher, "nobody", "nobody") == ""


def test_a_foreign_user_with_the_group_is_refused_by_its_credentials(launcher: LauncherUnderTest) -> None:
    assert ask_as(launcher, "nobody", SERVICE_USER) in ("", "0")
