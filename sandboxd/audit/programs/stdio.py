"""Standard streams used against a later job. usage: stdio.py plant|search|both|rewrite|own-rewrite.

`plant` writes into descriptor 0 in each way there is and makes the others behave oddly; `search` looks for that.
`rewrite` says whether one of the ways works. The last word is `succeeded` or `held`.
"""

import fcntl
import mmap
import os
import sys

CANARY = b"-".join([b"left", b"in", b"stdin", b"51c2"])
SIZE = 4096


def through_proc(flags):
    return os.open("/proc/self/fd/0", flags)


WAYS = {
    "write": lambda: os.pwrite(0, CANARY, 0),
    "open to write": lambda: os.pwrite(through_proc(os.O_RDWR), CANARY, 0),
    "open to cut": lambda: os.write(through_proc(os.O_WRONLY | os.O_TRUNC), CANARY),
    "open to append": lambda: os.write(through_proc(os.O_WRONLY | os.O_APPEND), CANARY),
    "cut": lambda: os.ftruncate(0, SIZE),
    "cut by name": lambda: os.truncate("/proc/self/fd/0", SIZE),
    "map": lambda: mmap.mmap(0, SIZE, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "change mode": lambda: os.fchmod(0, 0o666),
}


def works(way):
    try:
        WAYS[way]()
    except (OSError, ValueError):
        return False
    return True


def own():
    """A stdin that nothing protects."""
    os.dup2(os.memfd_create("own"), 0)


def plant():
    for way in WAYS:
        works(way)
    for number in (1, 2):
        os.set_blocking(number, False)
        fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_APPEND)


def search():
    left = os.pread(0, SIZE, 0) if os.readlink("/proc/self/fd/0").startswith("/") else b""
    odd = [number for number in (1, 2) if not os.get_blocking(number)]
    print(len(left), odd)
    return CANARY in left or bool(odd)


role = sys.argv[1]
if role == "plant":
    plant()
    print("planted")
elif role.endswith("rewrite"):
    if role == "own-rewrite":
        own()
    done = [way for way in WAYS if works(way)]
    print(done)
    print("succeeded" if done else "held")
else:
    if role == "both":
        own()
        plant()
    print("succeeded" if search() else "held", flush=True)
