"""Fails when a test was skipped for a reason that is not allowed.

usage: check_skips.py FOLDER REGEX...

FOLDER holds what pytest --junitxml wrote; the reason of each skip must match one REGEX from its start.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def forbidden_skips(report: Path, allowed: list[str]) -> list[str]:
    """`test: reason` of each skipped test whose reason no expression allows."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  # written by the pytest run just before
        for skip in case.iter("skipped"):
            reason = skip.get("message", "")
            if skip.get("type") != "pytest.xfail" and not any(re.match(expression, reason) for expression in allowed):
                found.append(f"{case.get('classname')}.{case.get('name')}: {reason}")
    return found


if __name__ == "__main__":
    reports = sorted(Path(sys.argv[1]).glob("*.xml"))
    if not reports:
        sys.exit(f"no report in {sys.argv[1]}")
    found = [line for report in reports for line in forbidden_skips(report, sys.argv[2:])]
    for line in found:
        print(f"skipped, and must not be: {line}", file=sys.stderr)
    sys.exit(bool(found))
