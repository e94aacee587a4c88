"""The log: whoever does not read it stops nobody."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LINES = 3000
"""More than a pipe takes."""
SPEAKS = f"""
import sys
import structlog
from sandboxd import log
log.configure("test")
logger = structlog.get_logger()
for number in range({LINES}):
    logger.warning("a line of the log", number=number)
print("said", flush=True)
sys.stdin.readline()
logger.warning("the reader is back")
"""


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SPEAKS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "said\n", "it waits for its reader"
        _, told = process.communicate("\n", timeout=20)
    kept = told.count("a line of the log")
    assert 0 < kept < LINES
    lost = LINES - kept
    assert f"{lost} lines of the log were lost" in told or f"{lost + 1} lines of the log were lost" in told
    assert "the reader is back" in told


@pytest.mark.parametrize("sink", ["/dev/full", None])
def test_a_log_that_cannot_be_written_ends_nobody(sink: str | None) -> None:
    shell = f"exec 2>{sink}" if sink else "exec 2>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", f'{shell}; exec "$@"', "sh", sys.executable, "-I", "-c", SPEAKS],
        input="\n", capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "said\n")


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole() -> None:
    text = "x" * (5 * os.sysconf("SC_PAGE_SIZE"))
    speaks = f"import structlog\nfrom sandboxd import log\nlog.configure('t')\nstructlog.get_logger().warning({text!r})"
    done = subprocess.run([sys.executable, "-I", "-c", speaks], capture_output=True, text=True, check=True, timeout=20)
    assert text in done.stderr
