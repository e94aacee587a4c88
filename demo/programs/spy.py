"""Looks for what is not its own: passwords, other processes, a way out. Succeeds (exit status 0) when it finds nothing."""

import os
import socket
import sys

found = []
for path in (
    "/etc/shadow",
    "/root",
    "/etc/ssh",
    "/home",
    "/var/lib/sandboxd",
    "/run/sandboxd",
    "/sys/kernel",
    "/dev/mem",
):
    try:
        seen = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(20)
        print(f"{path}: {seen or 'empty'}")
        if seen:
            found.append(path)
    except OSError as error:
        print(f"{path}: {error.strerror}")

processes = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
print("processes:", processes)
if len(processes) > 2:
    found.append(f"processes {processes}")

# connect() of a datagram socket sends nothing: it only asks the kernel for a route.
for address in ("192.0.2.1", "10.0.0.1", "169.254.169.254"):
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 53))
        found.append(f"a route to {address}")
    except OSError as error:
        print(f"route to {address}: {error.strerror}")

print("found:", found or "nothing")
sys.exit(bool(found))
