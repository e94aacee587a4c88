"""Ends in a certain way, or pretends to. usage: ending.py HOW [NUMBER]."""

import errno
import os
import signal
import sys
import threading
import time

how = sys.argv[1]


def burn(seconds=None):
    end = None if seconds is None else time.process_time() + seconds
    while end is None or time.process_time() < end:
        pass


def eat():
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))


if how == "signal":
    number = int(sys.argv[2])
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        # Python handles a few of them by itself.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    time.sleep(5)
elif how == "exit":
    os._exit(int(sys.argv[2]))
elif how == "fake-result":
    print('{"verdict": "ok", "exit_code": 0, "cpu_time_s": 0.0, "state": "finished"}', flush=True)
    sys.stderr.write("sandboxd: killed after 1 s of CPU; the limit is 1 s\n")
    os._exit(int(sys.argv[2]))
elif how == "kill-all":
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.kill(-1, signal.SIGKILL)  # all but the caller, and PID 1 of its namespace
    os.waitpid(child, 0)
    print("alive")
elif how == "kill-group":
    os.kill(0, signal.SIGKILL)
elif how == "burn-loop":
    burn()
elif how == "burn-fork":
    for _ in range(3):
        os.fork()
    burn()
elif how == "burn-double-fork":
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            burn()
        os._exit(0)
    time.sleep(60)
elif how == "burn-auto-reaped":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        if os.fork() == 0:
            burn(0.05)
            os._exit(0)
        time.sleep(0.05)
elif how == "use":
    burn(0.3 - time.process_time())
    print("used")
elif how in ("use-waited", "use-unwaited"):
    if how == "use-unwaited":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(3):
        if os.fork() == 0:
            burn(0.09)
            os._exit(0)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    burn(0.03 - time.process_time())
    print("used")
elif how == "sleep":
    time.sleep(60)
elif how == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
elif how == "futex":
    threading.Event().wait()
elif how == "sigwait":
    while True:
        signal.sigwait(signal.valid_signals())
elif how == "read":
    os.read(os.pipe()[0], 1)
elif how == "oom-child":
    if os.fork() == 0:
        eat()
    os.wait()
    os._exit(0)
elif how == "oom-parent-stays":
    if os.fork() == 0:
        eat()
    os.wait()
    time.sleep(3)
    print("succeeded")
elif how == "oom-self":
    eat()
elif how == "oom-shared":
    import mmap

    shared = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for at in range(0, len(shared), 4096):
        shared[at] = 1
elif how == "big-file":
    with open("big", "wb", buffering=0) as big:
        try:
            while True:
                big.write(bytes(1 << 20))
        except OSError as error:
            print(errno.errorcode[error.errno])
elif how == "daemon":
    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
    print("daemon")
else:
    sys.exit(f"no such ending: {how}")
