"""What clients make the launcher keep is bounded in their sum."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from faultrig import STAGE_LIMIT_S, FailingWorkshop, a_stage, in_loop

from sandboxd.jail import protocol
from sandboxd.jail.admission import Admission
from sandboxd.jail.connection import Buffered, Connection
from sandboxd.jail.inputs import Outbox
from sandboxd.jail.offer import make_catalogue
from sandboxd.jail.protocol import CHUNK_BYTES, Kind, frame
from sandboxd.spec import KIB, StageSpec

pytestmark = pytest.mark.root


@pytest.mark.parametrize(("bound_bytes", "is_kept"), [(512 * KIB, False), (8 * 1024 * KIB, True)])
def test_a_client_that_does_not_read_its_output_is_cut_off(
    workshop: FailingWorkshop, tmp_path: Path, bound_bytes: int, is_kept: bool
) -> None:
    stage = msgspec.structs.replace(a_stage(workshop), argv=("sh", "-c", "head -c 4M /dev/zero; sleep 5"), files=())
    gone = held(workshop, tmp_path, stage, bound_bytes, wait_s=0.5)
    assert (gone == []) is is_kept


@pytest.mark.parametrize(
    ("arguments", "stdin_bytes", "bound_bytes", "is_kept"),
    [
        (1, 0, 64 * KIB, True),
        (100, 0, 64 * KIB, False),
        (100, 0, 512 * KIB, True),
        (1, 8 * CHUNK_BYTES, 64 * KIB, False),
        (1, 8 * CHUNK_BYTES, 1024 * KIB, True),
    ],
    ids=["small", "stage above", "stage below", "stdin above", "stdin below"],
)
def test_a_client_whose_stage_and_stdin_are_too_much_is_cut_off(
    workshop: FailingWorkshop, tmp_path: Path, arguments: int, stdin_bytes: int, bound_bytes: int, is_kept: bool
) -> None:
    stage = msgspec.structs.replace(
        a_stage(workshop), argv=("sh", "-c", "sleep 0.3", *["x" * KIB] * arguments), files=(), stdin=None
    )

    stdin = [frame(Kind.STDIN, bytes(CHUNK_BYTES))] * (stdin_bytes // CHUNK_BYTES)
    assert (held(workshop, tmp_path, stage, bound_bytes, stdin) == []) is is_kept


def held(
    workshop: FailingWorkshop,
    tmp_path: Path,
    stage: StageSpec,
    bound_bytes: int,
    stdin: Sequence[bytes] = (),
    wait_s: float = 0.1,
) -> list[Connection]:
    """Connections that were cut off: of one client that sends this, and reads nothing."""
    gone: list[Connection] = []

    async def send(admission: Admission) -> None:
        catalogue = await make_catalogue(admission, {}, tmp_path)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with contextlib.closing(Outbox()) as outbox, outbox.packed(stage) as (run, _), ours:
            ours.setblocking(False)
            connection = Connection(admission, catalogue, Buffered(bound_bytes), theirs, gone.append)
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ConnectionError):
                for message in (frame(Kind.RUN, protocol.encode(run)), *stdin):
                    await loop.sock_sendall(ours, message)
                await asyncio.sleep(wait_s)
            found = list(gone)
            connection.close()
        gone[:] = found
        assert await admission.wait_idle(STAGE_LIMIT_S) == 0

    in_loop(workshop, send)
    return gone
