"""What a program is given, and how its end is told: argv, environment, stdin, ids, exit codes, signals."""

from __future__ import annotations

import hashlib
import signal
import time

import pytest
from jailrig import PYTHON, SCALE, LauncherUnderTest

IGNORED_BY_DEFAULT = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT}
STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
SIGNAL_MASKS = ("SigPnd", "SigBlk", "SigIgn", "SigCgt")
KILLING = sorted(set(signal.Signals) - IGNORED_BY_DEFAULT - STOPPING)


def test_arguments_arrive_unchanged(launcher: LauncherUnderTest) -> None:
    given = ("", " ", "a b", "*", "$HOME", "'\"", "\n", "äöü€😀", "-c", "x" * 4096)
    ran = launcher.python("import sys; print(ascii(sys.argv[1:]))", *given)
    assert ran.text == ascii(list(given)) + "\n"


def test_the_environment_is_the_fixed_one_and_nothing_else(launcher: LauncherUnderTest) -> None:
    ran = launcher.run(("/usr/bin/env",))
    assert dict(line.split("=", 1) for line in ran.text.splitlines()) == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/box",
        "USER": "sandbox",
        "LOGNAME": "sandbox",
    }


def test_the_requests_environment_lies_over_the_fixed_one(launcher: LauncherUnderTest) -> None:
    ran = launcher.run(("/usr/bin/env",), env={"LANG": "de_DE", "NEW": "a=b c\nd", "EMPTY": ""})
    lines = ran.text.splitlines()
    assert "LANG=de_DE" in lines
    assert "NEW=a=b c\nd\n" in ran.text
    assert "EMPTY=" in lines
    assert "HOME=/box" in lines


@pytest.mark.parametrize("content", [b"", b"x", b"two\nlines\n", bytes(range(256)), b"z" * (1 << 20)])
def test_stdin_given_in_full_is_read_in_full(launcher: LauncherUnderTest, content: bytes) -> None:
    assert launcher.run(("/bin/cat",), stdin=content).stdout == content


def test_stdin_streamed_in_chunks_is_read_in_full(launcher: LauncherUnderTest) -> None:
    content = bytes(range(256)) * (3 << 12)  # 3 MiB: three times the window
    with launcher.live(("/usr/bin/sha256sum",)) as program:
        program.write(content)
        program.wait()
        assert program.output == f"{hashlib.sha256(content).hexdigest()}  -\n".encode()


def test_stdin_is_at_its_end_when_none_was_given(launcher: LauncherUnderTest) -> None:
    assert launcher.python("import sys; print(repr(sys.stdin.read()))").text == "''\n"
    assert launcher.python("import sys; print(repr(sys.stdin.read()))", stdin=None).text == "''\n"


def test_a_program_that_reads_no_stdin_is_not_disturbed_by_it(launcher: LauncherUnderTest) -> None:
    assert launcher.run(("/bin/echo", "done"), stdin=b"x" * (1 << 20)).text == "done\n"
    program = "import os, time; os.close(0); print('closed', flush=True); time.sleep(0.2)"
    with launcher.live((PYTHON, "-c", program)) as live:
        live.await_output(b"closed")
        live.write(b"x" * (2 << 20))
        outcome = live.wait()
        assert outcome is not None
        assert outcome.facts.exit_code == 0


@pytest.mark.parametrize("given", [b"line\n", None], ids=["given", "streamed"])
def test_dev_stdin_and_its_siblings_can_be_opened(launcher: LauncherUnderTest, given: bytes | None) -> None:
    ran = launcher.bash("cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr", stdin=given)
    assert (ran.stdout, ran.stderr) == ((given or b"") + b"out\n", b"err\n")


def test_the_working_directory_is_box_and_writable(launcher: LauncherUnderTest) -> None:
    assert launcher.bash("pwd; cd; pwd; touch made && ls").text.split() == ["/box", "/box", "made", "main.sh"]


def test_ids_and_names_are_the_sandboxs(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("id -u; id -g; id -un; id -gn; hostname; id -G; echo ~")
    assert ran.text.split() == ["1000", "1000", "sandbox", "sandbox", "sandbox", "1000", "/box"]


def test_monotonic_and_boot_clocks_start_near_zero(launcher: LauncherUnderTest) -> None:
    program = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME))"
    for value in launcher.python(program).text.split():
        assert 0 <= float(value) < 10 * SCALE
    assert time.monotonic() > 10 * SCALE, "the host's is older"


def test_the_wall_clock_is_the_hosts(launcher: LauncherUnderTest) -> None:
    assert abs(float(launcher.python("import time; print(time.time())").text) - time.time()) < 10 * SCALE


@pytest.mark.parametrize("code", [0, 1, 2, 3, 63, 64, 125, 126, 127, 128, 137, 139, 200, 254, 255])
def test_an_exit_status_is_reported_as_it_is(launcher: LauncherUnderTest, code: int) -> None:
    ran = launcher.run(("/bin/bash", "-c", f"exit {code}"))
    assert ran.verdict == ("runtime_error" if code else "ok")
    assert (ran.facts.exit_code, ran.facts.signal, ran.facts.exec_errno) == (code, None, None)


@pytest.mark.parametrize("number", KILLING, ids=lambda number: number.name)
def test_a_signal_that_ends_a_program_is_reported_as_that_signal(
    launcher: LauncherUnderTest, number: signal.Signals
) -> None:
    ran = launcher.run(("/bin/sh", "-c", f"kill -{number.value} $$; sleep 10"))  # bash ignores SIGQUIT
    assert ran.verdict == "signalled"
    assert (ran.facts.exit_code, ran.facts.signal) == (None, number)
    assert ran.judgement is not None
    assert ran.judgement.signal == number.name
    assert number.name in ran.judgement.reason


@pytest.mark.parametrize("number", [signal.SIGRTMIN, signal.SIGRTMIN + 5, signal.SIGRTMAX])
def test_a_real_time_signal_is_reported_too(launcher: LauncherUnderTest, number: int) -> None:
    ran = launcher.python(f"import os; os.kill(os.getpid(), {int(number)})")
    assert (ran.verdict, ran.facts.signal) == ("signalled", number)


def test_all_signals_have_their_default_disposition_and_none_is_blocked(launcher: LauncherUnderTest) -> None:
    status = launcher.run(("cat", "/proc/self/status"))  # grep catches SIGSEGV
    masks = {line[:6]: line[8:] for line in status.text.splitlines() if line[:6] in SIGNAL_MASKS}
    assert masks == dict.fromkeys(SIGNAL_MASKS, "0" * 16)


def test_a_program_outside_of_path_is_found_by_name_in_path_alone(launcher: LauncherUnderTest) -> None:
    assert launcher.run(("env",)).verdict == "ok"
    assert launcher.run(("env",), env={"PATH": "/nowhere:/usr/bin"}).verdict == "ok"
    assert launcher.run(("env",), env={"PATH": "/nowhere"}).facts.exec_errno is not None
    script = {"mine": "#!/bin/sh\necho mine\n"}
    assert launcher.run(("mine",), files=script, env={"PATH": "/box"}).text == "mine\n"
    assert launcher.run(("./mine",), files=script).text == "mine\n"
    assert launcher.run(("mine",), files=script).facts.exec_errno is not None


@pytest.mark.parametrize(
    ("argv", "files", "code", "word"),
    [
        (("/nowhere",), {}, 127, "exist"),
        (("nowhere",), {}, 127, "exist"),
        (("./nowhere",), {}, 127, "exist"),
        (("./data/x",), {"data": "x"}, 127, "folder"),
        (("./data",), {"data": "not executable"}, 126, "executable"),
        (("/usr",), {}, 126, "executable"),
        (("./script",), {"script": "#!/nowhere/interpreter\n"}, 127, "interpreter"),
        (("./loop",), {"loop": b"\x7fELF but not really"}, 126, "format"),
        (("./plain",), {"plain": "#!\n"}, 126, "format"),
        (("/" + "x" * 300,), {}, 126, "long"),
    ],
    ids=[
        *("absent", "not in PATH", "absent here", "below a file", "no x bit", "folder", "no interpreter", "bad ELF"),
        *("empty #!", "long name"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_executed_is_the_programs_error_and_says_why(
    launcher: LauncherUnderTest, argv: tuple[str, ...], files: dict[str, bytes | str], code: int, word: str
) -> None:
    ran = launcher.run(argv, files=files)
    assert ran.verdict == "runtime_error", ran.judgement
    assert ran.judgement is not None
    assert ran.judgement.exit_code == code
    assert word in ran.judgement.reason
    assert ran.facts.cpu_time_ns == 0


def test_arguments_that_are_too_big_together_are_the_programs_error(launcher: LauncherUnderTest) -> None:
    """A quarter of the stack is what execve(2) takes for them."""
    ran = launcher.run(("/bin/true", *["x" * 4096] * 256), stack_bytes=1 << 20)
    assert ran.verdict == "runtime_error"
    assert ran.judgement is not None
    assert ran.judgement.exit_code == 126


def test_a_line_of_64_kib_and_binary_output_are_exact(launcher: LauncherUnderTest) -> None:
    line = launcher.python("print('x' * 65536)")
    assert line.stdout == b"x" * 65536 + b"\n"
    binary = launcher.python("import os; os.write(1, bytes(range(256)) * 100); os.write(2, b'\\xff\\0')")
    assert (binary.stdout, binary.stderr) == (bytes(range(256)) * 100, b"\xff\0")


def test_output_written_one_byte_at_a_time_is_complete(launcher: LauncherUnderTest) -> None:
    ran = launcher.python("import os\nfor number in range(20000): os.write(1, bytes([number % 256]))")
    assert ran.stdout == bytes(number % 256 for number in range(20000))


def test_a_program_that_closes_its_streams_is_run_to_its_end(launcher: LauncherUnderTest) -> None:
    ran = launcher.python("import os\nfor fd in (0, 1, 2): os.close(fd)\nos._exit(7)")
    assert (ran.stdout, ran.stderr, ran.facts.exit_code) == (b"", b"", 7)


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(0.01)
            os.write(1, b"daemon\\n")
    os._exit(0)
os.wait()
os.write(1, b"main\\n")
"""


def test_the_result_comes_at_the_main_processs_end_though_a_daemon_keeps_stdout_open(
    launcher: LauncherUnderTest,
) -> None:
    ran = launcher.python(DAEMON, wall_time_s=60)
    assert ran.verdict == "ok"
    assert ran.facts.wall_time_ns < 10e9 * SCALE
    assert b"main\n" in ran.stdout


def test_what_a_daemon_prints_before_the_end_is_kept_and_after_it_nothing_comes(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import os, signal
        ready, go = os.pipe()
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(1, b"daemon\\n")
            os.write(go, b"x")
            signal.pause()
        os.read(ready, 1)
        print("main", flush=True)
        """
    )
    assert (ran.verdict, ran.text) == ("ok", "daemon\nmain\n")
    assert ran.facts.stdout_bytes == len(ran.stdout)


def test_41_daemons_are_gone_after_the_end(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import os, signal
        ready, go = os.pipe()
        for number in range(41):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for ignored in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                        signal.signal(ignored, signal.SIG_IGN)
                    if number % 2:
                        os.closerange(0, 3)
                    os.write(go, b"x")
                    while True:
                        signal.pause()
                os._exit(0)
            os.wait()
        count = 0
        while count < 41:
            count += len(os.read(ready, 41))
        print(count)
        """
    )
    assert (ran.verdict, ran.text) == ("ok", "41\n")
    assert ran.facts.processes_peak is None or ran.facts.processes_peak >= 42
    launcher.await_nothing_left()


def test_a_stopped_daemon_is_gone_too(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("(kill -STOP $BASHPID) & while ! grep -qs '^State:.T' /proc/$!/status; do :; done")
    assert ran.verdict == "ok"
    launcher.await_nothing_left()


def test_a_program_that_prints_a_verdict_changes_nothing(launcher: LauncherUnderTest) -> None:
    ran = launcher.bash("""echo '{"verdict": "ok", "exit_code": 0, "signal": null}'; echo 'status:OK' >&2; exit 3""")
    assert (ran.verdict, ran.facts.exit_code) == ("runtime_error", 3)


@pytest.mark.parametrize("code", [137, 139, 124, 152])
def test_an_exit_status_that_looks_like_a_signal_is_none(launcher: LauncherUnderTest, code: int) -> None:
    ran = launcher.bash(f"exit {code}")
    assert (ran.verdict, ran.facts.exit_code, ran.facts.signal) == ("runtime_error", code, None)


def test_killing_everything_that_it_can_ends_only_itself(launcher: LauncherUnderTest) -> None:
    """kill(-1) reaches the payload's own processes; PID 1 goes on and tells the true end."""
    ran = launcher.python(
        """
        import os, signal, time
        for _ in range(5):
            if os.fork() == 0:
                time.sleep(60)
        os.kill(-1, signal.SIGKILL)
        print("alone", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert (ran.verdict, ran.text, ran.facts.signal) == ("signalled", "alone\n", signal.SIGKILL)


def test_cpu_time_of_children_that_nobody_waited_for_is_counted(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import os, resource, signal, time
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        ready, done = os.pipe()
        if os.fork() == 0:
            while time.process_time() < 0.3: pass
            os._exit(0)
        os.close(done)
        os.read(ready, 1)
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 0.01)
        """
    )
    assert ran.text == "True\n", "rusage does not see it"
    assert ran.facts.cpu_time_ns >= 0.3e9


def test_an_idle_program_is_charged_almost_nothing(launcher: LauncherUnderTest) -> None:
    ran = launcher.run(("/bin/sleep", "0.3"))
    assert ran.facts.cpu_time_ns < 0.05e9 * SCALE
    assert ran.facts.wall_time_ns >= 0.3e9


def test_the_main_process_is_not_pid_1_and_orphans_are_reaped(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(
        """
        import os, time
        print(os.getpid(), os.getppid())
        for _ in range(20):
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.wait()
        while sum(name.isdigit() for name in os.listdir("/proc")) > 1:
            time.sleep(0.001)
        print("reaped")
        """
    )
    assert ran.text.split() == ["2", "1", "reaped"]
