"""PID 1's reading of its step lists, with the address and undefined behaviour sanitizers, on lists changed at random.

`FUZZ_ROUNDS=100000000 make test PYTEST_ARGS=tests/fuzz` goes on for longer; the seed is printed with what is found.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from jailrig import SCALE

from sandboxd.cli import explain
from sandboxd.jail import plan, wire
from sandboxd.jail.facts import host_facts
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.merge import effective_limits
from sandboxd.spec import InputFile, StageSpec, input_sizes

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "300000"))
INIT = Path(__file__).resolve().parents[2] / "sandboxd" / "jail" / "init"
STRICT = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fuzz") / "init_list"
    source = Path(__file__).with_name("init_list.c")
    subprocess.run(
        ["gcc", *STRICT, "-Wno-unused-function", *SANITIZERS, f"-I{INIT}", str(source), "-o", str(output)], check=True
    )
    return output


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The lists of a real sandbox: to build one, and to give it a job with files."""
    folder = policy_folder()
    policy = load_policies(folder)["default"]
    inputs = explain._inputs(folder, policy, host_facts(), "/run/sandboxd/x")
    stage = StageSpec(
        name="run", policy="default", image="host", argv=("./a", "b" * 100), env={"A": "1"},
        limits=effective_limits(policy, {}, {}),
        files=(InputFile(path="d/e.txt", content=b"content" * 50), InputFile(path="a", content=b"x", executable=True)),
    )  # fmt: skip
    written = []
    for name, pieces in (
        ("build", wire.encode(plan.build_plan(inputs))),
        ("job", wire.encode(plan.job_plan(stage, input_sizes(stage)), stage.argv, ("A=1",))),
    ):
        path = tmp_path_factory.mktemp("lists") / name
        path.write_bytes(b"".join(pieces))
        written.append(path)
    return written


def test_no_list_makes_init_read_where_it_must_not(fuzzer: Path, lists: list[Path]) -> None:
    seed = int.from_bytes(os.urandom(8), "little")
    done = subprocess.run(
        [fuzzer, str(ROUNDS), str(seed), *lists],
        env={"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
        capture_output=True, text=True, check=False, timeout=max(100, ROUNDS / 1000) * SCALE,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    rounds, accepted, _ = map(int, done.stdout.split())
    assert rounds == ROUNDS
    assert rounds / 50 < accepted < rounds, "some are accepted, some refused: both ways are tried"
