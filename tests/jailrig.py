"""What tests of the sandbox share: a launcher of an instance of their own, and a short way to run a program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandboxd.audit import host
from sandboxd.catalogue import Catalogue
from sandboxd.instance import RUN_ROOT, Instance
from sandboxd.jail.client import LauncherClient
from sandboxd.local_launcher import is_running
from sandboxd.policy.merge import effective_limits
from sandboxd.policy.units import from_edge
from sandboxd.result import Facts, StageOutcome
from sandboxd.spec import InputFile, StageSpec
from sandboxd.verdict import Judgement, decide

SCALE = float(os.environ.get("TIMEOUT_SCALE", "1"))
"""How much slower than a common machine this one is; waits and limits in seconds are multiplied by it."""
PREPARED = int(os.environ.get("PREPARED", "0"))
"""Sandboxes that launchers under test keep ready; everything must hold with any number."""
PYTHON = "/usr/bin/python3"
_START_S = 60.0
_GONE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One stage that was run: what it printed, what was measured, and the verdict."""

    stdout: bytes
    stderr: bytes
    outcome: StageOutcome
    judgement: Judgement | None
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def facts(self) -> Facts:
        return self.outcome.facts

    @property
    def verdict(self) -> str:
        return "cancelled" if self.judgement is None else str(self.judgement.verdict)

    @property
    def text(self) -> str:
        return self.stdout.decode()


class Live:
    """A program under way in a thread of its own."""

    def __init__(self, launcher: LauncherUnderTest, stage: StageSpec) -> None:
        self._output = bytearray()
        self._changed = threading.Condition()
        self._stdin_read, self._stdin = os.pipe()
        self._cancel = os.eventfd(0)
        self.outcome: StageOutcome | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(launcher, stage))
        self._thread.start()

    def _run(self, launcher: LauncherUnderTest, stage: StageSpec) -> None:
        try:
            with launcher.client() as client:
                self.outcome = client.run(
                    stage,
                    on_stdout=self._take,
                    on_stderr=self._take,
                    stdin_fd=self._stdin_read,
                    cancel_fd=self._cancel,
                )
        except Exception as error:
            self.error = error
        finally:
            self._take(b"")

    def _take(self, chunk: bytes) -> None:
        with self._changed:
            self._output += chunk
            self._changed.notify_all()

    def await_output(self, expected: bytes) -> bytes:
        """Waits until `expected` was printed; what was printed so far."""
        with self._changed:
            self._changed.wait_for(lambda: expected in self._output or not self._thread.is_alive(), 30 * SCALE)
            assert expected in self._output, f"{expected!r} was not printed: {bytes(self._output)!r} {self.error}"
            return bytes(self._output)

    @property
    def output(self) -> bytes:
        """What was printed so far, both streams together."""
        with self._changed:
            return bytes(self._output)

    def write(self, data: bytes) -> None:
        """Writes all of it; blocks while the program, or the launcher's window, takes none."""
        while data:
            data = data[os.write(self._stdin, data) :]

    def wait(self) -> StageOutcome | None:
        """Ends its stdin and waits for its end; None when the launcher went away."""
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1
        self._thread.join(60 * SCALE)
        assert not self._thread.is_alive(), "the program goes on"
        return self.outcome

    def end(self) -> None:
        """Kills it if it still runs, and forgets it."""
        if self._thread.is_alive():
            os.eventfd_write(self._cancel, 1)
        self.wait()
        os.close(self._stdin_read)
        os.close(self._cancel)


class LauncherUnderTest:
    """A launcher of its own instance, in a process of its own; `without` leaves walls out (control runs)."""

    def __init__(
        self,
        state_root: Path,
        name: str,
        without: Sequence[str] = (),
        prefix: Sequence[str] = (),
        prepared: int = PREPARED,
    ) -> None:
        """`prefix`: a command that becomes the launcher's (`unshare --net`)."""
        self.instance = Instance(name=name, state_root=str(state_root))
        self.prepared = prepared
        self.without = tuple(without)
        self.prefix = tuple(prefix)
        self.log = state_root / f"{name}.log"
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def prepared_max(self) -> int:
        return self.prepared

    @property
    def socket(self) -> Path:
        return self.instance.launcher_socket

    def start(self) -> None:
        command = [*self.prefix, sys.executable, "-I", "-m", "sandboxd", "launcher", "--instance", self.instance.name]
        command += ["--prepared", str(self.prepared)]
        command += [part for layer in self.without for part in ("--without", layer)]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SANDBOXD_STATE_ROOT": self.instance.state_root}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline_s = time.monotonic() + _START_S * SCALE
        while not is_running(self.instance):
            assert self.process.poll() is None, f"the launcher ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline_s, f"the launcher is not ready:\n{self.log.read_text()}"
            time.sleep(0.01)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20 * SCALE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @contextlib.contextmanager
    def client(self) -> Iterator[LauncherClient]:
        with contextlib.closing(LauncherClient(self.socket)) as client:
            yield client

    def catalogue(self) -> Catalogue:
        with self.client() as client:
            return client.catalogue()

    def stage(
        self,
        argv: Sequence[str],
        *,
        policy: str = "default",
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        stdin: bytes | None = b"",
        collect: Sequence[str] = (),
        **limits: float,
    ) -> StageSpec:
        """A stage; limits as at the edge (`cpu_time_s=1`). Files that start with `#!` or ELF are executable."""
        info = self.catalogue().policy(policy)
        contents = {path: text.encode() if isinstance(text, str) else text for path, text in (files or {}).items()}
        return StageSpec(
            name="run",
            policy=policy,
            image="host",
            argv=tuple(argv),
            env=dict(env or {}),
            limits=effective_limits(info, {}, from_edge(limits)),
            files=tuple(
                InputFile(path=path, content=content, executable=content.startswith((b"#!", b"\x7fELF")))
                for path, content in contents.items()
            ),
            stdin=stdin,
            collect=tuple(collect),
        )

    def run(
        self, argv: Sequence[str], *, cancel_fd: int | None = None, stdin_fd: int | None = None, **options: object
    ) -> Ran:
        """Runs a command and judges it. Options are those of `stage`."""
        return self.run_stage(self.stage(argv, **options), cancel_fd=cancel_fd, stdin_fd=stdin_fd)  # type: ignore[arg-type]

    def run_stage(self, stage: StageSpec, *, cancel_fd: int | None = None, stdin_fd: int | None = None) -> Ran:
        stdout, stderr = bytearray(), bytearray()
        with self.client() as client:
            outcome = client.run(
                stage, on_stdout=stdout.extend, on_stderr=stderr.extend, cancel_fd=cancel_fd, stdin_fd=stdin_fd
            )
            factor = client.catalogue().policy(stage.policy).output_kill_factor
        cancelled = outcome.facts.ending == "cancelled" and outcome.facts.failure is None
        judgement = None if cancelled else decide(outcome.facts, outcome.limits, output_kill_factor=factor)
        return Ran(
            stdout=bytes(stdout),
            stderr=bytes(stderr),
            outcome=outcome,
            judgement=judgement,
            files={file.path: file.content for file in outcome.files},
        )

    @contextlib.contextmanager
    def live(self, argv: Sequence[str], **options: object) -> Iterator[Live]:
        """A program that runs beside the test, which writes its stdin; it is ended when the block is left."""
        stage = self.stage(argv, stdin=None, **options)  # type: ignore[arg-type]
        program = Live(self, stage)
        try:
            yield program
        finally:
            program.end()

    @contextlib.contextmanager
    def live_python(self, source: str, **options: object) -> Iterator[Live]:
        with self.live((PYTHON, "main.py"), files={"main.py": textwrap.dedent(source)}, **options) as program:
            yield program

    def python(self, source: str, *args: str, **options: object) -> Ran:
        """Runs a Python program."""
        return self._source("main.py", (PYTHON, "main.py", *args), source, options)

    def bash(self, source: str, *args: str, **options: object) -> Ran:
        """Runs a shell script."""
        return self._source("main.sh", ("/bin/bash", "main.sh", *args), source, options)

    def _source(self, name: str, argv: Sequence[str], source: str, options: dict[str, object]) -> Ran:
        given = options.pop("files", None)
        files = {name: textwrap.dedent(source), **(given if isinstance(given, dict) else {})}
        return self.run(argv, files=files, **options)

    # --- what is left

    def cgroups(self) -> list[Path]:
        """Leaves of sandboxes that exist now, in every hierarchy."""
        return host.sandbox_cgroups(self.instance)

    def slots(self) -> list[int]:
        return host.claimed_slots(self.instance)

    def sandbox_pids(self) -> list[int]:
        """Payloads and PID 1s of this launcher's."""
        return host.sandbox_pids(self.instance)

    def open_fds(self) -> int:
        """The launcher's descriptors, its kept build lists left out."""
        return host.open_files(self.instance, self.process.pid)

    def await_fds(self, at_most: int) -> None:
        """A connection is closed a moment after its client's end."""
        deadline_s = time.monotonic() + _GONE_S * SCALE
        while (count := self.open_fds()) > at_most and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert count <= at_most, f"the launcher leaks descriptors: {count}, before {at_most}"

    def await_nothing_left(self) -> None:
        """Teardown follows the answer: it is given a moment, and then everything must be gone."""
        deadline_s = time.monotonic() + _GONE_S * SCALE
        while (left := [*self.cgroups(), *self.slots(), *self.sandbox_pids()]) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert not left, f"left behind: {left}"

    def await_all_gone(self) -> None:
        """After the launcher's own end."""
        self.await_nothing_left()
        assert not (RUN_ROOT / self.instance.name).exists(), "the run directory is left"
