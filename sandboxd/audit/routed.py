"""The first process of a network namespace with a route to everywhere: run by `target.Routed`, ends with its stdin."""

from __future__ import annotations

import os
import socket
import sys

from pyroute2 import IPRoute

ABSTRACT_NAME = "sandboxd-audit"


def main() -> None:
    """Routes lead to the loopback device, whose other end is itself; a listener stands for a service of the host."""
    with IPRoute() as ip:
        loopback = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=loopback, state="up")
        ip.route("add", dst="default", oif=loopback, family=socket.AF_INET, scope="link")
        ip.addr("add", index=loopback, address="fd00:1::1", prefixlen=64)
        ip.route("add", dst="default", oif=loopback, family=socket.AF_INET6)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + ABSTRACT_NAME)
    listener.listen()
    os.write(1, b"ready")
    sys.stdin.read()


main()
