"""More of one thing than a job may have. usage: flood.py WHAT. Files: says the errno that ended it."""

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
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
keep = []


def until_refused(make):
    try:
        for number in range(1 << 20):
            make(number)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "no-end"


def forever(make):
    for number in itertools.count():
        if make(number) is False:
            return "refused"


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
    return libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None) == 0


def locks(number):
    if not number:
        keep.append(os.open("l", os.O_CREAT | os.O_RDWR))
    fcntl.lockf(keep[0], fcntl.LOCK_EX, 1, number * 2)


KERNEL_OBJECTS = {
    "pipes": pipes,
    "sockets": sockets,
    "epolls": lambda n: keep.append(select.epoll()),
    "inotify": lambda n: libc.inotify_init() >= 0,
    "eventfds": lambda n: keep.append(os.eventfd(0)),
    "memfds": memfds,
    "timers": lambda n: libc.timer_create(1, 0, ctypes.byref(ctypes.c_long())) == 0,
    "queued-signals": queued,
    "mappings": lambda n: keep.append(mmap.mmap(-1, 4096, prot=1 + n % 2)),
    "page-tables": page_tables,
    "sysv": lambda n: libc.memset(libc.shmat(libc.shmget(0, 1 << 20, 0o1600), None, 0), 1, 1 << 20) and None,
    "locks": locks,
    "negative-dentries": lambda n: os.path.exists(f"/box/{n}" + "x" * 200) and None,
}


def zombies(_number):
    if os.fork() == 0:
        os._exit(0)


def orphans(_number):
    if os.fork():
        os._exit(0)
    os.setsid()


BOMBS = {
    "forks": lambda n: os.fork() and None,
    "zombies": zombies,
    "threads": lambda n: threading.Thread(target=time.sleep, args=(60,)).start(),
    "orphans": orphans,
    "spawns": lambda n: os.posix_spawn("/bin/sleep", ["sleep", "60"], {}) and None,
}
OUTPUT = {
    "stdout": lambda n: os.write(1, b"x" * 65536) and None,
    "stderr": lambda n: os.write(2, b"x" * 65536) and None,
    "both-streams": lambda n: os.write(1 + n % 2, b"x" * 65536) and None,
    "single-bytes": lambda n: os.write(1, b"x") and None,
    "nuls": lambda n: os.write(1, bytes(65536)) and None,
    "no-text": lambda n: os.write(1, b"\xff\xfe\x1b[2J" * 10000) and None,
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


def crashes():
    for number in range(300):
        if os.fork() == 0:
            os.kill(os.getpid(), signal.SIGSEGV) if number % 2 else ctypes.string_at(0)
        os.wait()


def refusals():
    for _ in range(2000):
        libc.unshare(0x10000000)
        try:
            open("/usr/denied", "w")
        except OSError:
            pass


if what in FILES:
    os.chdir("/box")
    print(until_refused(FILES[what]))
elif what in KERNEL_OBJECTS:
    print(forever(KERNEL_OBJECTS[what]))
elif what in BOMBS:
    forever(BOMBS[what])
elif what in OUTPUT:
    forever(OUTPUT[what])
elif what in ("daemons", "stopped-daemons"):
    daemons(what == "stopped-daemons")
elif what == "crashes":
    crashes()
elif what == "refusals":
    refusals()
else:
    sys.exit(f"no such flood: {what}")
