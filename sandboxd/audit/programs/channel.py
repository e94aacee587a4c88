"""Can one job see what another made? usage: channel.py make|both|WHAT [WHAT]."""

import ctypes
import os
import socket
import sys

libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY, KEYCTL = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
KEYCTL_SEARCH = 10
USER_KEYRING = -4
keep = []


def listening(family, name):
    server = socket.socket(family)
    server.bind(name)
    server.listen()
    keep.append(server)


def written(path):
    with open(path, "w") as file:
        file.write("x")


CHANNELS = {
    "shm": (lambda: written("/dev/shm/channel"), lambda: os.path.exists("/dev/shm/channel")),
    "tmp": (lambda: written("/tmp/channel"), lambda: os.path.exists("/tmp/channel")),
    "box": (lambda: written("/box/channel"), lambda: os.path.exists("/box/channel")),
    "sysv-memory": (lambda: libc.shmget(0x5EED, 4096, 0o1666), lambda: libc.shmget(0x5EED, 4096, 0) >= 0),
    "sysv-semaphore": (lambda: libc.semget(0x5EED, 1, 0o1666), lambda: libc.semget(0x5EED, 1, 0) >= 0),
    "sysv-messages": (lambda: libc.msgget(0x5EED, 0o1666), lambda: libc.msgget(0x5EED, 0) >= 0),
    "abstract": (
        lambda: listening(socket.AF_UNIX, "\0channel"),
        lambda: socket.socket(socket.AF_UNIX).connect_ex("\0channel") == 0,
    ),
    "loopback": (
        lambda: listening(socket.AF_INET, ("127.0.0.1", 7777)),
        lambda: socket.socket().connect_ex(("127.0.0.1", 7777)) == 0,
    ),
    "processes": (
        lambda: libc.prctl(15, b"channel", 0, 0, 0),
        lambda: any("channel" in open(f"/proc/{n}/comm").read() for n in os.listdir("/proc") if n.isdigit()),
    ),
    "keys": (
        lambda: libc.syscall(ADD_KEY, b"user", b"channel", b"x", 1, USER_KEYRING),
        lambda: libc.syscall(KEYCTL, KEYCTL_SEARCH, USER_KEYRING, b"user", b"channel", 0) >= 0,
    ),
}

role, channel = (sys.argv[1], sys.argv[2]) if len(sys.argv) > 2 else ("look", sys.argv[1])
make, look = CHANNELS[channel]
if role != "look":
    make()
if role == "make":
    print("ready", flush=True)
    sys.stdin.read()
elif role == "both":
    if os.fork() == 0:
        print("succeeded" if look() else "held", flush=True)
        os._exit(0)
    os.wait()
else:
    print("succeeded" if look() else "held")
