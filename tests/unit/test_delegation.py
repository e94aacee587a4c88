"""Which cgroups a launcher may manage under systemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxd import delegation
from sandboxd.delegation import is_delegated


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder that keeps extended attributes, as cgroupfs does; the attribute's namespace needs root."""
    try:
        os.setxattr(tmp_path, "trusted.delegate", b"0")
    except OSError as error:
        pytest.skip(f"host fact: {tmp_path} keeps no trusted attributes ({error.strerror})")
    return tmp_path


def make(tree: Path, path: str, *, marked: bool) -> Path:
    folder = tree / path
    folder.mkdir(parents=True)
    if marked:
        os.setxattr(folder, "trusted.delegate", b"1")
    return folder


def test_a_unit_with_delegate_yes_is_ours(tree: Path) -> None:
    assert is_delegated(make(tree, "system.slice/sandboxd.service", marked=True))


def test_a_leaf_that_we_made_in_a_delegated_unit_is_ours(tree: Path) -> None:
    unit = make(tree, "system.slice/run-1.scope", marked=True)
    assert is_delegated(make(unit, "sandboxd-members", marked=False))


def test_a_session_of_a_terminal_is_not_ours(tree: Path) -> None:
    assert not is_delegated(make(tree, "user.slice/user-0.slice/session-1.scope", marked=False))


def test_what_is_delegated_to_a_users_own_systemd_is_not_ours(tree: Path) -> None:
    manager = make(tree, "user.slice/user-1000.slice/user@1000.service", marked=True)
    assert not is_delegated(manager)
    assert not is_delegated(make(manager, "app.slice/terminal.scope", marked=False))


def test_the_root_of_the_tree_is_not_ours_under_systemd(tree: Path) -> None:
    assert not is_delegated(tree)
    assert not is_delegated(None)


def test_the_tree_of_a_pure_v2_host_is_found() -> None:
    text = Path("/proc/self/cgroup").read_text()
    found = delegation.own_cgroup(text)
    assert found is not None
    assert str(os.getpid()) in (found / "cgroup.procs").read_text().split()
