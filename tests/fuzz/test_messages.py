"""What a worker may send to the launcher, changed at random: an answer or a closed connection; the next is served."""

from __future__ import annotations

import contextlib
import os
import random
import socket

import pytest
from fuzzrig import TIMEOUT_S, rounds
from jailrig import SCALE, LauncherUnderTest
from rig import mutated

from sandboxd.jail import protocol
from sandboxd.jail.inputs import Outbox
from sandboxd.jail.protocol import HEADER, Kind, frame

ROUNDS = 400


@pytest.mark.root
@pytest.mark.timeout(TIMEOUT_S)
def test_the_launcher_survives_every_message(launcher: LauncherUnderTest) -> None:
    seed = os.urandom(8).hex()
    chance = random.Random(seed)
    outbox = Outbox()
    with outbox.packed(launcher.stage(("/usr/bin/true",), files={"a": b"b"}, stdin=b"c")) as (run, contents):
        assert contents is not None
    body = bytes(protocol.encode(run))
    before = launcher.open_fds()
    for number in rounds(ROUNDS):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20 * SCALE)
            client.connect(str(launcher.socket))
            content = mutated(body, chance)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                match number % 3:
                    case 0:
                        socket.send_fds(client, [HEADER.pack(Kind.RUN, len(content)) + content], [contents])
                    case 1:
                        client.sendall(mutated(bytes(HEADER.pack(Kind.RUN, len(content))) + content, chance))
                    case _:
                        client.sendall(os.urandom(chance.randint(1, 200)))
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
        if number % 50 == 0:
            assert launcher.run(("/usr/bin/true",)).verdict == "ok", f"seed {seed}, round {number}"
    outbox.close()
    assert launcher.process.poll() is None
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(launcher.socket))
        client.sendall(frame(Kind.CATALOGUE))
        assert client.recv(4)
    launcher.await_nothing_left()
    launcher.await_fds(before)
    assert "Traceback" not in launcher.log.read_text()
