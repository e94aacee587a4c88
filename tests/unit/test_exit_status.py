"""The exit status of `sandboxd run` and `submit`, and the guess of a file's language."""

from __future__ import annotations

import signal

import pytest

from sandboxd.errors import InputError
from sandboxd.exit_status import exit_status, signal_number
from sandboxd.guess import guess_language
from sandboxd.result import Verdict
from sandboxd.verdict import signal_name

OFFERED = {"c": "main.c", "cpp": "main.cpp", "python": "main.py", "bash": "main.sh", "executable": "program"}


@pytest.mark.parametrize(
    ("verdict", "exit_code", "name", "status"),
    [
        (Verdict.OK, 0, None, 0),
        (Verdict.RUNTIME_ERROR, 3, None, 3),
        (Verdict.RUNTIME_ERROR, 127, None, 127),
        (Verdict.SIGNALLED, None, "SIGSEGV", 139),
        (Verdict.SIGNALLED, None, "SIGRTMIN+3", 128 + signal.SIGRTMIN + 3),
        (Verdict.CPU_TIME_EXCEEDED, None, "SIGKILL", 124),
        (Verdict.WALL_TIME_EXCEEDED, None, None, 124),
        (Verdict.MEMORY_EXCEEDED, None, "SIGKILL", 124),
        (Verdict.OUTPUT_EXCEEDED, 0, None, 124),
        (Verdict.DISK_EXCEEDED, 1, None, 124),
        (Verdict.INTERNAL_ERROR, 0, None, 125),
        (None, None, None, 130),
    ],
)
def test_the_status_of_a_verdict(verdict: Verdict | None, exit_code: int | None, name: str | None, status: int) -> None:
    assert exit_status(verdict, exit_code, name) == status


def test_every_verdict_of_a_stage_has_a_status() -> None:
    for verdict in Verdict:
        assert 0 <= exit_status(verdict, 1, None) <= 255


@pytest.mark.parametrize("number", range(1, signal.SIGRTMAX + 1))
def test_every_signals_name_leads_back_to_its_number(number: int) -> None:
    assert signal_number(signal_name(number)) == number


@pytest.mark.parametrize(
    ("name", "beginning", "language"),
    [
        ("x.py", b"", "python"),
        ("x.c", b"", "c"),
        ("dir.c/x.cpp", b"", "cpp"),
        ("x.sh", b"#!/b", "bash"),
        ("a.out", b"\x7fELF", "executable"),
        ("tool", b"#!/u", "executable"),
    ],
)
def test_a_language_is_told_from_the_suffix_or_the_first_bytes(name: str, beginning: bytes, language: str) -> None:
    assert guess_language(name, beginning, OFFERED) == language


@pytest.mark.parametrize("name", ["x", "x.unknown", ".c"])
def test_what_cannot_be_told_is_asked_for(name: str) -> None:
    with pytest.raises(InputError, match="--language"):
        guess_language(name, b"text", OFFERED)
