"""The supervisor of `sandboxd serve`, with real processes."""

from __future__ import annotations

import errno
import os
import pwd
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from jailrig import SCALE
from servicerig import service_folder, supervising
from structlog.testing import capture_logs

from sandboxd import watchdog
from sandboxd.instance import SERVICE_USER
from sandboxd.supervisor import Child, ChildSpec, Stopped, child_environment

SLEEP = ("/bin/sleep", "1000")
DIED = "a child died and is started anew"


def spec(
    name: str,
    *command: str,
    user: str | None = None,
    stop_rank: int = 0,
    stop_s: float = 10.0,
    watched: bool = False,
) -> ChildSpec:
    return ChildSpec(
        name=name,
        command=command,
        environment=child_environment({}),
        user=user,
        stop_rank=stop_rank,
        stop_s=stop_s,
        watched=watched,
    )


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def ended(pidfd: int, timeout_s: float = 10.0) -> bool:
    """Whether the process of a pidfd ended within the time."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


@pytest.fixture
def notify_path() -> Iterator[Path]:
    with service_folder() as folder:
        yield folder / "notify.sock"


def ask_for_the_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def fifo() -> Iterator[Path]:
    """A pipe with a name that the service user may write: pytest's own folders are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        path = Path(folder, "fifo")
        os.mkfifo(path)
        path.chmod(0o666)
        yield path


def test_a_child_that_dies_is_started_anew_and_its_death_is_reported(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    short = shell(f"echo >>{lives}; [ $(wc -l <{lives}) -lt 4 ] || kill {os.getpid()}; exit 3")
    with capture_logs() as said, supervising() as supervisor:
        supervisor.start(spec("steady", *SLEEP))
        supervisor.start(spec("short", *short))
        supervisor.run()
    deaths = [entry for entry in said if entry["event"] == DIED]
    assert [(death["child"], death["end"]) for death in deaths] == [("short", "exited with status 3")] * 3
    assert len({death["pid"] for death in deaths}) == 3


def test_a_child_of_whose_end_nobody_would_hear_is_not_left_beside_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors between the start and the pidfd."""
    started: list[int] = []
    true_open = os.pidfd_open

    def full_once(pid: int, flags: int = 0) -> int:
        started.append(pid)
        if len(started) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return true_open(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", full_once)
    child = Child(spec("child", *SLEEP))
    with pytest.raises(OSError, match="Too many"):
        child.start()
    assert child.pid is None
    assert not Path(f"/proc/{started[0]}").exists()
    child.start()
    child.send(signal.SIGKILL)
    assert ended(child.pidfd)
    assert child.reap() == "was killed by SIGKILL"


def test_the_pause_before_a_restart_is_nothing_at_first_and_then_doubles_up_to_a_bound() -> None:
    child = Child(spec("child", "/bin/false"))
    pauses = [child.plan_restart() for _ in range(12)]
    assert pauses[0] == 0
    assert pauses[1:4] == [0.2, 0.4, 0.8]
    assert pauses[-1] == 10.0


def test_children_of_the_highest_rank_end_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    ready = tmp_path / "ready"

    def says_goodbye(name: str) -> tuple[str, ...]:
        return shell(
            f"trap 'echo {name} >>{log}; exit 0' TERM; echo {name} >>{ready}; while :; do sleep 1000 & wait; done"
        )

    with supervising() as supervisor:
        for rank, name in enumerate(("first", "second", "third")):
            child = supervisor.start(spec(name, *says_goodbye(name), stop_rank=rank))
        supervisor.wait_until(lambda: ready.exists() and len(ready.read_text().split()) == 3, child, 10)
    assert log.read_text().split() == ["third", "second", "first"]


def test_a_child_that_ignores_sigterm_is_killed_at_the_end_of_its_time(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with supervising() as supervisor:
        stubborn = shell(f"trap '' TERM; echo >{ready}; while :; do sleep 1000; done")
        child = supervisor.start(spec("stubborn", *stubborn, stop_s=0.2))
        supervisor.wait_until(ready.exists, child, 10)
        assert child.pid is not None
        pidfd = os.pidfd_open(child.pid)
    assert ended(pidfd, 0)
    os.close(pidfd)


def test_a_second_stop_signal_makes_it_hurry(tmp_path: Path) -> None:
    """A worker gives its job back at the second SIGTERM; here each signal is written down."""
    log = tmp_path / "log"
    worker = shell(f"trap 'echo term >>{log}' TERM; echo up >>{log}; while :; do sleep 1000 & wait; done")
    with supervising() as supervisor:
        child = supervisor.start(spec("worker", *worker, stop_s=1000.0))
        supervisor.wait_until(log.exists, child, 10)
        for _ in range(3):
            ask_for_the_end()
    assert set(log.read_text().split()) <= {"up", "term"}
    assert child.pid is None


def test_what_a_dead_child_forked_dies_with_it(fifo: Path) -> None:
    """Else an orphan of the API would keep its port."""
    with supervising() as supervisor:
        child = supervisor.start(spec("parent", *shell(f"sleep 1000 & echo $! >{fifo}; wait")))
        pidfd = os.pidfd_open(int(fifo.read_text()))
        child.send(signal.SIGKILL)
        threading.Timer(0.3, ask_for_the_end).start()
        supervisor.run()
        assert ended(pidfd)
        os.close(pidfd)


def test_leaving_on_an_error_still_ends_the_children() -> None:
    with pytest.raises(ZeroDivisionError), supervising() as supervisor:  # noqa: PT012  # the point
        child = supervisor.start(spec("child", *SLEEP))
        assert child.pid is not None
        pidfd = os.pidfd_open(child.pid)
        _ = 1 // 0
    assert ended(pidfd, 0)
    os.close(pidfd)


def test_a_child_that_dies_before_it_is_ready_is_told_in_words() -> None:
    with supervising() as supervisor:
        child = supervisor.start(spec("child", *shell("exit 3")))
        assert supervisor.wait_until(lambda: False, child, 10) == "exited with status 3"
        child = supervisor.start(spec("child", *shell("kill -SEGV $$")))
        assert supervisor.wait_until(lambda: False, child, 10) == "was killed by SIGSEGV"


def test_a_child_that_is_not_ready_in_time_is_told_in_words() -> None:
    with supervising() as supervisor:
        child = supervisor.start(spec("child", *SLEEP))
        assert supervisor.wait_until(lambda: False, child, 0.1) == "was not ready after 0.1 s"


def test_a_stop_signal_while_starting_stops_the_start() -> None:
    with supervising() as supervisor:
        child = supervisor.start(spec("child", *SLEEP))
        ask_for_the_end()
        with pytest.raises(Stopped):
            supervisor.wait_until(lambda: False, child, 60)


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with supervising():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


def test_a_service_child_is_the_service_user_and_has_no_privilege_at_all(fifo: Path) -> None:
    with supervising() as supervisor:
        supervisor.start(spec("child", *shell(f"cat /proc/self/status >{fifo}"), user=SERVICE_USER))
        status = dict(re.findall(r"^(\w+):\t(.*)$", fifo.read_text(), re.MULTILINE))
    user = pwd.getpwnam(SERVICE_USER)
    assert status["Uid"].split() == [str(user.pw_uid)] * 4
    assert status["Gid"].split() == [str(user.pw_gid)] * 4
    assert status["Groups"].strip() == ""
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def test_a_child_gets_a_clean_environment(monkeypatch: pytest.MonkeyPatch, fifo: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/tmp/attacker")
    monkeypatch.setenv("LD_PRELOAD_FOR_TEST", "x")
    monkeypatch.setenv("SANDBOXD_QUEUE_MAX", "7")
    with supervising() as supervisor:
        supervisor.start(spec("child", *shell(f"env >{fifo}")))
        names = {line.partition("=")[0] for line in fifo.read_text().splitlines()}
    assert "SANDBOXD_QUEUE_MAX" in names
    assert names <= {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_", "TZ", "NO_COLOR"} | {
        name for name in names if name.startswith("SANDBOXD_")
    }


SUPERVISE_FOR_EVER = """
from sandboxd import log
import sys
from pathlib import Path
from sandboxd.supervisor import ChildSpec, Supervisor, child_environment
log.configure("test")
with Supervisor(Path(sys.argv[1])) as supervisor:
    for user in (None, "sandboxd"):
        child = supervisor.start(ChildSpec(name="child", command=("/bin/sleep", "1000"),
        environment=child_environment({}),
                                           user=user, stop_rank=0, stop_s=1.0))
        print(child.pid, flush=True)
    supervisor.run()
"""


def test_children_die_with_a_supervisor_that_is_killed(notify_path: Path) -> None:
    """No handler runs on SIGKILL: the kernel does it (PR_SET_PDEATHSIG), for root's children and the service user's
    alike.
    """
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE_FOR_EVER, str(notify_path)], stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    pids = [int(supervisor.stdout.readline()) for _ in range(2)]
    for pid in pids:
        while (
            "sleep" not in Path(f"/proc/{pid}/comm").read_text()
        ):  # setpriv has set the signal when it is no more setpriv
            os.sched_yield()
    pidfds = [os.pidfd_open(pid) for pid in pids]
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert all(ended(pidfd) for pidfd in pidfds)
    for pidfd in pidfds:
        os.close(pidfd)


BEATS = """
import os, signal, sys, time
from sandboxd import watchdog
watchdog.BEAT_S = 0.05
for number in range(int(sys.argv[1])):
    watchdog.beat()
    time.sleep(0.1)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def supervised(monkeypatch: pytest.MonkeyPatch, *, watched: bool, for_s: float) -> list[str]:
    """Names of the children that died while a process gave signs of life for a second and then hung."""
    monkeypatch.setattr(watchdog, "SILENT_MAX_S", 0.5)
    with capture_logs() as said, supervising() as supervisor:
        supervisor.start(spec("hangs", sys.executable, "-I", "-c", BEATS, "10", watched=watched, stop_s=0.2))
        threading.Timer(for_s, ask_for_the_end).start()
        supervisor.run()
    return [entry["child"] for entry in said if entry["event"] == DIED]


def test_a_child_that_hangs_is_killed_and_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(monkeypatch, watched=True, for_s=2.5 * SCALE) == ["hangs"]


def test_a_child_that_never_gave_a_sign_of_life_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supervised(monkeypatch, watched=False, for_s=2.5 * SCALE) == []


def test_a_sign_of_life_is_believed_of_its_sender_alone(monkeypatch: pytest.MonkeyPatch, notify_path: Path) -> None:
    """Control of the credentials: somebody else's signs keep nobody alive."""
    listener = watchdog.Listener(notify_path)
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
    watchdog.notify("WATCHDOG=1")
    watchdog.notify("READY=1")
    other = subprocess.run(
        [sys.executable, "-I", "-c", "import os; from sandboxd import watchdog; watchdog.beat(); print(os.getpid())"],
        env={"NOTIFY_SOCKET": listener.address}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert listener.receive() == ({os.getpid(), int(other.stdout)}, False)
    assert listener.receive() == (set(), False)
    listener.close()
    assert not Path(listener.address).exists()


def test_nobody_else_can_drown_the_signs_of_life(notify_path: Path) -> None:
    listener = watchdog.Listener(notify_path)
    sends = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', {listener.address!r})"
    for user, status in (("nobody", 1), (SERVICE_USER, 0)):
        done = subprocess.run(
            [sys.executable, "-I", "-c", sends], user=user, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        assert ("PermissionError" in done.stderr) is bool(status)
    listener.close()


def test_with_a_flood_of_messages_nobody_is_called_silent(monkeypatch: pytest.MonkeyPatch, notify_path: Path) -> None:
    """From a worker that was taken over, say: it must not have the others killed, nor keep the supervisor busy."""
    listener = watchdog.Listener(notify_path)
    monkeypatch.setattr(watchdog, "MESSAGES_MAX", 4)
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
    for _ in range(6):
        watchdog.notify("STATUS=x")
    assert listener.receive() == (set(), True)
    assert listener.receive() == (set(), False)
    listener.close()
