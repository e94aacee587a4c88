"""`sandboxd submit` with an odd command line: one line, status 2, and nothing is waited for or read without end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jailrig import SCALE

TOKEN = "a-token-that-nobody-asks-for"
SUBMIT = (sys.executable, "-I", "-m", "sandboxd", "submit", "--url", "http://127.0.0.1:1")


def submit(*arguments: str | bytes, token: str = TOKEN, stdin: bytes = b"") -> tuple[int, str]:
    done = subprocess.run(
        [*SUBMIT, *arguments], env={"SANDBOXD_TOKEN": token, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        input=stdin, capture_output=True, check=False, timeout=30 * SCALE,
    )  # fmt: skip
    return done.returncode, done.stderr.decode()


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "empty.py"
    path.touch()
    return str(path)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.py"
    os.mkfifo(fifo)
    for path in (str(fifo), "/dev/zero"):
        status, said = submit("--language", "python", path)
        assert (status, "is not a regular file" in said) == (2, True), said


def test_stdin_without_end_is_not_read_to_it(program: str) -> None:
    status, said = submit("--language", "python", "--stdin-file", "/dev/zero", program)
    assert (status, "at most 16777216 bytes" in said) == (2, True), said


@pytest.mark.parametrize(
    ("arguments", "token", "words"),
    [
        ((b"\xff",), TOKEN, "must be UTF-8"),
        ((), "\u00e9", "must be UTF-8"),
    ],
    ids=["argument", "token"],
)
def test_what_cannot_be_sent_is_said_in_a_line(
    program: str, arguments: tuple[bytes, ...], token: str, words: str
) -> None:
    status, said = submit("--language", "python", program, *arguments, token=token)
    assert (status, words in said, "Traceback" in said) == (2, True, False), said


@pytest.mark.parametrize("url", ["http://[::1", "localhost:8080", "localhost", "ftp://localhost", ""])
def test_an_address_that_is_none_is_said_in_a_line(program: str, url: str) -> None:
    status, said = submit("--url", url, "--language", "python", program)
    assert (status, "--url" in said, "Traceback" in said) == (2, True, False), said
