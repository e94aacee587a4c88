"""Every system call number, decided by the shipped filter as was reviewed.

After a change of the profile that is meant:
`REWRITE_SYSCALLS=1 make test PYTEST_ARGS=tests/unit/test_seccomp_reviewed.py`, and read the difference.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from sandboxd.audit import calls

pytestmark = pytest.mark.skipif(platform.machine() != calls.MACHINE, reason="host fact: not an x86_64 machine")


def test_the_filter_decides_as_was_reviewed() -> None:
    lines = calls.decided()
    if os.environ.get("REWRITE_SYSCALLS"):
        # Into the checkout, where the tests are started: what is tested is installed.
        Path("sandboxd/audit/programs", calls.TABLE.name).write_text("\n".join(lines) + "\n")
    assert calls.TABLE.read_text().splitlines() == lines
    assert list(calls.differences()) == []


def test_a_call_that_is_opened_or_closed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "reviewed.txt"
    lines = calls.TABLE.read_text().replace("\n0 read allowed allowed\n", "\n0 read EPERM allowed\n").splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("39 ")) + "\n")
    monkeypatch.setattr(calls, "TABLE", table)
    assert list(calls.differences()) == [
        "0 (read): allowed, allowed; reviewed: EPERM, allowed",
        "39 (getpid): allowed, allowed; reviewed: ENOSYS, ENOSYS",
    ]
