"""More of everything than a job may have: output, files, kernel objects, processes, odd requests to devices.

Each ends in an errno for the program or a verdict for the job; the launcher does not grow, and nothing is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jailrig import SCALE, LauncherUnderTest, Ran

MIB = 1 << 20
ENDINGS = ("ok", "runtime_error", "signalled", "memory_exceeded", "cpu_time_exceeded", "wall_time_exceeded")


def resident_bytes(launcher: LauncherUnderTest) -> int:
    return int(Path(f"/proc/{launcher.process.pid}/statm").read_text().split()[1]) * 4096


def slab_bytes() -> int:
    """What the kernel holds for itself and cannot give back at once."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["SUnreclaim"].split()[0]) * 1024


@pytest.mark.parametrize(
    "flood",
    [
        "while True: os.write(1, b'x' * 65536)",
        "while True: os.write(2, b'x' * 65536)",
        "while True: os.write(1, b'x' * 65536); os.write(2, b'y' * 65536)",
        "while True: os.write(1, b'x')",
        "while True: os.write(1, bytes(65536))",
        "while True: os.write(1, b'\\xff\\xfe\\x1b[2J' * 10000)",
        "while True: os.fork() or [os.write(1, b'z' * 65536) for _ in range(1000)]",
    ],
    ids=["stdout", "stderr", "both", "single bytes", "NULs", "no text", "from many"],
)
def test_a_flood_of_output_is_counted_ended_and_not_kept_by_the_launcher(
    launcher: LauncherUnderTest, flood: str
) -> None:
    launcher.run(("true",))
    before = resident_bytes(launcher)
    ran = launcher.python(f"import os\n{flood}", output_bytes=4096 * 4, cpu_time_s=10 * SCALE)
    assert ran.verdict == "output_exceeded", ran.judgement
    assert (len(ran.stdout), len(ran.stderr)) == (ran.facts.stdout_bytes, ran.facts.stderr_bytes)
    assert resident_bytes(launcher) - before < 16 * MIB


FILL = """
import errno, os
made = 0
def attempt(make):
    global made
    try:
        for made in range(1 << 20):
            make(made)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "no end"
os.chdir("/box")
"""


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ("print(attempt(lambda n: os.truncate(os.open('s', os.O_CREAT | os.O_RDWR), 1 << 62)))", {"EFBIG"}),
        ("print(attempt(lambda n: os.posix_fallocate(os.open('s', os.O_CREAT | os.O_RDWR), 0, 60 << 20)))", {"ENOSPC"}),
        ("print(attempt(lambda n: open(f'f{n}', 'x').close()))", {"ENOSPC"}),
        ("print(attempt(lambda n: open('f' * 240 + str(n), 'x').close()))", {"ENOSPC"}),
        ("print(attempt(lambda n: (os.mkdir('d'), os.chdir('d'))))", {"ENOSPC"}),
        ("print(attempt(lambda n: os.symlink('x' * 4000, f'l{n}')))", {"ENOSPC", "EDQUOT"}),
        ("open('o', 'x').close(); print(attempt(lambda n: os.link('o', f'h{n}')))", {"ENOSPC", "EMLINK"}),
        (
            "def gone(n):\n"
            "    fd = os.open('g', os.O_CREAT | os.O_RDWR); os.unlink('g'); os.write(fd, bytes(1 << 20))\n"
            "print(attempt(gone))",
            {"ENOSPC", "EMFILE"},
        ),
        ("print(attempt(lambda n: os.mkfifo(f'p{n}')))", {"ENOSPC"}),
    ],
    ids=["sparse", "allocated", "names", "long names", "deep", "symlinks", "hard links", "deleted", "fifos"],
)
def test_a_flood_of_files_ends_in_an_errno_and_is_cleaned_up_quickly(
    launcher: LauncherUnderTest, attack: str, expected: set[str]
) -> None:
    limits = {"disk_bytes": 16 * MIB, "memory_bytes": 256 * MIB, "open_files": 256, "cpu_time_s": 10 * SCALE}
    ran = launcher.python(FILL + attack, **limits, wall_time_s=20 * SCALE)
    assert ran.text.strip() in expected, (ran.text, ran.stderr, ran.judgement)
    started = time.monotonic()
    launcher.await_nothing_left()
    assert time.monotonic() - started < 2 * SCALE


MEMORY, TIME = "memory_exceeded", "cpu_time_exceeded"
OPEN_FILES, REFUSED = "Too many open files", "AssertionError"
# What is hoarded without end, and what may end it: a verdict on the job, or an error of the program's.
HOARDS: dict[str, tuple[str, set[str]]] = {
    "pipes": ("while True: keep.append(os.pipe2(os.O_NONBLOCK)); os.write(keep[-1][1], bytes(65536))", {OPEN_FILES}),
    "sockets": (
        "while True:\n"
        "    keep.append(socket.socketpair()); keep[-1][0].setblocking(False); keep[-1][0].send(bytes(1 << 20))",
        {MEMORY},
    ),
    "epolls": ("while True: keep.append(select.epoll())", {OPEN_FILES}),
    "inotify": ("while True: assert libc.inotify_init() >= 0", {REFUSED}),
    "eventfds": ("while True: keep.append(os.eventfd(0))", {OPEN_FILES}),
    "memfds": ("while True: keep.append(os.memfd_create('x')); os.write(keep[-1], bytes(1 << 20))", {MEMORY}),
    "timers": ("while True: assert libc.timer_create(1, 0, ctypes.byref(ctypes.c_long())) == 0", {REFUSED}),
    "queued signals": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])\n"
        "while True: assert libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None) == 0",
        {REFUSED},
    ),
    "mappings": ("while True: keep.append(mmap.mmap(-1, 4096, prot=1 + len(keep) % 2))", {MEMORY, "Cannot allocate"}),
    "page tables": ("m = mmap.mmap(-1, 1 << 40, flags=0x4022)\nfor at in range(0, 1 << 40, 1 << 21): m[at]", {MEMORY}),
    "SysV shared memory": (
        "while True: libc.memset(libc.shmat(libc.shmget(0, 1 << 20, 0o1600), None, 0), 1, 1 << 20)",
        {MEMORY},
    ),
    "locks": (
        "f = os.open('l', os.O_CREAT | os.O_RDWR)\nfor n in itertools.count(): fcntl.lockf(f, fcntl.LOCK_EX, 1, n * 2)",
        {MEMORY, TIME},
    ),
    "names looked up in vain": (
        "for n in itertools.count(): os.path.exists(f'/box/{n}' + 'x' * 200)",
        {MEMORY, TIME},
    ),
}
SHM = (
    "libc.shmat.restype = ctypes.c_void_p\nlibc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]\n"
    "libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]\n"
)


@pytest.mark.parametrize("hoard", HOARDS)
def test_hoarded_kernel_objects_are_the_jobs_own_and_go_with_it(launcher: LauncherUnderTest, hoard: str) -> None:
    launcher.await_nothing_left()
    before = slab_bytes()
    program, ends = HOARDS[hoard]
    imports = "import ctypes, fcntl, itertools, mmap, os, select, signal, socket\nlibc = ctypes.CDLL(None)\nkeep = []\n"
    limits = {"memory_bytes": 64 * MIB, "cpu_time_s": 1.5 * SCALE, "wall_time_s": 20 * SCALE}
    ran = launcher.python(imports + SHM + program, open_files=1024, **limits)
    assert ran.verdict in ends or any(end in ran.stderr.decode() for end in ends), (ran.judgement, ran.stderr)
    assert ran.facts.memory_peak_bytes <= 65 * MIB
    launcher.await_nothing_left()
    deadline_s = time.monotonic() + 5 * SCALE  # some of it is freed after a grace period of the kernel's
    while slab_bytes() - before >= 32 * MIB and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert slab_bytes() - before < 32 * MIB, "what the kernel kept is less than a job may have"
    assert launcher.run(("true",)).verdict == "ok"


BOMBS = {
    "forks": "while True: os.fork()",
    "zombies": "while True:\n    if os.fork() == 0: os._exit(0)",
    "threads": "while True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "orphans": "while True:\n    if os.fork(): os._exit(0)\n    os.setsid()",
    "vforks": "while True: os.posix_spawn('/bin/sleep', ['sleep', '60'], {})",
}


def limited(launcher: LauncherUnderTest, bomb: str) -> Ran:
    program = "import os, threading, time\n" + BOMBS[bomb]
    return launcher.python(program, processes=16, wall_time_s=1 * SCALE, cpu_time_s=5 * SCALE)


@pytest.mark.parametrize("bomb", BOMBS)
def test_every_kind_of_bomb_stays_within_its_processes_and_its_time(launcher: LauncherUnderTest, bomb: str) -> None:
    started = time.monotonic()
    ran = limited(launcher, bomb)
    assert ran.verdict in ENDINGS
    assert ran.facts.processes_peak is None or ran.facts.processes_peak <= 16
    assert time.monotonic() - started < (1 + 2) * SCALE
    launcher.await_nothing_left()


@pytest.mark.parametrize(
    "touch",
    [
        "m = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
        "m = mmap.mmap(-1, {size}, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)",
        "f = os.open('/dev/shm/f', os.O_CREAT | os.O_RDWR); os.truncate(f, {size}); m = mmap.mmap(f, {size})",
        "f = os.memfd_create('f'); os.truncate(f, {size}); m = mmap.mmap(f, {size})",
    ],
    ids=["private", "shared", "file", "memfd"],
)
def test_touched_memory_of_any_kind_is_told_truly(launcher: LauncherUnderTest, touch: str) -> None:
    def peak(count: int) -> int:
        program = (
            "import mmap, os\n" + touch.format(size=32 * MIB) + f"\nfor at in range(0, {count}, 4096): m[at] = 1\n"
        )
        ran = launcher.python(program, disk_bytes=64 * MIB)
        assert ran.verdict == "ok", ran.stderr
        return ran.facts.memory_peak_bytes

    assert abs(peak(32 * MIB) - peak(0) - 32 * MIB) <= 32 * MIB * 0.02 + MIB


def test_odd_requests_to_every_descriptor_that_can_be_opened_do_nothing(
    launcher: LauncherUnderTest, control: Callable[..., LauncherUnderTest]
) -> None:
    """Terminals, disks, file systems and networks are asked: of none of them is there one."""
    program = """
    import errno, fcntl, os, socket, struct
    requests = {
        "BLKGETSIZE64": 0x80081272, "FS_IOC_GETFLAGS": 0x80086601, "FS_IOC_SETFLAGS": 0x40086602,
        "FIFREEZE": 0xC0045877, "FIDEDUPERANGE": 0xC0189436, "FICLONE": 0x40049409, "TIOCSCTTY": 0x540E,
        "TIOCGWINSZ": 0x5413, "RNDADDENTROPY": 0x40085203, "RNDCLEARPOOL": 0x5206, "KDSETLED": 0x4B32,
        "LOOP_SET_FD": 0x4C00, "SIOCSIFFLAGS": 0x8914, "SIOCSIFADDR": 0x8916, "SIOCADDRT": 0x890B,
        "SIOCBRADDBR": 0x89A0, "NS_GET_USERNS": 0xB701, "NS_GET_PARENT": 0xB702,
    }
    names = "null zero full random urandom".split()
    opened = {name: os.open(name, os.O_RDONLY) for name in (
        *(f"/dev/{name}" for name in names), "/proc/self/ns/net", "/proc/self/ns/pid",
        "/usr", "/etc/passwd", "/box", "/tmp", "/dev", "/proc",
    )}
    opened |= {"0": 0, "1": 1, "socket": socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()}
    for name, fd in opened.items():
        for request, number in requests.items():
            try:
                fcntl.ioctl(fd, number, struct.pack("16sH14x", b"lo", 0))
                print(name, request)
            except OSError:
                pass
    """
    ran = launcher.python(program)
    assert ran.verdict == "ok", ran.stderr
    # The flags of a file may be read.
    assert [line for line in ran.text.splitlines() if not line.endswith(" FS_IOC_GETFLAGS")] == []
    assert "socket SIOCSIFFLAGS" in control("seccomp", "landlock", "userns", "caps").python(program).text


def test_message_queues_are_closed_by_their_limit(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.mq_open(b"/channel", 0o102, 0o600, None), errno.errorcode[ctypes.get_errno()])
        """
    )
    assert ran.text == "-1 EMFILE\n"
