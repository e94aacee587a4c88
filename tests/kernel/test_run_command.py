"""`sandboxd run`: a program behaves as if it had run here, and what is wrong is told from whose fault it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jailrig import SCALE, LauncherUnderTest
from rig import wait_until

from sandboxd.instance import RUN_ROOT

pytestmark = pytest.mark.root

RUN = (sys.executable, "-I", "-m", "sandboxd", "run")
TRUE = Path("/usr/bin/true")


@pytest.fixture
def environment(launcher: LauncherUnderTest) -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SANDBOXD_INSTANCE": launcher.instance.name,
        "SANDBOXD_STATE_ROOT": launcher.instance.state_root,
    }


@pytest.fixture
def script(tmp_path: Path) -> Any:
    def write(source: str) -> str:
        path = tmp_path / "program.py"
        path.write_text(source)
        return str(path)

    return write


def run(environment: dict[str, str], *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments],
        env=environment, text=True, timeout=60 * SCALE, check=False,
        **({"stdin": subprocess.DEVNULL, "capture_output": True} | more),
    )  # fmt: skip


def processes_of(name: str) -> list[str]:
    """The command lines that name an instance."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().split(b"\0")
            if name.encode() in line:
                found.append(str(line))
    return found


@pytest.mark.parametrize(
    ("source", "limits", "status"),
    [
        ("import sys; sys.exit(7)", (), 7),
        ("import os; os.kill(os.getpid(), 9)", (), 128 + 9),
        ("while True: pass", ("--limit", "cpu_time_s=0.2"), 124),
    ],
)
def test_the_exit_status_is_the_programs(
    environment: dict[str, str], script: Any, source: str, limits: Sequence[str], status: int
) -> None:
    assert run(environment, *limits, script(source)).returncode == status


def test_what_follows_the_file_is_the_programs(environment: dict[str, str], script: Any) -> None:
    done = run(environment, script("import sys; print(sys.argv[1:])"), "--json", "-x", "--", "a")
    assert (done.returncode, done.stdout) == (0, "['--json', '-x', '--', 'a']\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "cpu_time_s=100000"), "limits.cpu_time_s: must be at most 60, the ceiling of policy 'default'"),
        (("--limit", "memory_bytes=64X"), "is not a number"),
        (("--limit", "colour=1"), "unknown limit"),
        (("--language", "klingon"), "klingon"),
        (("--policy", "lax"), "lax"),
        (("--env", "A"), "not NAME=VALUE"),
        (("--no-such-option",), "No such option"),
    ],
)
def test_what_the_command_line_gets_wrong_is_2_and_named(
    environment: dict[str, str], script: Any, options: Sequence[str], message: str
) -> None:
    done = run(environment, *options, script("print(1)"))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_pipe_is_not_opened_as_a_program(environment: dict[str, str], tmp_path: Path) -> None:
    fifo = tmp_path / "program.py"
    os.mkfifo(fifo)
    done = run(environment, str(fifo))
    assert done.returncode == 2
    assert "not a regular file" in done.stderr


@pytest.mark.parametrize("size", [0, 3, 4, 20, 64, 200, 1000, 4096])
def test_a_program_that_is_cut_short_is_the_programs_fault(
    environment: dict[str, str], tmp_path: Path, size: int
) -> None:
    program = tmp_path / "cut"
    program.write_bytes(TRUE.read_bytes()[:size])
    done = run(environment, "--json", "--language", "executable", str(program))
    assert json.loads(done.stdout)["verdict"] in ("runtime_error", "signalled")
    assert done.returncode in (126, 128 + signal.SIGSEGV, 128 + signal.SIGBUS, 128 + signal.SIGKILL)


# Offsets in the header (elf(5)): type, machine, entry, program headers' offset and size and number, and the first
# segments'.
@pytest.mark.parametrize("offset", [16, 18, 24, 32, 54, 56, *range(64, 64 + 5 * 56, 24)])
@pytest.mark.parametrize("value", [b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 1 << 46)], ids=["ones", "zeros", "huge"])
def test_a_program_whose_headers_are_spoiled_is_the_programs_fault(
    launcher: LauncherUnderTest, offset: int, value: bytes
) -> None:
    program = bytearray(TRUE.read_bytes())
    program[offset : offset + 8] = value
    ran = launcher.run(("./spoiled",), files={"spoiled": bytes(program)})
    assert ran.verdict in ("ok", "runtime_error", "signalled", "memory_exceeded")


def test_a_closed_stdin_is_an_empty_one(environment: dict[str, str], script: Any) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *RUN, script("import sys; print(repr(sys.stdin.read()))")]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=60 * SCALE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "''\n", "")


def test_a_stdin_that_cannot_be_read_is_the_callers_mistake(
    environment: dict[str, str], script: Any, tmp_path: Path
) -> None:
    (tmp_path / "written").touch()
    shell = ["/bin/sh", "-c", f'exec "$@" 0>{tmp_path}/written', "sh", *RUN, script("import sys; sys.stdin.read()")]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False, timeout=60 * SCALE)
    assert (done.returncode, "stdin: cannot be read: Bad file descriptor" in done.stderr) == (2, True), done.stderr


def test_a_closed_stdout_takes_the_output_with_it(environment: dict[str, str], script: Any) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *RUN, script("print(1)")]
    done = subprocess.run(
        shell,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60 * SCALE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_reader_that_went_away_ends_the_program_as_a_shell_would(environment: dict[str, str], script: Any) -> None:
    path = script("while True: print('y', flush=True)")
    reading, writing = os.pipe()
    os.close(reading)
    done = run(environment, path, stdout=writing, stderr=subprocess.PIPE, capture_output=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_an_output_that_cannot_be_written_is_said(environment: dict[str, str], script: Any) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(environment, script("print(1)"), stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 125
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_ended_takes_its_own_launcher_along(
    environment: dict[str, str], script: Any, number: signal.Signals
) -> None:
    environment["SANDBOXD_INSTANCE"] = f"nobody-{os.getpid()}"  # none runs: it starts one for itself
    command = [*RUN, script("import time; print('on', flush=True); time.sleep(60)")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        name = f"run-{process.pid}"
        assert (RUN_ROOT / name).exists()
        time.sleep(0.1)
        process.send_signal(number)
        status = process.wait(20 * SCALE)
        assert status == (-9 if number is signal.SIGKILL else 128 + number)
    wait_until(lambda: not (RUN_ROOT / name).exists() and not processes_of(name), 20 * SCALE)


def test_it_works_below_sudo_which_takes_the_core_limit_away(environment: dict[str, str], script: Any) -> None:
    """sudo's default is a hard limit of 0, which only CAP_SYS_RESOURCE could raise again."""
    environment["SANDBOXD_INSTANCE"] = f"nobody-{os.getpid()}"
    lower = [
        "/usr/bin/prlimit",
        "--core=0:0",
        "/usr/bin/setpriv",
        "--bounding-set=-sys_resource",
        "--inh-caps=-sys_resource",
    ]
    program = script("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")
    done = subprocess.run(
        [*lower, *RUN, program], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60 * SCALE, check=False,
    )  # fmt: skip
    piped = Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "@"))
    if piped:
        assert (done.returncode, done.stdout) == (125, "")
        assert "core 0, 1 needed" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "(0, 0)\n"), done.stderr


@pytest.mark.parametrize("command", [("explain",), ("run", "--json")])
def test_a_full_disk_behind_the_output_is_said_in_a_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    program = tmp_path / "hello.py"
    program.write_text("print('hello')")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "sandboxd", *command, str(program)],
            stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60 * SCALE,
        )  # fmt: skip
    assert done.returncode == 125
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_denied_calls_are_listed_and_it_is_said_where_the_list_ends(environment: dict[str, str], script: Any) -> None:
    calls = "import ctypes\nlibc = ctypes.CDLL(None)\nfor _ in range({}): libc.unshare(0x10000000)"
    few = run(environment, "--report-denied", script(calls.format(2)))
    assert (few.returncode, few.stderr) == (0, "sandboxd: denied unshare, 2 times\n")
    many = run(environment, "--report-denied", script(calls.format(200)))
    assert many.stderr.splitlines() == [
        "sandboxd: denied unshare, 64 times",
        "sandboxd: what was denied after the first 64 calls is not listed",
    ]
