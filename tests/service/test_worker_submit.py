"""`sandboxd submit` behaves as if the program had run here: its output, its status, its end by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from jailrig import SCALE, LauncherUnderTest
from rig import TOKEN, wait_until
from servicerig import Service, api_server, command, service_folder

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def parts(_launcher: LauncherUnderTest) -> Iterator[tuple[Service, httpx.Client]]:
    with service_folder() as folder:
        service = Service(_launcher.instance, folder)
        service.start_worker()
        with api_server(service) as client:
            yield service, client
        service.close()


class Submitter:
    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.folder = folder
        self.environment = service.environment | {
            "SANDBOXD_URL": f"http://127.0.0.1:{service.settings.port}",
            "SANDBOXD_TOKEN": TOKEN,
        }

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def __call__(self, *arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command("submit", *arguments, user=None),
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=60 * SCALE,
        )


@pytest.fixture
def submit(parts: tuple[Service, httpx.Client], launcher: LauncherUnderTest, tmp_path: Path) -> Submitter:
    return Submitter(parts[0], tmp_path)


def test_output_and_status_are_the_programs(submit: Submitter) -> None:
    source = "import sys; print(sys.argv[1:]); print('oops', file=sys.stderr); sys.exit(3)"
    done = submit(submit.file("x.py", source), "a", "--flag", "-x")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"['a', '--flag', '-x']\n", b"oops\n")


def test_binary_output_is_passed_on_to_the_byte(submit: Submitter) -> None:
    source = "import sys; sys.stdout.buffer.write(bytes(range(256)))"
    done = submit(submit.file("x.py", source))
    assert (done.returncode, done.stdout) == (0, bytes(range(256)))


def test_stdin_is_given_from_a_file_or_from_here(submit: Submitter) -> None:
    program = submit.file("x.py", "import sys; print(sys.stdin.buffer.read())")
    assert submit("--stdin-file", submit.file("in", b"\xff\n"), program).stdout == b"b'\\xff\\n'\n"
    assert submit("--stdin-file", "-", program, stdin=b"here").stdout == b"b'here'\n"
    assert submit(program, stdin=b"not this").stdout == b"b''\n"


@pytest.mark.parametrize(
    ("source", "arguments", "status", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", (), 139, b"SIGSEGV"),
        ("while True: pass", ("--limit", "cpu_time_s=0.2"), 124, b"the limit is 0.2 s"),
        ("x = bytearray(1 << 30)", ("--limit", "memory_bytes=64M"), 124, b"64 MiB"),
    ],
)
def test_a_signal_and_a_limit_have_the_status_a_shell_gives_them(
    submit: Submitter, source: str, arguments: tuple[str, ...], status: int, words: bytes
) -> None:
    done = submit(*arguments, submit.file("x.py", source))
    assert done.returncode == status
    assert words in done.stderr


def test_what_does_not_compile_ends_with_the_compilers_words_and_status(submit: Submitter) -> None:
    done = submit(submit.file("x.c", "int main(void) { return undeclared; }"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"undeclared" in done.stderr
    assert b"does not compile" in done.stderr


def test_json_is_the_jobs_document(submit: Submitter) -> None:
    done = submit("--json", submit.file("x.py", "print('é')"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["stages"][0]["stdout"] == "é\n"


def test_arguments_and_variables_are_the_programs(submit: Submitter) -> None:
    program = submit.file("args.py", "import os, sys\nprint(sys.argv[1:], os.environ['A'], os.environ['B'])")
    done = submit("--env", "A=1=2", "--env", "B=", program, "--limit", "x")
    assert (done.returncode, done.stdout) == (0, b"['--limit', 'x'] 1=2 \n"), done.stderr
    assert submit("--env", "A", program).returncode == 2


def test_a_language_can_be_named(submit: Submitter) -> None:
    assert submit("--language", "python", submit.file("x.txt", "print(1)")).stdout == b"1\n"
    done = submit(submit.file("x.txt", "print(1)"))
    assert done.returncode == 2
    assert b"--language" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--limit", "cpu_time_s=1000"), b"limits.cpu_time_s"),
        (("--policy", "lax"), b"unknown policy"),
        (("--language", "cobol"), b"unknown language"),
    ],
)
def test_what_the_server_refuses_is_told_with_status_2(
    submit: Submitter, arguments: tuple[str, ...], words: bytes
) -> None:
    done = submit(*arguments, submit.file("x.py", "print(1)"))
    assert done.returncode == 2
    assert words in done.stderr


def test_a_wrong_token_and_a_server_that_is_not_there_are_told(submit: Submitter) -> None:
    program = submit.file("x.py", "print(1)")
    done = submit(program, SANDBOXD_TOKEN="wrong")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"SANDBOXD_TOKEN" in done.stderr
    done = submit(program, SANDBOXD_URL="http://127.0.0.1:1")
    assert done.returncode == 125
    assert b"no answer from http://127.0.0.1:1" in done.stderr


def test_the_token_is_read_from_the_instances_file(submit: Submitter, tmp_path: Path) -> None:
    state = tmp_path / "state" / submit.service.settings.instance
    state.mkdir(parents=True)
    (state / "token").write_text(TOKEN + "\n")
    environment = {"SANDBOXD_TOKEN": "", "SANDBOXD_STATE_ROOT": str(tmp_path / "state")}
    assert submit(submit.file("x.py", "print(1)"), **environment).stdout == b"1\n"
    shown = subprocess.run(
        command("token", "show", user=None), env=submit.environment | environment, capture_output=True, check=True
    )
    assert shown.stdout == TOKEN.encode() + b"\n"


def test_ctrl_c_cancels_the_job(submit: Submitter) -> None:
    program = submit.file("x.py", "import time; time.sleep(60)")
    # Whoever runs the tests in the background may have it ignored.
    heard = ["/usr/bin/env", "--default-signal=INT", *command("submit", program, user=None)]
    process = subprocess.Popen(heard, env=submit.environment, stdin=subprocess.DEVNULL)
    ended = submit.service.store
    key = f"{submit.service.settings.prefix}:job:*"

    def states() -> set[bytes]:
        return {ended.client.hget(found, "state") or b"" for found in ended.client.scan_iter(key)}

    wait_until(lambda: b"running" in states(), 20 * SCALE)
    process.send_signal(signal.SIGINT)
    assert process.wait(20 * SCALE) == 130
    assert b"running" not in states()
    assert b"cancelled" in states()


def test_without_a_token_show_says_what_to_do(submit: Submitter, tmp_path: Path) -> None:
    done = subprocess.run(
        command("token", "show", user=None),
        env=submit.environment | {"SANDBOXD_STATE_ROOT": str(tmp_path)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == os.EX_NOINPUT
    assert b"sandboxd serve" in done.stderr
