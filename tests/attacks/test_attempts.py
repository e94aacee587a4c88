"""One attempt, one row: refused with all walls, and done when the walls that back each other up are taken away.

Every control run is on a launcher started with `--without LAYER`; that an attempt then succeeds shows that it is a real
one, and which walls it was that stopped it.
"""

from __future__ import annotations

import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from jailrig import LauncherUnderTest

Control = Callable[..., LauncherUnderTest]
FILTER = ("seccomp",)
FILTER_AND_USERNS = ("seccomp", "userns")
RIGHTS = ("seccomp", "landlock", "caps")
ALL = ("seccomp", "landlock", "userns", "caps")
REAL_RIGHTS = ("landlock", "userns", "caps")
NAMESPACES = {
    "user": 0x10000000,
    "mnt": 0x20000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
}
X86 = platform.machine() == "x86_64"


def outcome(launcher: LauncherUnderTest, attempts: bytes, attempt: str) -> str:
    """`succeeded`, an errno's name or a signal's."""
    ran = launcher.run(("./attempts", attempt), files={"attempts": attempts})
    assert ran.verdict == "ok", (ran.judgement, ran.stderr)
    name, result = ran.text.split()
    assert name == attempt
    return result


@pytest.mark.parametrize(
    ("attempt", "refusal", "without"),
    [
        ("set-uid-0", "EPERM", ("caps",)),
        ("set-gid-0", "EPERM", ("caps",)),
        ("set-groups", "EPERM", ("caps",)),
        ("gain-capabilities", "EPERM", ("caps",)),
        ("set-file-capability", "EPERM", ("caps",)),
        ("give-away", "EPERM", ("caps",)),
        ("raise-nice", "EACCES", REAL_RIGHTS),
        ("raise-realtime", "EPERM", REAL_RIGHTS),
        ("make-node", "EPERM", ALL),
        ("make-char-node", "EPERM", ALL),
        ("set-hostname", "EPERM", ALL),
        ("syslog", "EPERM", ALL),
    ],
)
def test_privileges_cannot_be_gained(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str, refusal: str, without: tuple[str, ...]
) -> None:
    assert outcome(launcher, attempts, attempt) == refusal
    assert outcome(control(*without), attempts, attempt) == "succeeded"


@pytest.mark.parametrize(
    "attempt",
    [
        "mount=tmpfs",
        "mount=proc",
        "mount=sysfs",
        "mount=cgroup2",
        "mount-bind",
        "remount-writable=/usr",
        "unmount=/proc",
        "pivot",
        "fsopen=tmpfs",
        "fsopen=proc",
        "open-tree",
        "mount-setattr",
    ],
)
def test_the_file_tree_cannot_be_changed(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str
) -> None:
    assert outcome(launcher, attempts, attempt) == "EPERM"
    assert outcome(control(*ALL), attempts, attempt) == "succeeded"


def test_even_every_capability_inside_cannot_mount(control: Control, attempts: bytes) -> None:
    """The user namespace comes last: mounts, hostname and network belong to the one outside of it."""
    for attempt in ("mount=tmpfs", "unmount=/proc", "remount-writable=/usr", "set-hostname", "open-tree"):
        assert outcome(control(*RIGHTS), attempts, attempt) == "EPERM", attempt


def test_the_filter_and_landlock_hold_alone_when_real_rights_are_left(control: Control, attempts: bytes) -> None:
    for attempt in ("mount=tmpfs", "unmount=/proc", "pivot", "set-hostname", "unshare=0x20000"):
        assert outcome(control(*REAL_RIGHTS), attempts, attempt) == "EPERM", attempt


@pytest.mark.parametrize("call", ["unshare", "clone"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_no_namespace_can_be_made(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, call: str, namespace: str
) -> None:
    attempt = f"{call}={NAMESPACES[namespace]:#x}"
    assert outcome(launcher, attempts, attempt) == "EPERM"
    assert outcome(control(*FILTER), attempts, attempt) == ("ENOSPC" if namespace == "user" else "EPERM")
    assert outcome(control(*RIGHTS), attempts, attempt) == "ENOSPC", "max_*_namespaces is 0 in the user namespace"
    assert outcome(control(*ALL), attempts, attempt) == "succeeded"


def test_no_time_namespace_can_be_made(launcher: LauncherUnderTest, control: Control, attempts: bytes) -> None:
    assert outcome(launcher, attempts, "unshare=0x80") == "EPERM"
    assert outcome(control(*RIGHTS), attempts, "unshare=0x80") == "ENOSPC"
    assert outcome(control(*ALL), attempts, "unshare=0x80") == "succeeded"


@pytest.mark.parametrize("namespace", ["net", "mnt"])
def test_no_namespace_can_be_entered(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, namespace: str
) -> None:
    assert outcome(launcher, attempts, f"setns={namespace}") == "EPERM"
    assert outcome(control(*ALL), attempts, f"setns={namespace}") == "succeeded"


@pytest.mark.parametrize(("flags", "without"), [("0", FILTER), ("0x10000000", FILTER_AND_USERNS)])
def test_clone3_looks_not_built_in_so_that_its_flags_need_not_be_seen(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, flags: str, without: tuple[str, ...]
) -> None:
    assert outcome(launcher, attempts, f"clone3={flags}") == "ENOSYS"
    assert outcome(control(*without), attempts, f"clone3={flags}") == "succeeded"


@pytest.mark.parametrize(
    ("attempt", "refusal", "without"),
    [
        ("attach=1", "EPERM", ALL),
        ("read-memory=1", "EPERM", ALL),
        ("write-memory=1", "EPERM", ALL),
        ("steal-fd=1", "EPERM", ALL),
        ("compare=1", "EPERM", ALL),
        ("kill=1", "EPERM", ("landlock", "caps")),
        ("stop=1", "EPERM", ("landlock", "caps")),
        ("trace-me", "EPERM", FILTER),
        *(
            (f"open=/proc/1/{name}", "ENOENT", REAL_RIGHTS)
            for name in ("mem", "environ", "maps", "fd", "status", "cmdline", "ns/mnt")
        ),
        ("readlink=/proc/1/exe", "ENOENT", REAL_RIGHTS),
        ("readlink=/proc/1/root", "ENOENT", REAL_RIGHTS),
    ],
)
def test_pid_1_cannot_be_reached(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str, refusal: str, without: tuple[str, ...]
) -> None:
    assert outcome(launcher, attempts, attempt) == refusal
    assert outcome(control(*without), attempts, attempt) == "succeeded"


def test_pid_1_is_out_of_reach_also_without_the_filter(control: Control, attempts: bytes) -> None:
    """Another uid, not dumpable, no rights to give: the filter is the second wall."""
    for attempt in ("attach=1", "read-memory=1", "write-memory=1", "steal-fd=1", "compare=1", "kill=1"):
        assert outcome(control(*FILTER), attempts, attempt) == "EPERM", attempt


@pytest.mark.parametrize(
    ("attempt", "refusal", "without"),
    [
        ("chroot", "EPERM", RIGHTS),
        ("create=/escaped", "EACCES", REAL_RIGHTS),
        ("create=/etc/escaped", "EACCES", REAL_RIGHTS),
        ("create=/run/escaped", "EACCES", REAL_RIGHTS),
        ("create=/var/escaped", "EACCES", REAL_RIGHTS),
        ("open-write=/etc/passwd", "EACCES", REAL_RIGHTS),
    ],
)
def test_nothing_outside_of_its_own_folders_can_be_written(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str, refusal: str, without: tuple[str, ...]
) -> None:
    assert outcome(launcher, attempts, attempt) == refusal
    assert outcome(control(*without), attempts, attempt) == "succeeded"


@pytest.mark.parametrize(
    "attempt",
    [
        "create=/usr/escaped",
        "create=/dev/escaped",
        "open-write=/usr/bin/env",
        *(
            f"open-write=/proc/self/{name}"
            for name in ("oom_score_adj", "coredump_filter", "uid_map", "setgroups", "timens_offsets", "comm", "mem")
        ),
    ],
)
def test_what_is_mounted_read_only_is_so_even_for_real_rights(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str
) -> None:
    assert outcome(launcher, attempts, attempt) == "EROFS"
    assert outcome(control(*ALL), attempts, attempt) == "EROFS"
    if attempt.startswith("open-write"):  # the file is there, and is the right one
        assert outcome(launcher, attempts, attempt.replace("open-write", "open")) == "succeeded"


def test_walking_up_out_of_a_chroot_ends_at_the_same_root(
    launcher: LauncherUnderTest, control: Control, attempts: bytes
) -> None:
    """With chroot allowed the classic escape works inside, and reaches the sandbox's root: the host's is detached."""
    assert outcome(launcher, attempts, "walk-out") == "EPERM"
    assert outcome(control(*ALL), attempts, "walk-out") == "EXDEV"


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("userfaultfd", "ENOSYS"),
        ("perf", "EPERM"),
        ("bpf", "EPERM"),
        ("add-key", "ENOSYS"),
        ("keyctl", "ENOSYS"),
        ("request-key", "ENOSYS"),
        ("fanotify", "EPERM"),
        ("memfd-secret", "ENOSYS"),
        ("vmsplice", "ENOSYS"),
        ("old-aio", "ENOSYS"),
        ("io-uring", "ENOSYS"),
        ("personality", "EPERM"),
        ("move-pages", "ENOSYS"),
        ("clock-settime", "EPERM"),
        ("listener", "EPERM"),
        ("lease", "EINVAL"),
    ],
)
def test_the_kernels_wide_surface_is_closed(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str, refusal: str
) -> None:
    assert outcome(launcher, attempts, attempt) == refusal
    assert outcome(control(*ALL), attempts, attempt) in offered_by_kernel(attempts, attempt)


@pytest.mark.parametrize("attempt", ["handle=/usr", "open-handle=/usr"])
def test_file_handles_are_refused_and_overlays_have_none(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str
) -> None:
    assert outcome(launcher, attempts, attempt) == "EPERM"
    assert outcome(control(*ALL), attempts, attempt) == "EOPNOTSUPP"


@pytest.mark.parametrize("request_code", [0x5412, 0x541C, 0x5423, 0x541D], ids=["STI", "LINUX", "SETD", "CONS"])
@pytest.mark.parametrize("high_bits", [0, 1 << 32], ids=["", "high-bits"])
def test_terminal_tricks_are_refused_by_the_filter(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, request_code: int, high_bits: int
) -> None:
    """The kernel looks at 32 bits; so must the filter (CVE-2019-10063)."""
    attempt = f"terminal=0,{request_code | high_bits:#x}"
    assert outcome(launcher, attempts, attempt) == "EPERM"
    assert outcome(control(*FILTER), attempts, attempt) == "ENOTTY", "no descriptor is a terminal"


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_core_limit_cannot_be_changed(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, value: str
) -> None:
    assert outcome(launcher, attempts, f"raise-core={value}") == "EPERM"
    assert outcome(control(*REAL_RIGHTS), attempts, f"raise-core={value}") == "EPERM", "the filter alone"
    assert outcome(launcher, attempts, "raise-files") == "EPERM"


@pytest.mark.skipif(not X86, reason="another architecture: it has no second way into the kernel")
@pytest.mark.parametrize("attempt", ["int-80=20", "int-80=11", "int-80=102", "int-80=310", "x32=39", "x32=272"])
def test_another_way_into_the_kernel_is_death(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, attempt: str
) -> None:
    """The numbers mean other calls there: what a filter allows by number would be something else."""
    assert outcome(launcher, attempts, attempt) == "SIGSYS"
    assert outcome(control(*FILTER), attempts, attempt) != "SIGSYS"


@pytest.mark.skipif(not X86, reason="another architecture: it has no such call")
def test_local_descriptor_tables_are_closed(launcher: LauncherUnderTest, control: Control, attempts: bytes) -> None:
    assert outcome(launcher, attempts, "modify-ldt") == "ENOSYS"
    assert outcome(control(*FILTER), attempts, "modify-ldt") in offered_by_kernel(attempts, "modify-ldt")


@pytest.mark.parametrize("number", ["-1", "600", "999", "1023", "0x3fffffff"])
def test_unknown_system_calls_look_not_built_in(launcher: LauncherUnderTest, attempts: bytes, number: str) -> None:
    assert outcome(launcher, attempts, f"number={number}") == "ENOSYS"
    assert outcome(launcher, attempts, "number=39" if X86 else "number=172") == "succeeded"


@pytest.mark.parametrize(
    "numbers",
    [
        "2,1,262",  # MPTCP
        "2,1,132",  # SCTP
        "16,3,6",  # NETLINK_XFRM
        "16,3,9",  # NETLINK_AUDIT
        "16,3,12",  # NETLINK_NETFILTER
        "16,3,15",  # NETLINK_KOBJECT_UEVENT
        "17,3,0",  # AF_PACKET
        "17,2,0",
        "38,5,0",  # AF_ALG
        "40,1,0",  # AF_VSOCK
        "33,2,0",  # AF_RXRPC
        "44,3,0",  # AF_XDP
        "15,3,2",  # AF_KEY
        "29,3,1",  # AF_CAN
        "21,5,0",  # AF_RDS
        "30,1,0",  # AF_TIPC
        "43,1,0",  # AF_SMC
        "31,1,0",  # AF_BLUETOOTH
    ],
)
def test_exotic_sockets_look_not_built_in(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, numbers: str
) -> None:
    attempt = f"socket={numbers}"
    assert outcome(launcher, attempts, attempt) == "EAFNOSUPPORT"
    assert outcome(control(*ALL), attempts, attempt) in offered_by_kernel(attempts, attempt, as_root=True)


@pytest.mark.parametrize("numbers", ["2,3,1", "10,3,58"], ids=["icmp", "icmpv6"])
def test_raw_sockets_are_refused(launcher: LauncherUnderTest, control: Control, attempts: bytes, numbers: str) -> None:
    assert outcome(launcher, attempts, f"socket={numbers}") == "EPERM"
    assert outcome(control(*ALL), attempts, f"socket={numbers}") == "succeeded"


@pytest.mark.parametrize("numbers", ["1,1,0", "1,2,0", "1,5,0", "2,1,0", "2,2,0", "10,1,0", "10,2,0", "16,3,0"])
def test_ordinary_sockets_work(launcher: LauncherUnderTest, attempts: bytes, numbers: str) -> None:
    assert outcome(launcher, attempts, f"socket={numbers}") == "succeeded"


def offered_by_kernel(attempts: bytes, attempt: str, *, as_root: bool = False) -> set[str]:
    """What this kernel answers without any wall of ours: `succeeded`, or what it says where it was built without, or
    where its operator closed the call for everybody. Asked in an empty network namespace of its own.
    """
    with tempfile.TemporaryDirectory(prefix="sandboxd-attempts-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        program = Path(folder, "attempts")
        program.write_bytes(attempts)
        program.chmod(0o755)
        user = [] if as_root else ["setpriv", "--reuid=65534", "--clear-groups"]
        done = subprocess.run(
            ["unshare", "--net", *user, program, attempt],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    return {"succeeded", done.stdout.split()[1]}
