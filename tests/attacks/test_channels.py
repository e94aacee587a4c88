"""Two sandboxes at once share nothing that one can write and the other can notice; nor does one the next."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from jailrig import LauncherUnderTest

HOLD = "\nprint('held', flush=True)\ninput()\n"

# How a name is given to something, and how another process asks whether it is there: `there` or `absent`.
CHANNELS = {
    "/dev/shm": ("open('/dev/shm/channel', 'w').write('x')", "print(os.path.exists('/dev/shm/channel'))"),
    "/tmp": ("open('/tmp/channel', 'w').write('x')", "print(os.path.exists('/tmp/channel'))"),
    "/box": ("open('/box/channel', 'w').write('x')", "print(os.path.exists('/box/channel'))"),
    "SysV shared memory": (
        "assert libc.shmget(0x5eed, 4096, 0o1666) >= 0",
        "print(libc.shmget(0x5eed, 4096, 0) >= 0)",
    ),
    "SysV semaphores": ("assert libc.semget(0x5eed, 1, 0o1666) >= 0", "print(libc.semget(0x5eed, 1, 0) >= 0)"),
    "SysV messages": ("assert libc.msgget(0x5eed, 0o1666) >= 0", "print(libc.msgget(0x5eed, 0) >= 0)"),
    "abstract sockets": (
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0channel'); s.listen()",
        "print(socket.socket(socket.AF_UNIX).connect_ex('\\0channel') == 0)",
    ),
    "loopback": (
        "s = socket.socket(); s.bind(('127.0.0.1', 7777)); s.listen()",
        "print(socket.socket().connect_ex(('127.0.0.1', 7777)) == 0)",
    ),
    "processes": (
        "open('/tmp/pid', 'w').write(str(os.getpid()))\nlibc.prctl(15, b'channel', 0, 0, 0)",  # PR_SET_NAME
        "print(any('channel' in open(f'/proc/{n}/comm').read() for n in os.listdir('/proc') if n.isdigit()))",
    ),
}
IMPORTS = "import ctypes, fcntl, os, socket\nlibc = ctypes.CDLL(None)\n"


@pytest.mark.parametrize("channel", CHANNELS)
def test_nothing_that_one_makes_is_seen_by_another(launcher: LauncherUnderTest, channel: str) -> None:
    make, look = CHANNELS[channel]
    same = IMPORTS + make + f"\nif os.fork() == 0:\n    {look}\nelse:\n    os.wait()\n"
    assert launcher.python(same).text == "True\n", "inside of one sandbox it is a channel"
    with launcher.live_python(IMPORTS + make + HOLD) as peer:
        peer.await_output(b"held")
        assert launcher.python(IMPORTS + look).text == "False\n"


LOCK = "lock = os.open('{path}', os.O_RDONLY)\nfcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
TRY = """
try:
    fcntl.flock(os.open('{path}', os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print('free')
except BlockingIOError:
    print('locked')
"""


@pytest.mark.parametrize(
    "path",
    [
        "/usr/bin/python3",
        "/usr",
        "/etc/passwd",
        "/",
        "/dev/null",
        "/dev",
        "/proc",
        *(f"/proc/self/ns/{name}" for name in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time")),
    ],
)
def test_a_lock_on_a_file_of_the_image_is_no_channel(launcher: LauncherUnderTest, path: str) -> None:
    """Locks hang on inodes: one inode seen by two sandboxes would carry a bit (isolate fixed this in 2.6)."""
    lock, attempt = IMPORTS + LOCK.format(path=path), TRY.format(path=path)
    assert launcher.python(lock + attempt).text == "locked\n", "inside of one sandbox the lock is there"
    with launcher.live_python(lock + HOLD) as peer:
        peer.await_output(b"held")
        assert launcher.python(IMPORTS + attempt).text == "free\n"


def test_reading_a_file_of_the_image_notifies_nobody_else(launcher: LauncherUnderTest) -> None:
    watch = """
    import ctypes, os, sys
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    for path in (b"/usr/bin/env", b"/etc/passwd", b"/dev/null", b"/"):
        assert libc.inotify_add_watch(fd, path, 0xfff) >= 0
    {then}
    try:
        print("noticed", len(os.read(fd, 65536)) > 0)
    except BlockingIOError:
        print("unnoticed")
    """
    touch = "open('/usr/bin/env', 'rb').read(1); open('/etc/passwd').read(); open('/dev/null').read(); os.listdir('/')"
    assert launcher.python(watch.format(then=touch)).text == "noticed True\n"
    with launcher.live_python(watch.format(then="print('held', flush=True); input()")) as peer:
        peer.await_output(b"held")
        assert launcher.python("import os\n" + touch).verdict == "ok"
        peer.write(b"\n")
        assert b"unnoticed" in peer.await_output(b"noticed")


PIPE_SIZE = "import fcntl, os\nprint(fcntl.fcntl(os.pipe()[1], fcntl.F_GETPIPE_SZ))\n"
HOARD_PIPES = """
import fcntl, os
hoard = [os.pipe() for _ in range(64)]
for _, end in hoard:
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
"""


def test_a_pool_of_the_kernels_per_user_is_no_channel(launcher: LauncherUnderTest) -> None:
    """64 MiB of pipes take a user's soft limit; every later pipe of that user is small (fs.pipe-user-pages-soft)."""
    alone = int(launcher.python(PIPE_SIZE).text)
    assert int(launcher.python(HOARD_PIPES + PIPE_SIZE).text) < alone, "inside of one sandbox the pool is noticed"
    with launcher.live_python(HOARD_PIPES + HOLD) as peer:
        peer.await_output(b"held")
        assert int(launcher.python(PIPE_SIZE).text) == alone


def test_two_live_sandboxes_have_ids_of_their_own(launcher: LauncherUnderTest) -> None:
    show = "print(open('/proc/self/uid_map').read().split()[1], flush=True)"
    with launcher.live_python(show + HOLD) as peer:
        first = int(peer.await_output(b"held").split()[0])
        second = int(launcher.python(show).text)
    assert abs(first - second) >= 65536


CANARY = "canary-of-a-former-job-7d1f"
PLANT = f"""
import ctypes, os
canary = "{CANARY}"
for folder in ("/box", "/tmp", "/dev/shm"):
    with open(folder + "/left", "w") as file:
        file.write(canary * 4096)
    hidden = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    os.write(hidden, canary.encode() * 4096)
libc = ctypes.CDLL(None)
memory = libc.shmat(libc.shmget(0x5eed, 1 << 16, 0o1600), 0, 0)
heap = canary * (1 << 20)
"""
SEARCH = f"""
import mmap, os
canary = "{CANARY[:-1]}" + "{CANARY[-1]}"
found = 0
for top in ("/box", "/tmp", "/dev/shm", "/etc", "/run", "/var"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not path.endswith("main.py"):
                found += open(path, "rb").read().count(canary.encode())
fresh = mmap.mmap(-1, 64 << 20)
found += fresh.read().count(canary.encode())
hole = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
os.truncate(hole, 16 << 20)
found += os.pread(hole, 16 << 20, 0).count(canary.encode())
found += any(canary in text for text in os.environ.values())
print(found)
"""


def test_nothing_of_a_former_job_is_left_for_the_next_in_its_slot(launcher: LauncherUnderTest) -> None:
    show_slot = "\nprint(open('/proc/self/uid_map').read().split()[1])"
    assert int(launcher.python(PLANT + SEARCH).text) >= 3 * 4096, "inside of one sandbox it is found"
    launcher.await_nothing_left()
    for _ in range(50):  # another instance of this host may take the slot in between
        before = launcher.python(PLANT + show_slot).text.strip()
        launcher.await_nothing_left()
        count, after = launcher.python(SEARCH + show_slot).text.split()
        assert count == "0"
        if after == before:
            return
        launcher.await_nothing_left()
    pytest.fail("no slot was used twice in a row")


def test_a_key_cannot_be_left_for_the_next(launcher: LauncherUnderTest) -> None:
    """Also without the filter keyrings are the user namespace's; here the calls do not exist at all."""
    before = Path("/proc/key-users").read_text()
    ran = launcher.python(
        """
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        for number in (248, 249, 250):
            libc.syscall(number, b"user", b"canary", b"x", 1, -4)
            print(errno.errorcode[ctypes.get_errno()])
        """
    )
    assert ran.text == "ENOSYS\n" * 3
    launcher.await_nothing_left()
    ours = [line for line in Path("/proc/key-users").read_text().splitlines() if line not in before.splitlines()]
    assert not [line for line in ours if 0x70000000 <= int(line.split(":")[0]) < 0x7FFE0000], ours


def kernel_log_lines() -> int:
    return len(subprocess.run(["dmesg"], capture_output=True, check=True).stdout.splitlines())


def test_crashes_and_denials_do_not_flood_the_kernels_log(launcher: LauncherUnderTest) -> None:
    before = kernel_log_lines()
    ran = launcher.python(
        """
        import ctypes, os, signal
        libc = ctypes.CDLL(None)
        denied = crashed = 0
        for _ in range(2000):
            denied += libc.unshare(0x10000000) != 0
            try:
                open("/usr/denied", "w")
            except OSError:
                denied += 1
        for _ in range(300):
            if os.fork() == 0:
                os.kill(os.getpid(), signal.SIGSEGV) if _ % 2 else ctypes.string_at(0)
            crashed += os.WIFSIGNALED(os.wait()[1])
        print(denied, crashed)
        """,
        wall_time_s=30,
        cpu_time_s=20,
    )
    assert ran.text == "4000 300\n"
    assert kernel_log_lines() - before < 100


def test_a_crash_leaves_no_core_and_takes_no_time(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import ctypes, resource
        big = bytearray(64 << 20)
        print(resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1, flush=True)
        ctypes.string_at(0)
        """,
        collect=("**",),
    )
    assert ran.text == "True\n"
    assert (ran.verdict, ran.facts.signal) == ("signalled", 11)
    assert set(ran.files) == {"main.py"}
    assert not list(Path("/").glob("core*"))
    assert not os.path.exists("/var/lib/systemd/coredump") or not any(
        "python3" in name and "1879" in name for name in os.listdir("/var/lib/systemd/coredump")
    )
