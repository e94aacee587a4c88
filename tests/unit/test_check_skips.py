"""Continuous integration fails on a test that was skipped without a reason on its list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_skips.py"
REPORT = """<testsuites><testsuite>
<testcase classname="a" name="passed"/>
<testcase classname="a" name="skipped"><skipped type="pytest.skip" message="{reason}"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("reason", "allowed", "status"),
    [
        ("host fact: no SELinux", ["host fact: no SELinux$"], 0),
        ("host fact: no SELinux", ["host fact: pure cgroup v2", "host fact: no"], 0),
        ("too slow today", ["host fact: no SELinux"], 1),
        ("because of: host fact: no SELinux", ["host fact: no SELinux"], 1),
        ("host fact: no SELinux", [], 1),
    ],
)
def test_a_reason_must_be_on_the_list(tmp_path: Path, reason: str, allowed: list[str], status: int) -> None:
    (tmp_path / "first.xml").write_text(REPORT.format(reason=reason))
    (tmp_path / "second.xml").write_text("<testsuites/>")
    done = check(tmp_path, *allowed)
    assert done.returncode == status
    assert ("a.skipped" in done.stderr) == bool(status)


def test_no_report_is_no_success(tmp_path: Path) -> None:
    assert check(tmp_path).returncode == 1


def check(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )
