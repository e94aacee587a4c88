"""Linter, types and compiler warnings are tests: `pytest` is the only command."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON_FOLDERS = [
    folder for folder in ("sandboxd", "workers", "tests", "demo", "benchmarks", "scripts") if (ROOT / folder).is_dir()
]


def run(*command: str) -> str:
    """Run a tool in the checkout; its complaints are the message of the failed assertion."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def build_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def init_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PID 1 compiled exactly as the package's build does it: -Wall -Wextra -Werror among the flags."""
    output = tmp_path_factory.mktemp("init") / "sandboxd-init"
    hook = build_hook()
    run(*hook.compile_command(sorted((ROOT / hook.SOURCES).glob("*.c")), output))
    return output


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", *PYTHON_FOLDERS, "hatch_build.py")


@pytest.mark.timeout(300)
def test_mypy_strict_finds_nothing() -> None:
    run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", "/dev/null")


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").iterdir() if path.suffix != ".py"))
def test_a_shell_script_parses(script: str) -> None:
    run("bash", "-n", f"scripts/{script}")


def test_the_c_code_compiles_without_a_warning(init_binary: Path) -> None:
    assert init_binary.stat().st_mode & 0o111


def test_pid_1_is_static_position_independent_and_hardened(init_binary: Path) -> None:
    headers = run("readelf", "--wide", "--file-header", "--program-headers", "--dynamic", str(init_binary))
    assert re.search(r"Type:\s+DYN", headers), "not position independent"
    assert "INTERP" not in headers, "not static"
    assert "NEEDED" not in headers, "not static"
    assert re.search(r"GNU_STACK.*\sRW\s", headers), "its stack is executable"
    assert "GNU_RELRO" in headers
    assert "NOW" in headers, "relocations stay writable"


def test_the_sandbox_code_never_calls_an_unbounded_c_function() -> None:
    banned = re.compile(r"\b(?:strcpy|strcat|sprintf|vsprintf|gets|system|popen|alloca|strtok|setjmp)\s*\(")
    for path in sorted((ROOT / "sandboxd/jail/init").glob("*.[ch]")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert not banned.search(line), f"{path.name}:{number}: {line.strip()}"
