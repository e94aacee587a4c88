"""Child processes: started in order, started anew when they die, stopped in order. One thread, one poll loop.

A child runs under setpriv(1): it dies with this process even when that is killed (PR_SET_PDEATHSIG), and an
unprivileged one has lost user, groups and every capability before its first instruction. Each child is a session of
its own, so that a Ctrl-C in the terminal reaches the supervisor alone, which then ends the children in the right
order. Linux 5.3 (pidfd_open), util-linux 2.33.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import structlog

from sandboxd import watchdog
from sandboxd.errors import HostError
from sandboxd.spec import Struct

log = structlog.get_logger()

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
SECOND_SIGNAL_S = 1.2
"""A worker takes a SIGTERM within a second of the first for the same one, sent twice."""
STEADY_S = 30.0
"""A child that lived that long is started anew at once."""


class ChildSpec(Struct, frozen=True, kw_only=True):
    """A process to keep alive. `user` None: it stays root. `watched`: it gives signs of life, and is killed without.

    Children of the highest `stop_rank` are stopped first, those of one rank together. `stop_s`: how long that may take.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    user: str | None
    stop_rank: int
    stop_s: float
    watched: bool = False


class Stopped(Exception):
    """SIGTERM, SIGINT or SIGHUP came while children were being started."""


def privilege_prefix(user: str | None) -> list[str]:
    """The setpriv command that a child is executed through. Raises HostError without util-linux."""
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    if setpriv is None:
        raise HostError("setpriv", "setpriv is missing", "apt-get install util-linux")
    drop: Sequence[str] = ()
    if user is not None:
        drop = (
            f"--reuid={user}",
            f"--regid={user}",
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
        )
    return [setpriv, *drop, "--pdeathsig=KILL", "--"]


class Child:
    """One process of a `ChildSpec`, and what is needed to start the next one."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.failures = 0
        self.retry_at_s: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._started_s = 0.0
        self.sign_of_life_s: float | None = None
        """When the last one came; None before the first."""

    @property
    def pid(self) -> int | None:
        """The running process's id."""
        return self._process.pid if self._process is not None else None

    @property
    def pidfd(self) -> int:
        """Readable when the process ended; -1 while there is none."""
        return self._pidfd

    def start(self, notify_address: str = "") -> None:
        watched = {"NOTIFY_SOCKET": notify_address} if self.spec.watched else {}
        self._process = subprocess.Popen(
            [*privilege_prefix(self.spec.user), *self.spec.command],
            env={**self.spec.environment, **watched},
            cwd="/",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:  # nobody would hear of its end: another would be started beside it
            self._process.kill()
            self._process.wait()
            self._process = None
            raise
        self._started_s = time.monotonic()
        self.retry_at_s = self.sign_of_life_s = None
        log.debug("started", child=self.spec.name, pid=self._process.pid)

    def reap(self) -> str | None:
        """How the process ended, in words; None while it runs or when there is none. What it left behind is killed."""
        if self._process is None or not select.select([self._pidfd], [], [], 0)[0]:
            return None
        # Processes that it forked (gunicorn's, Redis's) would keep its port. Before the wait: until then its number,
        # which is its group's too, cannot be another's.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._process = None
        os.close(self._pidfd)
        self._pidfd = -1
        if time.monotonic() - self._started_s >= STEADY_S:
            self.failures = 0
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    def plan_restart(self) -> float:
        """Set when to start anew; returns the pause in seconds: none after the first death, then ever longer ones."""
        pause_s = 0.0 if self.failures == 0 else min(BACKOFF_MIN_S * 2.0**self.failures, BACKOFF_MAX_S)
        self.failures += 1
        self.retry_at_s = time.monotonic() + pause_s
        return pause_s

    def send(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


class Supervisor:
    """Owns the children of one service. Used as a context manager: leaving it stops what still runs."""

    def __init__(self, notify_path: Path) -> None:
        """`notify_path`: where children send their signs of life to (`watchdog.Listener`)."""
        self._notify_path = notify_path
        self.children: list[Child] = []
        self._stop_requests = 0
        self._old_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> Supervisor:
        self._signs = watchdog.Listener(self._notify_path)
        self._wake_r, self._wake_w = socket.socketpair()
        for end in (self._wake_r, self._wake_w):
            end.setblocking(False)
        for number in STOP_SIGNALS:
            self._old_handlers[number] = signal.signal(number, self._on_signal)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_w.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            signal.set_wakeup_fd(self._old_wakeup)
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
            self._wake_r.close()
            self._wake_w.close()
            self._signs.close()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1

    def start(self, spec: ChildSpec) -> Child:
        """Start a child. It is started anew when it dies, once `run` is reached."""
        child = Child(spec)
        self.children.append(child)
        child.start(self._signs.address)
        return child

    def wait_until(self, ready: Callable[[], bool], child: Child, timeout_s: float) -> str | None:
        """Wait until `ready`; None then, else in words what went wrong. Raises Stopped on a stop signal."""
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            if end := child.reap():
                return end
            if time.monotonic() > deadline_s:
                return f"was not ready after {timeout_s:g} s"
            self._wait(0.02, [child])
            if self._stop_requests:
                raise Stopped
        return None

    def run(self) -> None:
        """Keep the children alive until a stop signal comes."""
        while not self._stop_requests:
            due_s = [child.retry_at_s for child in self.children if child.retry_at_s is not None]
            signs_s = [child.sign_of_life_s for child in self.children if child.sign_of_life_s is not None]
            due_s += [last_s + watchdog.SILENT_MAX_S for last_s in signs_s]
            self._wait(max(0.0, min(due_s) - time.monotonic()) if due_s else None, self.children)
            for child in self.children:
                self._tend(child)
                self._end_silent(child)

    def _end_silent(self, child: Child) -> None:
        """One that hangs would keep its work, and nobody would notice; killed, it is started anew."""
        last_s = child.sign_of_life_s
        if last_s is not None and time.monotonic() - last_s > watchdog.SILENT_MAX_S:
            log.error("a child hangs and is killed", child=child.spec.name, pid=child.pid)
            child.sign_of_life_s = None
            child.send(signal.SIGKILL)

    def _tend(self, child: Child) -> None:
        pid = child.pid
        if (end := child.reap()) and pid is not None and not self._stop_requests:
            pause_s = child.plan_restart()
            log.warning("a child died and is started anew", child=child.spec.name, pid=pid, end=end, pause_s=pause_s)
        if child.retry_at_s is not None and time.monotonic() >= child.retry_at_s and not self._stop_requests:
            try:
                child.start(self._signs.address)
            except (OSError, HostError) as error:  # no process or no descriptor is free now, or setpriv is exchanged
                pause_s = child.plan_restart()
                log.error("a child cannot be started", child=child.spec.name, error=str(error), pause_s=pause_s)

    def stop(self) -> None:
        """End every child, in the order of `stop_rank`.

        SIGTERM, a second one at half of the time that is allowed (a worker then gives its job back), SIGKILL at its
        end. A second stop signal from outside goes on to the second SIGTERM soon, a third one to SIGKILL.
        """
        for rank in sorted({child.spec.stop_rank for child in self.children}, reverse=True):
            self._stop_group([child for child in self.children if child.spec.stop_rank == rank])
        self.children.clear()

    def _stop_group(self, group: list[Child]) -> None:
        started_s = time.monotonic()
        total_s = max(child.spec.stop_s for child in group)
        stages = ((signal.SIGTERM, total_s / 2), (signal.SIGTERM, total_s), (signal.SIGKILL, total_s + 5))
        for stage, (number, until_s) in enumerate(stages, start=1):
            alive = [child for child in group if child.pid is not None]
            for child in alive:
                child.send(number)
            while alive and time.monotonic() < started_s + until_s:
                if self._stop_requests > stage and number != signal.SIGKILL:
                    until_s = min(until_s, SECOND_SIGNAL_S * stage)
                self._wait(max(0.0, started_s + until_s - time.monotonic()), alive)
                for child in alive:
                    child.reap()
                alive = [child for child in alive if child.pid is not None]
            if number == signal.SIGKILL and alive:
                log.error("children did not end", children=[child.spec.name for child in alive])

    def _wait(self, timeout_s: float | None, children: Sequence[Child]) -> None:
        """Sleep until a child ends or gives a sign of life, a signal comes or the time is over."""
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        poll.register(self._signs.socket, select.POLLIN)
        for child in children:
            if child.pidfd >= 0:
                poll.register(child.pidfd, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)
        with suppress(BlockingIOError):
            self._wake_r.recv(4096)
        alive, is_flooded = self._signs.receive()
        for child in self.children:
            if child.pid in alive or (is_flooded and child.sign_of_life_s is not None):
                child.sign_of_life_s = time.monotonic()


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """A child's whole environment: settings of ours and nothing else from outside."""
    kept = {
        name: value for name, value in os.environ.items() if name.startswith("SANDBOXD_") or name in ("TZ", "NO_COLOR")
    }
    return {**kept, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **extra}
