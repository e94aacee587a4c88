"""Walls behind walls: which one answers when others are taken away. The attempts are the audit's.

Every control run is on a launcher started with `--without LAYER`. That each attempt of the audit is refused, and works
where nothing stops it, `test_audit` shows.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from jailrig import LauncherUnderTest

Control = Callable[..., LauncherUnderTest]
FILTER = ("seccomp",)
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


def outcome(launcher: LauncherUnderTest, attempts: bytes, attempt: str) -> str:
    """`succeeded`, an errno's name or a signal's."""
    ran = launcher.run(("./attempts", attempt), files={"attempts": attempts})
    assert ran.verdict == "ok", (ran.judgement, ran.stderr)
    name, result = ran.text.split()
    assert name == attempt
    return result


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


def test_pid_1_is_out_of_reach_also_without_the_filter(control: Control, attempts: bytes) -> None:
    """Another uid, not dumpable, no rights to give: the filter is the second wall."""
    for attempt in ("attach=1", "read-memory=1", "write-memory=1", "steal-fd=1", "compare=1", "kill=1"):
        assert outcome(control(*FILTER), attempts, attempt) == "EPERM", attempt


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


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_core_limit_cannot_be_changed(
    launcher: LauncherUnderTest, control: Control, attempts: bytes, value: str
) -> None:
    assert outcome(launcher, attempts, f"raise-core={value}") == "EPERM"
    assert outcome(control(*REAL_RIGHTS), attempts, f"raise-core={value}") == "EPERM", "the filter alone"
    assert outcome(launcher, attempts, "raise-files") == "EPERM"


@pytest.mark.parametrize("numbers", ["1,1,0", "1,2,0", "1,5,0", "2,1,0", "2,2,0", "10,1,0", "10,2,0", "16,3,0"])
def test_ordinary_sockets_work(launcher: LauncherUnderTest, attempts: bytes, numbers: str) -> None:
    assert outcome(launcher, attempts, f"socket={numbers}") == "succeeded"
