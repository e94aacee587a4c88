"""Is anything of a job left for the next? usage: residue.py plant|search|both."""

import ctypes
import mmap
import os
import sys

CANARY = b"-".join([b"canary", b"of", b"a", b"former", b"job", b"7d1f"])
libc = ctypes.CDLL(None)


def plant():
    for folder in ("/box", "/tmp", "/dev/shm"):
        with open(folder + "/left", "wb") as file:
            file.write(CANARY * 4096)
        os.write(os.open(folder, os.O_TMPFILE | os.O_RDWR), CANARY * 4096)
    libc.shmget(0x5EED, 1 << 16, 0o1600)
    return CANARY * (1 << 19)


def search():
    found = 0
    for top in ("/box", "/tmp", "/dev/shm", "/etc", "/run", "/var"):
        for folder, _, names in os.walk(top):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path):
                    with open(path, "rb") as file:
                        found += file.read().count(CANARY)
    found += mmap.mmap(-1, 64 << 20).read().count(CANARY)
    hole = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.truncate(hole, 16 << 20)
    found += os.pread(hole, 16 << 20, 0).count(CANARY)
    found += libc.shmget(0x5EED, 1 << 16, 0) >= 0
    return found


role = sys.argv[1]
heap = plant() if role != "search" else b""
if role == "plant":
    print("planted")
else:
    print("succeeded" if search() else "held")
