"""What a payload sees of the host: nothing. No other process, no path, no file, no device, no socket."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jailrig import LauncherUnderTest

from sandboxd.instance import RUN_ROOT

Control = Callable[..., LauncherUnderTest]
WALK = """
import os, stat, sys
is_device = lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
wanted = {"socket": stat.S_ISSOCK, "fifo": stat.S_ISFIFO, "device": is_device}[sys.argv[1]]
for folder, folders, names in os.walk("/"):
    if folder == "/proc":
        folders[:] = []
        continue
    for name in names + folders:
        path = os.path.join(folder, name)
        if wanted(os.lstat(path).st_mode):
            print(path)
"""


@pytest.fixture
def folder_of_all() -> Iterator[Path]:
    """A folder of the host where everybody may do everything: a file, a socket that a service listens on."""
    folder = Path(f"/var/tmp/sandboxd-canary-{os.getpid()}")
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").touch()
    (folder / "file").chmod(0o666)
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o666)
        service.listen()
        yield folder
    shutil.rmtree(folder)


def attempt(launcher: LauncherUnderTest, attempts: bytes, name: str) -> str:
    return launcher.run(("./attempts", name), files={"attempts": attempts}).text.split()[1]


@pytest.mark.parametrize("path", ["/etc/shadow", "/etc/gshadow", "/etc/ssh", "/etc/machine-id", "/etc/resolv.conf"])
def test_secrets_of_the_host_do_not_exist(launcher: LauncherUnderTest, path: str) -> None:
    assert launcher.bash(f"ls -d {path} /etc/passwd").text == "/etc/passwd\n"


@pytest.mark.parametrize(
    "folder", ["/root", "/home", "/var", "/run", "/opt", "/srv", "/mnt", "/media", "/sys", "/boot"]
)
def test_folders_of_the_host_are_empty_or_absent(launcher: LauncherUnderTest, folder: str) -> None:
    assert launcher.bash(f"[ -d / ] && ls -A {folder} 2>/dev/null; echo end").text == "end\n"


def test_etc_holds_what_was_generated_and_an_allowlist(launcher: LauncherUnderTest) -> None:
    generated = {"passwd", "group", "hosts", "hostname", "nsswitch.conf"}
    allowed = {"localtime", "alternatives", "ld.so.cache", "ssl"}
    found = set(launcher.bash("ls -A /etc").text.split())
    assert generated <= found
    assert {name for name in found - generated - allowed if not name.startswith("java-")} == set()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("read-leaked", "file"), ("list-leaked", "."), ("truncate-leaked", "file"), ("mkdir-leaked", "new"),
        ("mkfifo-leaked", "new"), ("symlink-leaked", "new"), ("unlink-leaked", "file"), ("create-leaked", "."),
    ],
)  # fmt: skip
def test_even_a_leaked_descriptor_of_the_hosts_root_opens_makes_and_removes_nothing(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, folder_of_all: Path, name: str, path: str
) -> None:
    """Landlock alone: the descriptor is really there (`--without mount`), and what it leads to is refused."""
    asked = f"{name}={str(folder_of_all / path).lstrip('/')}"
    before = sorted(os.listdir(folder_of_all))
    assert attempt(launcher, attempts, asked) != "succeeded"
    assert attempt(control("mount"), attempts, asked) == "EACCES"
    assert sorted(os.listdir(folder_of_all)) == before
    assert attempt(control("mount", "landlock"), attempts, asked) == "succeeded"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("stat-leaked", "file"), ("open-path-leaked", "file"), ("list-xattr-leaked", "file"), ("watch-leaked", "."),
        ("set-xattr-leaked", "file"), ("touch-leaked", "file"), ("connect-leaked", "socket"),
    ],
)  # fmt: skip
def test_what_landlock_knows_no_right_for_only_the_mount_wall_stops(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, folder_of_all: Path, name: str, path: str
) -> None:
    """As SECURITY.md tells."""
    asked = f"{name}={str(folder_of_all / path).lstrip('/')}"
    assert attempt(launcher, attempts, asked) != "succeeded"
    assert attempt(control("mount"), attempts, asked) == "succeeded"


def test_the_hosts_shadow_takes_every_wall_away_to_be_read(control: Control, attempts: bytes) -> None:
    for without in (("mount",), ("mount", "landlock"), ("mount", "seccomp", "landlock")):
        assert attempt(control(*without), attempts, "read-leaked=etc/shadow") == "EACCES", without
    unwalled = control("mount", "seccomp", "landlock", "userns", "caps")
    assert attempt(unwalled, attempts, "read-leaked=etc/shadow") == "succeeded"


def test_it_sees_its_own_processes_alone(launcher: LauncherUnderTest, control: Control) -> None:
    listing = "import os; print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))"
    assert launcher.python(listing).text == "[2]\n"
    # With real rights PID 1 shows as well, and still none of the host's.
    assert control("landlock", "userns", "caps").python(listing).text == "[1, 2]\n"


def test_proc_shows_processes_and_nothing_of_the_kernel(launcher: LauncherUnderTest) -> None:
    names = launcher.bash("ls /proc").text.split()
    assert {name for name in names if not name.isdigit()} <= {"self", "thread-self"}


def test_dev_has_five_nodes_and_four_links(launcher: LauncherUnderTest) -> None:
    assert launcher.bash("ls /dev").text.split() == sorted(
        ["null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr", "shm"]
    )
    devices = launcher.python(WALK, "device").text.split()
    assert sorted(devices) == [f"/dev/{name}" for name in ("full", "null", "random", "urandom", "zero")]


def test_the_five_nodes_work(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import errno
        assert open("/dev/null", "rb").read() == b"" and open("/dev/null", "wb").write(b"x") == 1
        assert open("/dev/zero", "rb").read(3) == bytes(3)
        assert len(open("/dev/random", "rb").read(3)) == len(open("/dev/urandom", "rb").read(3)) == 3
        try:
            open("/dev/full", "wb", buffering=0).write(b"x")
        except OSError as error:
            print(errno.errorcode[error.errno])
        """
    )
    assert (ran.text, ran.stderr) == ("ENOSPC\n", b"")


@pytest.mark.parametrize("device", ["tty", "ptmx", "console", "kmsg", "mem", "fuse", "kvm", "net/tun", "loop0", "vda"])
def test_no_other_device_can_be_opened(launcher: LauncherUnderTest, attempts: bytes, device: str) -> None:
    assert attempt(launcher, attempts, f"open=/dev/{device}") == "ENOENT"
    assert attempt(launcher, attempts, "open=/dev/null") == "succeeded"


@pytest.mark.parametrize("kind", ["socket", "fifo"])
def test_no_socket_and_no_fifo_is_in_the_tree(launcher: LauncherUnderTest, kind: str) -> None:
    assert launcher.python(WALK, kind).text == ""
    make = "import os, socket; os.mkfifo('/box/found'); socket.socket(socket.AF_UNIX).bind('/tmp/found')\n"
    assert launcher.python(make + WALK, kind).text == {"socket": "/tmp/found\n", "fifo": "/box/found\n"}[kind]


@pytest.mark.parametrize("path", ["launcher.sock", "../default/launcher.sock", "service/redis.sock"])
def test_sockets_of_the_service_cannot_be_connected_to(launcher: LauncherUnderTest, attempts: bytes, path: str) -> None:
    assert attempt(launcher, attempts, f"connect={RUN_ROOT}/{launcher.instance.name}/{path}") == "ENOENT"


@pytest.mark.parametrize("file", ["mountinfo", "mounts", "cgroup", "environ", "maps", "cmdline", "mountstats"])
def test_no_path_or_name_of_the_host_shows(launcher: LauncherUnderTest, file: str) -> None:
    text = launcher.python(f"print(open('/proc/self/{file}').read())").text.replace("\0", "\n")
    assert text.strip()
    instance = launcher.instance
    host = [instance.name, instance.state_root, "sandboxd", "slot-", "/var/", "/run/", "/opt/", "/home/"]
    name = socket.gethostname()
    if len(name) > 3 and name not in ("sandbox", "localhost"):
        host.append(name)
    assert not [word for word in host if word in text], text


def test_its_cgroup_is_the_root_of_all_that_it_can_name(launcher: LauncherUnderTest) -> None:
    lines = launcher.bash("cat /proc/self/cgroup").text.splitlines()
    own = [line for line in lines if line.split(":")[1] in ("", "memory", "pids")]
    assert own
    assert {line.split(":", 2)[2] for line in own} == {"/"}


def test_every_mount_is_nosuid_and_all_but_dev_are_nodev(launcher: LauncherUnderTest) -> None:
    mounts = [line.split() for line in launcher.bash("cat /proc/self/mountinfo").text.splitlines()]
    options = {mount[4]: set(mount[5].split(",")) for mount in mounts}
    assert set(options) == {"/", "/usr", "/dev", "/dev/shm", "/proc"}
    assert all("nosuid" in found for found in options.values())
    assert {path for path, found in options.items() if "nodev" not in found} == {"/dev"}
    assert {path for path, found in options.items() if "ro" in found} == {"/usr", "/dev", "/proc"}


def test_no_layer_is_a_mount_of_the_host(launcher: LauncherUnderTest) -> None:
    """Not one inode of the host's is bind-mounted: every device number is one that the host has not mounted."""
    host = {line.split()[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    inside = {line.split()[2] for line in launcher.bash("cat /proc/self/mountinfo").text.splitlines()}
    assert len(inside) >= 4
    assert not inside & host


def test_the_host_is_not_told_by_name_or_uptime(launcher: LauncherUnderTest) -> None:
    ran = launcher.python("import os, time; print(os.uname().nodename, time.clock_gettime(time.CLOCK_BOOTTIME) < 60)")
    assert ran.text == "sandbox True\n"
