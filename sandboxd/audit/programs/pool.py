"""Does one job's hoard of pipes make another's small? usage: pool.py hoard|measure|both."""

import fcntl
import os
import sys

USUAL_BYTES = 65536


def hoard():
    pipes = [os.pipe() for _ in range(64)]
    for _, end in pipes:
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
    return pipes


def measured():
    return "held" if fcntl.fcntl(os.pipe()[1], fcntl.F_GETPIPE_SZ) >= USUAL_BYTES else "succeeded"


role = sys.argv[1]
kept = hoard() if role != "measure" else []
if role == "hoard":
    print("ready", flush=True)
    sys.stdin.read()
else:
    print(measured())
