"""More of everything than a job may have: output, files, kernel objects, processes, odd requests to devices.

Each ends in an errno for the program or a verdict for the job; the launcher does not grow, and nothing is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jailrig import PYTHON, SCALE, LauncherUnderTest, Ran

from sandboxd.audit.corpus import PROGRAMS

MIB = 1 << 20


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


def flood(launcher: LauncherUnderTest, kind: str, **limits: float) -> Ran:
    """One of the audit's own: it says how many it made, and what refused it more."""
    return launcher.run((PYTHON, "flood.py", kind), files={"flood.py": (PROGRAMS / "flood.py").read_bytes()}, **limits)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sparse", {"EFBIG"}),
        ("allocated", {"ENOSPC"}),
        ("names", {"ENOSPC"}),
        ("long-names", {"ENOSPC"}),
        ("deep", {"ENOSPC"}),
        ("symlinks", {"ENOSPC", "EDQUOT"}),
        ("hard-links", {"ENOSPC", "EMLINK"}),
        ("deleted", {"ENOSPC", "EMFILE"}),
        ("fifos", {"ENOSPC"}),
    ],
)
def test_a_flood_of_files_ends_in_an_errno_and_is_cleaned_up_quickly(
    launcher: LauncherUnderTest, kind: str, expected: set[str]
) -> None:
    limits = {"disk_bytes": 16 * MIB, "memory_bytes": 256 * MIB, "open_files": 256, "cpu_time_s": 10 * SCALE}
    ran = flood(launcher, kind, **limits, wall_time_s=20 * SCALE)
    assert ran.text.split()[-1] in expected, (ran.text, ran.stderr, ran.judgement)
    started = time.monotonic()
    launcher.await_nothing_left()
    assert time.monotonic() - started < 2 * SCALE


MEMORY, TIME = "memory_exceeded", "cpu_time_exceeded"
# What is hoarded without end; what ends it, a verdict on the job or an errno; and how many there must have been.
HOARDS: dict[str, tuple[set[str], int]] = {
    "pipes": ({"EMFILE"}, 500),
    "sockets": ({MEMORY}, 64),
    "epolls": ({"EMFILE"}, 1000),
    "inotify": ({"EMFILE"}, 16),
    "eventfds": ({"EMFILE"}, 1000),
    "memfds": ({MEMORY}, 32),
    "timers": ({"EAGAIN"}, 64),
    "queued-signals": ({"EAGAIN"}, 64),
    "mappings": ({MEMORY, "ENOMEM"}, 4096),
    "page-tables": ({MEMORY}, 0),
    "sysv": ({MEMORY}, 32),
    "locks": ({MEMORY, TIME}, 4096),
    "negative-dentries": ({MEMORY, TIME}, 4096),
}


@pytest.mark.parametrize("hoard", HOARDS)
def test_hoarded_kernel_objects_are_the_jobs_own_and_go_with_it(launcher: LauncherUnderTest, hoard: str) -> None:
    launcher.await_nothing_left()
    before = slab_bytes()
    ends, at_least = HOARDS[hoard]
    limits = {"memory_bytes": 64 * MIB, "cpu_time_s": 1.5 * SCALE, "wall_time_s": 20 * SCALE}
    ran = flood(launcher, hoard, open_files=1024, **limits)
    made, end = ran.text.split()[-2:] or ("0", "made")
    assert (end if ran.verdict == "ok" else ran.verdict) in ends, (ran.text, ran.judgement, ran.stderr)
    assert int(made) >= at_least
    assert ran.facts.memory_peak_bytes <= 65 * MIB
    launcher.await_nothing_left()
    deadline_s = time.monotonic() + 5 * SCALE  # some of it is freed after a grace period of the kernel's
    while slab_bytes() - before >= 32 * MIB and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert slab_bytes() - before < 32 * MIB, "what the kernel kept is less than a job may have"
    assert launcher.run(("true",)).verdict == "ok"


# What is said last when all places are taken: by processes, by those that come and go.
BOMBS = {"forks": "EAGAIN", "zombies": "EAGAIN", "threads": "EAGAIN", "spawns": "EAGAIN", "orphans": "made"}


@pytest.mark.parametrize("bomb", BOMBS)
def test_every_kind_of_bomb_stays_within_its_processes_and_its_time(launcher: LauncherUnderTest, bomb: str) -> None:
    started = time.monotonic()
    ran = flood(launcher, bomb, processes=16, wall_time_s=1 * SCALE, cpu_time_s=5 * SCALE)
    assert ran.verdict == "wall_time_exceeded", (ran.judgement, ran.stderr)
    made, end = ran.text.split()[-2:]
    assert end == BOMBS[bomb]
    assert int(made) >= 12, "places that were taken, or generations that came and went"
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
