"""No way out: only 127.0.0.1 of its own. A route is looked up by connect(2) on a datagram socket, which sends nothing.

The controls run in a network namespace that the test makes and gives a route of its own: the host's is never used.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jailrig import LauncherUnderTest

ELSEWHERE = ["192.0.2.1", "10.0.0.1", "169.254.169.254", "8.8.8.8", "224.0.0.1", "2001:db8::1", "fd00:ec2::254"]
# The default route leads to the namespace's own loopback device; a listener on an abstract name stands for the host's.
LISTEN = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0sandboxd-test-abstract")
listener.listen()
os.write(1, b"x")
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def routed(state_root: Path) -> Iterator[dict[tuple[str, ...], LauncherUnderTest]]:
    """Launchers without a network namespace of their sandboxes', inside of one that has a route to everywhere."""
    listener = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-I", "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert listener.stdin is not None
    assert listener.stdout is not None
    assert listener.stdout.read(1) == b"x"
    enter = ("nsenter", f"--net=/proc/{listener.pid}/ns/net")
    assert os.readlink(f"/proc/{listener.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    for command in (
        "link set lo up",
        "route add default dev lo",
        "-6 addr add fd00:1::1/64 dev lo",
        "-6 route add default dev lo",
    ):
        subprocess.run([*enter, "ip", *command.split()], check=True)
    made = {
        without: LauncherUnderTest(state_root, f"routed-{os.getpid()}-{number}", without, prefix=enter)
        for number, without in enumerate([(), ("netns",), ("netns", "landlock")])
    }
    yield made
    statuses = [launcher.stop() for launcher in made.values()]
    listener.stdin.close()
    listener.wait()
    listener.stdout.close()
    assert statuses == [0, 0, 0]


def attempt(launcher: LauncherUnderTest, attempts: bytes, name: str) -> str:
    return launcher.run(("./attempts", name), files={"attempts": attempts}).text.split()[1]


@pytest.mark.parametrize("address", ELSEWHERE)
def test_there_is_no_route_to_anywhere(
    launcher: LauncherUnderTest,
    routed: dict[tuple[str, ...], LauncherUnderTest],
    attempts: bytes,
    address: str,
) -> None:
    assert attempt(launcher, attempts, f"route={address}") == "ENETUNREACH"
    assert attempt(routed[()], attempts, f"route={address}") == "ENETUNREACH"
    assert attempt(routed["netns",], attempts, f"route={address}") == "succeeded"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_its_own_loopback_is_up(launcher: LauncherUnderTest, attempts: bytes, address: str) -> None:
    assert attempt(launcher, attempts, f"route={address}") == "succeeded"


def test_only_loopback_devices_exist(launcher: LauncherUnderTest) -> None:
    names = launcher.python("import socket; print([name for _, name in socket.if_nameindex()])").text
    # Kernels with tunnels built in give each namespace idle ones (`tunl0`, `sit0`); they are down and carry nothing.
    assert "lo" in names
    for real in ("eth", "en", "wl", "docker", "veth", "tap", "br"):
        assert f"'{real}" not in names, names


def test_abstract_sockets_of_the_host_are_out_of_reach_twice(
    launcher: LauncherUnderTest, routed: dict[tuple[str, ...], LauncherUnderTest], attempts: bytes
) -> None:
    """The network namespace has none, and Landlock scopes what is left (ABI 6)."""
    name = "abstract=sandboxd-test-abstract"
    assert attempt(launcher, attempts, name) == "ECONNREFUSED"
    assert attempt(routed[()], attempts, name) == "ECONNREFUSED"
    scoped = (launcher.catalogue().isolation.landlock_abi or 0) >= 6
    assert attempt(routed["netns",], attempts, name) == ("EPERM" if scoped else "succeeded")
    assert attempt(routed["netns", "landlock"], attempts, name) == "succeeded"


def test_services_of_the_host_on_loopback_are_not_there(launcher: LauncherUnderTest) -> None:
    """A server inside answers; the same port of the host's does not."""
    program = """
    import socket, sys
    if sys.argv[1] == "serve":
        server = socket.create_server(("127.0.0.1", 0)); port = server.getsockname()[1]
    else:
        port = int(sys.argv[2])
    print(socket.socket().connect_ex(("127.0.0.1", port)))
    """
    assert launcher.python(program, "serve").text == "0\n"

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert launcher.python(program, "connect", port).text == f"{errno.ECONNREFUSED}\n"
