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
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(reason=reason))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(report), *allowed], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert ("a.skipped" in done.stderr) == bool(status)
