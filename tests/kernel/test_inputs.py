"""What comes with a stage: through a descriptor that its client keeps, and that nobody else can write or cut."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
from collections.abc import Callable

import pytest
from jailrig import LauncherUnderTest

from sandboxd.jail import syscalls
from sandboxd.jail.client import LauncherClient
from sandboxd.jail.inputs import KEPT_BYTES, Outbox

SIZES = (5, 4095, 4096, 4097, 200_000, KEPT_BYTES // 3, KEPT_BYTES // 3 + 1, KEPT_BYTES, 1, 3 * KEPT_BYTES, 0, 7)
"""Of each of three parts: up and down, across the borders of a page and of what is kept."""
CONTENT = b"12345"


@pytest.mark.root
def test_stages_of_one_client_get_their_own_contents_byte_for_byte(launcher: LauncherUnderTest) -> None:
    chance = random.Random(1)
    with launcher.client() as client:
        for size in SIZES:
            one, two, stdin = (chance.randbytes(size) for _ in range(3))
            files = {"a": one, "empty": b"", "b": two}
            stage = launcher.stage(("sha256sum", "a", "empty", "b", "-"), files=files, stdin=stdin)
            told = bytearray()
            client.run(stage, on_stdout=told.extend, on_stderr=told.extend)
            sums = [line.split()[0] for line in told.decode().splitlines()]
            assert sums == [hashlib.sha256(content).hexdigest() for content in (one, b"", two, stdin)], f"{size} bytes"


@pytest.mark.root
@pytest.mark.parametrize(
    "change",
    [
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.ftruncate(fd, 1),
        lambda fd: os.ftruncate(fd, 2 * KEPT_BYTES),
        lambda fd: mmap.mmap(fd, len(CONTENT)),
        syscalls.seal,
    ],
    ids=["write", "cut", "grow", "map", "seal"],
)
def test_who_receives_contents_cannot_change_them(launcher: LauncherUnderTest, change: Callable[[int], object]) -> None:
    stage = launcher.stage(("true",), files={"f": CONTENT})
    with contextlib.closing(Outbox()) as outbox, outbox.packed(stage) as (run, fd):
        assert fd is not None
        with pytest.raises(PermissionError):
            change(fd)
        assert os.pread(fd, run.sizes.total, 0) == CONTENT
    control = os.memfd_create("control", os.MFD_ALLOW_SEALING)
    os.write(control, CONTENT)
    change(control)
    os.close(control)


@pytest.mark.root
def test_nothing_of_a_stage_stays_with_its_client(launcher: LauncherUnderTest) -> None:
    with launcher.client() as client:
        room = run_secret(launcher, client)
        assert b"secret" in room[:]
        client.forget()
        assert room[:] == bytes(KEPT_BYTES)


@pytest.mark.root
@pytest.mark.parametrize("size", [0, 5, 2 * KEPT_BYTES], ids=["without contents", "short", "kept elsewhere"])
def test_nothing_of_a_stage_stays_beside_the_next(launcher: LauncherUnderTest, size: int) -> None:
    with launcher.client() as client:
        room = run_secret(launcher, client)
        stage = launcher.stage(("true",), files={"f": b"x" * size})
        client.run(stage, on_stdout=lambda _: None, on_stderr=lambda _: None)
        assert b"secret" not in room[:]


def run_secret(launcher: LauncherUnderTest, client: LauncherClient) -> mmap.mmap:
    """Where the client keeps contents, after a stage with a secret."""
    stage = launcher.stage(("true",), files={"f": b"secret" * 10_000}, stdin=b"secret")
    client.run(stage, on_stdout=lambda _: None, on_stderr=lambda _: None)
    room = client._outbox._room
    assert room is not None
    return room


@pytest.mark.root
def test_a_program_has_nothing_of_what_other_stages_of_its_client_brought(launcher: LauncherUnderTest) -> None:
    """The descriptor holds the tail of a longer one: it must be gone when a program starts."""
    looks = (
        "import os\n"
        "def is_open(fd):\n"
        "    try: os.fstat(fd)\n"
        "    except OSError: return False\n"
        "    return True\n"
        "print(list(filter(is_open, range(3, 1024))), 'sandboxd' in open('/proc/self/maps').read())\n"
    )
    told = bytearray()
    with launcher.client() as client:
        client.run(
            launcher.stage(("true",), files={"f": b"secret" * 10_000}), on_stdout=told.extend, on_stderr=told.extend
        )
        stage = launcher.stage(("python3", "look.py"), files={"look.py": looks})
        client.run(stage, on_stdout=told.extend, on_stderr=told.extend)
    assert told.decode() == "[] False\n"
