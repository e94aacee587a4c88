"""More of one thing than a job may have. usage: flood.py WHAT.

Floods tell how many they have made each time it doubled (`N made`, for whoever is killed), and what refused them more
(`N ERRNO`). Bombs stay with all that they have until the wall limit; the rest ends.
"""

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time

what = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
keep = []


def checked(result):
    """What a call of libc's gave; raises OSError."""
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "refused")
    return result


def tell(made):
    if made & (made - 1) == 0:
        print(made, "made", flush=True)


def flood(make, end=1 << 62):
    for made in range(end):
        try:
            make(made)
        except OSError as error:
            return f"{made} {errno.errorcode[error.errno]}"
        tell(made + 1)
    return "no-end"


def deleted(_number):
    fd = os.open("gone", os.O_CREAT | os.O_RDWR)
    os.unlink("gone")
    os.write(fd, bytes(1 << 20))


def linked(number):
    if not number:
        open("one", "x").close()
    os.link("one", f"link{number}")


FILES = {
    "sparse": lambda n: os.truncate(os.open("s", os.O_CREAT | os.O_RDWR), 1 << 62),
    "allocated": lambda n: os.posix_fallocate(os.open("s", os.O_CREAT | os.O_RDWR), 0, 60 << 20),
    "names": lambda n: open(f"f{n}", "x").close(),
    "long-names": lambda n: open("f" * 240 + str(n), "x").close(),
    "deep": lambda n: (os.mkdir("d"), os.chdir("d")),
    "symlinks": lambda n: os.symlink("x" * 4000, f"l{n}"),
    "hard-links": linked,
    "deleted": deleted,
    "fifos": lambda n: os.mkfifo(f"p{n}"),
}


def pipes(_number):
    keep.append(os.pipe2(os.O_NONBLOCK))
    os.write(keep[-1][1], bytes(65536))


def sockets(_number):
    keep.append(socket.socketpair())
    keep[-1][0].setblocking(False)
    keep[-1][0].send(bytes(1 << 20))


def memfds(_number):
    keep.append(os.memfd_create("x"))
    os.write(keep[-1], bytes(1 << 20))


def page_tables(_number):
    space = mmap.mmap(-1, 1 << 40, flags=0x4022)
    for at in range(0, 1 << 40, 1 << 21):
        space[at]


def queued(number):
    if not number:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    checked(libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None))


def locks(number):
    if not number:
        keep.append(os.open("l", os.O_CREAT | os.O_RDWR))
    fcntl.lockf(keep[0], fcntl.LOCK_EX, 1, number * 2)


KERNEL_OBJECTS = {
    "pipes": pipes,
    "sockets": sockets,
    "epolls": lambda n: keep.append(select.epoll()),
    "inotify": lambda n: checked(libc.inotify_init()),
    "eventfds": lambda n: keep.append(os.eventfd(0)),
    "memfds": memfds,
    "timers": lambda n: checked(libc.timer_create(1, 0, ctypes.byref(ctypes.c_long()))),
    "queued-signals": queued,
    "mappings": lambda n: keep.append(mmap.mmap(-1, 4096, prot=1 + n % 2)),
    "page-tables": page_tables,
    "sysv": lambda n: libc.memset(checked(libc.shmat(checked(libc.shmget(0, 1 << 20, 0o1600)), None, 0)), 1, 1 << 20),
    "locks": locks,
    "negative-dentries": lambda n: os.path.exists(f"/box/{n}" + "x" * 200),
}


def forks(_number):
    """What a child makes is counted by its parents: they are all there when no more can be."""
    if os.fork() == 0:
        while True:
            try:
                os.fork()
            except OSError:
                signal.pause()


def zombies(_number):
    if os.fork() == 0:
        os._exit(0)


def threads(_number):
    try:
        threading.Thread(target=signal.sigwait, args=([signal.SIGRTMIN],), daemon=True).start()
    except RuntimeError:
        raise BlockingIOError(errno.EAGAIN, "can't start new thread") from None


def orphans():
    """Each runs away from its parent's end, while the first stays."""
    generation = 1
    if os.fork():
        signal.pause()
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()
        generation += 1
        tell(generation)


BOMBS = {
    "forks": forks,
    "zombies": zombies,
    "threads": threads,
    "spawns": lambda n: os.posix_spawn("/bin/sleep", ["sleep", "60"], {}),
}


def bomb(make):
    refused = flood(make).split()[1]
    time.sleep(0.03)  # who is counted already may not be seen yet
    own = [name for name in os.listdir("/proc") if name.isdigit()]
    tasks = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in own)
    print(tasks, refused, flush=True)
    signal.pause()


OUTPUT = {
    "stdout": lambda n: os.write(1, b"x" * 65536),
    "stderr": lambda n: os.write(2, b"x" * 65536),
    "both-streams": lambda n: os.write(1 + n % 2, b"x" * 65536),
    "single-bytes": lambda n: os.write(1, b"x"),
    "nuls": lambda n: os.write(1, bytes(65536)),
    "no-text": lambda n: os.write(1, b"\xff\xfe\x1b[2J" * 10000),
}


def daemons(stopped):
    for _ in range(20):
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            if os.fork() == 0 and stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(60)
            os._exit(0)
    print(20, "daemons")


def crashes():
    for number in range(300):
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSEGV) if number % 2 else ctypes.string_at(0)
        if not os.WIFSIGNALED(os.wait()[1]):
            return
    print(number + 1, "crashed")


def refusals():
    denied = 0
    for _ in range(2000):
        denied += libc.unshare(0x10000000) < 0
        try:
            open("/usr/denied", "w")
        except OSError:
            denied += 1
    print(denied, "refused")


if what in FILES:
    os.chdir("/box")
    print(flood(FILES[what], 1 << 20))
elif what in KERNEL_OBJECTS:
    print(flood(KERNEL_OBJECTS[what]))
elif what in BOMBS:
    bomb(BOMBS[what])
elif what == "orphans":
    orphans()
elif what in OUTPUT:
    for number in itertools.count():
        OUTPUT[what](number)
elif what in ("daemons", "stopped-daemons"):
    daemons(what == "stopped-daemons")
elif what == "crashes":
    crashes()
elif what == "refusals":
    refusals()
else:
    sys.exit(f"no such flood: {what}")
