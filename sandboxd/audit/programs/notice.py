"""Is the reading of a file noticed by another job? usage: notice.py watch|touch|both."""

import ctypes
import os
import sys

PATHS = ("/usr/bin/env", "/etc/passwd", "/dev/null", "/")
libc = ctypes.CDLL(None)


def watch():
    fd = libc.inotify_init1(os.O_NONBLOCK)
    for path in PATHS:
        assert libc.inotify_add_watch(fd, path.encode(), 0xFFF) >= 0
    return fd


def touch():
    for path in PATHS[:3]:
        with open(path, "rb") as file:
            file.read(1)
    os.listdir("/")


def noticed(fd):
    try:
        return "succeeded" if os.read(fd, 65536) else "held"
    except BlockingIOError:
        return "held"


role = sys.argv[1]
if role == "touch":
    touch()
    print("touched")
elif role == "both":
    fd = watch()
    touch()
    print(noticed(fd))
else:
    fd = watch()
    print("ready", flush=True)
    sys.stdin.read()
    print(noticed(fd))
