"""Leaves a trap for who takes files out, beside a file of its own. usage: leave.py TRAP [regular]

`regular`: in the traps' places lie files that are not the program's own, and are taken out: the control.
"""

import os
import socket
import sys
import time

OWN = "own"


def swapped():
    """A daemon goes on changing what lies there, beyond the end of this process."""
    if os.fork() == 0:
        os.setsid()
        while True:
            with open("new", "w") as file:
                file.write(OWN)
            os.rename("new", "trap")
            os.symlink("/etc/passwd", "link")
            os.rename("link", "trap")
    time.sleep(0.05)


TRAPS = {
    "absolute": lambda: os.symlink("/etc/passwd", "trap"),
    "relative": lambda: os.symlink("../etc/passwd", "trap"),
    "above": lambda: os.symlink("../" * 16 + "etc/passwd", "trap"),
    "magic": lambda: os.symlink("/proc/self/exe", "trap"),
    "of-who-takes-it": lambda: os.symlink("/proc/self/environ", "trap"),
    "fifo": lambda: os.mkfifo("trap"),
    "socket": lambda: socket.socket(socket.AF_UNIX).bind("trap"),
    "swapped": swapped,
    "folder": lambda: os.symlink("/etc", "folder"),
    "folder-above": lambda: os.symlink("../../../../../etc", "folder"),
    "nested": lambda: (os.mkdir("folder"), os.symlink("/etc/passwd", "folder/passwd")),
}

with open("good", "w") as own:
    own.write(OWN)
if "regular" in sys.argv:
    os.mkdir("folder")
    for name in ("trap", "folder/passwd"):
        with open(name, "w") as other:
            other.write("not its own")
else:
    TRAPS[sys.argv[1]]()
print("left", flush=True)
