"""Is a lock on a file of the image seen by another job? usage: lock.py make|both|PATH [PATH]."""

import fcntl
import os
import sys

role, path = (sys.argv[1], sys.argv[2]) if len(sys.argv) > 2 else ("look", sys.argv[1])


def locked():
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    return fd


if role == "look":
    print("held" if locked() is not None else "succeeded")
else:
    kept = locked()
    assert kept is not None, "locked already"
    if role == "both":
        print("held" if locked() is not None else "succeeded")
    else:
        print("ready", flush=True)
        sys.stdin.read()
