"""`make demo`, the first thing that a new user sees: it passes, and it notices when it should not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo" / "demo.py"
SCALE = float(os.environ.get("TIMEOUT_SCALE", "1"))


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


def test_every_verdict_is_as_expected_and_nothing_is_left() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        capture_output=True,
        text=True,
        timeout=100 * SCALE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdicts are as expected" in done.stdout
    assert "Nothing is left" in done.stdout


def test_a_wrong_verdict_is_noticed(demo: ModuleType) -> None:
    case = demo.Case(file="hello.c", shows="", language="c", stdout="hello\n")
    job: dict[str, Any] = {"verdict": "ok", "reason": "", "stages": [{"stdout": "hello\n"}]}
    assert demo.differs(case, job) is None
    assert demo.differs(case, {**job, "verdict": "internal_error"}) is not None
    assert demo.differs(case, {**job, "stages": [{"stdout": "bye\n"}]}) is not None
    assert demo.differs(case, {"type": "about:blank", "status": 503}) is not None


def test_something_left_behind_is_noticed(demo: ModuleType, tmp_path: Path) -> None:
    assert demo.leftovers() == []
    with subprocess.Popen(["/bin/sleep", "1000"], env={"MARK": demo.INSTANCE}) as process:
        found = demo.leftovers()
        process.kill()
    assert len(found) == 1
    assert found[0].startswith(f"process {process.pid}:")
    folder = Path("/run/sandboxd", demo.INSTANCE)
    folder.mkdir(parents=True)
    found = demo.leftovers()
    folder.rmdir()
    assert found == [f"run folder {folder}"]
