"""The first process of a network namespace with a route to everywhere: run by `target.Routed`, ends with its stdin."""

from __future__ import annotations

import os
import socket
import sys

from pyroute2 import IPRoute

ABSTRACT_NAMES = (
    "sandboxd-audit",
    "/containerd-shim/sandboxd-audit.sock",
    "/tmp/dbus-sandboxd-audit",  # noqa: S108  # abstract names, no files
    "/tmp/.X11-unix/X0",  # noqa: S108
)
LOOPBACK_PORT = 6379


def main() -> None:
    """Routes lead to the loopback device, whose other end is itself; listeners stand for services of the host."""
    with IPRoute() as ip:
        loopback = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=loopback, state="up")
        ip.route("add", dst="default", oif=loopback, family=socket.AF_INET, scope="link")
        ip.addr("add", index=loopback, address="fd00:1::1", prefixlen=64)
        ip.route("add", dst="default", oif=loopback, family=socket.AF_INET6)
    listeners = [socket.create_server(("127.0.0.1", LOOPBACK_PORT))]
    for name in ABSTRACT_NAMES:
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind("\0" + name)
        listeners[-1].listen()
    os.write(1, b"ready")
    sys.stdin.read()


main()
