"""`sandboxd bench`: a short run leaves its figures and its charts, and nothing else; what is missing is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from jailrig import SCALE

from benchmarks import questions
from sandboxd.instance import RUN_ROOT

pytestmark = pytest.mark.root

BENCH = (sys.executable, "-I", "-m", "sandboxd", "bench")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Ended(NamedTuple):
    pid: int
    status: int
    stdout: str
    stderr: str


def bench(*arguments: str, user: str | None = None, **environment: str) -> Ended:
    with subprocess.Popen(
        [*BENCH, *arguments], env={"PATH": PATH, "LANG": "C.UTF-8", **environment}, user=user, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            said = process.communicate(timeout=60 * SCALE)
        finally:
            process.kill()
        return Ended(process.pid, process.returncode, *said)


def test_each_question_is_listed_with_its_title() -> None:
    done = bench("--list", user="nobody")
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert listed == {name: questions.load(name).TITLE for name in questions.NAMES}
    assert done.status == 0


def test_a_question_that_there_is_not_is_refused() -> None:
    done = bench("cold", "colder")
    assert done.status == 2
    assert "'colder' is not one of 'cold', " in done.stderr


def test_without_root_it_says_so_in_a_line() -> None:
    done = bench("wall_limit", user="nobody")
    assert (done.status, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith("sandboxd: root: ")


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    done = bench("wall_limit", "--output", str(tmp_path), PATH=str(tmp_path))
    assert done.status == 125
    assert done.stderr.startswith("sandboxd: gcc: ")
    assert done.stderr.endswith("apt-get install gcc libc6-dev\n")
    assert done.stderr.count("\n") == 1


def test_a_short_run_writes_its_figures_and_a_chart_of_each_question(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = bench("wall_limit", "memory", "--scale", "0.01", "--output", str(folder), TMPDIR=str(scratch))
    assert done.status == 0, done.stderr
    files = {path.name: path for path in folder.iterdir()}
    assert set(files) == {"result.json", "wall_limit.svg", "memory.svg"}
    assert all(f"written: {path}\n" in done.stdout for path in files.values())
    result = json.loads(files["result.json"].read_bytes())
    assert {row["question"] for row in result["rows"]} == {"wall_limit", "memory"}
    assert result["failed"] == {}
    assert result["commit"] == Path(sys.prefix, ".installed-commit").read_text().strip()
    for row in result["rows"]:
        drawn = ElementTree.parse(files[f"{row['question']}.svg"])  # noqa: S314  # our own
        assert any((text.text or "").startswith(f"{row['what']}: sandboxd") for text in drawn.iter())
        assert row["ours"]["median"] > 0
    assert not list(scratch.iterdir())
    assert not list(RUN_ROOT.glob(f"bench-*-{done.pid}"))
    assert not list(Path("/sys/fs/cgroup").glob(f"**/*bench-*-{done.pid}"))
