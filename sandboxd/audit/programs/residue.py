"""Is anything of a job left for the next, or seen by another? usage: residue.py plant|hold|search|both.

All but `search` plant; `hold` keeps what it planted until its stdin ends. Told is the first host uid of the slot, too.
"""

import ctypes
import mmap
import os
import sys

CANARY = b"-".join([b"canary", b"of", b"a", b"former", b"job", b"7d1f"])
ADD_KEY, KEYCTL = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
KEYCTL_SEARCH = 10
USER_KEYRING = -4
libc = ctypes.CDLL(None)


def slot():
    with open("/proc/self/uid_map") as ids:
        return ids.read().split()[1]


def plant():
    for folder in ("/box", "/tmp", "/dev/shm"):
        with open(folder + "/left", "wb") as file:
            file.write(CANARY * 4096)
        os.write(os.open(folder, os.O_TMPFILE | os.O_RDWR), CANARY * 4096)
    libc.shmget(0x5EED, 1 << 16, 0o1600)
    libc.syscall(ADD_KEY, b"user", CANARY, b"x", 1, USER_KEYRING)
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
    for process in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            with open(f"/proc/{process}/{name}", "rb") as file:
                found += file.read().count(CANARY)
    found += mmap.mmap(-1, 64 << 20).read().count(CANARY)
    hole = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.truncate(hole, 16 << 20)
    found += os.pread(hole, 16 << 20, 0).count(CANARY)
    found += libc.shmget(0x5EED, 1 << 16, 0) >= 0
    found += libc.syscall(KEYCTL, KEYCTL_SEARCH, USER_KEYRING, b"user", CANARY, 0) >= 0
    return found


role = sys.argv[1]
heap = plant() if role != "search" else b""
if role == "plant":
    print("planted", slot())
elif role == "hold":
    print("ready", flush=True)
    sys.stdin.read()
else:
    print(slot(), "succeeded" if search() else "held")
