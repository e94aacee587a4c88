"""Where a case is run: in our own sandbox, with all walls or without some, or in another one's for comparison."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from sandboxd.audit.corpus import OWN, PROGRAMS, SUCCEEDED, Case
from sandboxd.audit.judge import Observation
from sandboxd.errors import HostError, LauncherUnavailable
from sandboxd.execution import judge
from sandboxd.instance import AUDIT_PREFIX, RUN_ROOT, Instance
from sandboxd.jail.client import LauncherClient
from sandboxd.local_launcher import launcher_process
from sandboxd.policy.load import policy_folder
from sandboxd.policy.merge import effective_limits, from_edge
from sandboxd.result import StageOutcome, Verdict
from sandboxd.spec import InputFile, StageSpec

PYTHON = "/usr/bin/python3"
READY = b"ready"
_STOP_S = 30.0
_READY_S = 30.0
_END_S = 90.0
_PREPARED = 5
_POLICY = "default"
_NO_NETWORK = "audit-no-network"
_IN_A_GROUP = ("/usr/bin/setpriv", "--groups=65533", "--")
"""So that a launcher has a supplementary group that its programs could inherit."""
_NO_NETWORK_FILE = 'description = "run a program without any network"\nextends = "base"\nnetwork = "none"\n'


class Target(Protocol):
    """Something that runs hostile programs."""

    def observe(self, case: Case, args: Sequence[str]) -> Observation:
        """Runs the case's program with these arguments, and whatever belongs beside and before it."""


def argv_of(case: Case, args: Sequence[str]) -> tuple[str, ...]:
    """The command of a case's program, which lies in the working directory."""
    program = case.table.program
    return (f"./{program}", *args) if case.is_compiled else (PYTHON, program, *args)


class LauncherTarget:
    """A launcher of an instance of its own, in a process of its own."""

    def __init__(
        self,
        number: int,
        state_root: Path,
        *,
        without: Sequence[str] = (),
        routed: Routed | None = None,
        prepared: bool = False,
    ) -> None:
        """`prepared`: jobs get sandboxes that were built before, as far as the launcher keeps up."""
        self.instance = Instance(name=f"{AUDIT_PREFIX}{os.getpid()}-{number}", state_root=str(state_root))
        self._without = tuple(without)
        self.prepared_max = _PREPARED if prepared else 0
        self._policies = state_root / "policies"
        if not self._policies.exists():
            shutil.copytree(policy_folder(), self._policies)
            (self._policies / f"{_NO_NETWORK}.toml").write_text(_NO_NETWORK_FILE)
        self._prefix = (*(routed.enter if routed else ()), *_IN_A_GROUP)
        self._log = state_root / f"{self.instance.name}.log"

    def __enter__(self) -> LauncherTarget:
        with contextlib.ExitStack() as stack:
            try:
                with self._log.open("ab") as log:
                    self.process = stack.enter_context(
                        launcher_process(
                            self.instance,
                            prefix=self._prefix,
                            without=self._without,
                            prepared_max=self.prepared_max,
                            policies=self._policies,
                            log=log,
                            stop_deadline_s=_STOP_S,
                        )
                    )
            except LauncherUnavailable as error:
                raise LauncherUnavailable(f"{error}: {self._log.read_text()[-500:]}") from None
            self._client = stack.enter_context(contextlib.closing(LauncherClient(self.instance.launcher_socket)))
            self._catalogue = self._client.catalogue()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    @property
    def run_dir(self) -> Path:
        return RUN_ROOT / self.instance.name

    @property
    def isolation(self) -> dict[str, object]:
        """The walls that stand, as the launcher tells them."""
        return msgspec.to_builtins(self._catalogue.isolation)  # type: ignore[no-any-return]  # a struct becomes a dict

    def observe(self, case: Case, args: Sequence[str]) -> Observation:
        with self.beside(case) as peer:
            seen = self._run(self._stage(case, args))
        if peer is None:
            return seen
        # What the other job noticed counts as much as what this one did.
        said = peer.said.removeprefix(READY).strip()
        return msgspec.structs.replace(seen, stdout=seen.stdout + b" " + said, stderr=seen.stderr + peer.stderr)

    @contextlib.contextmanager
    def another_client(self) -> Iterator[LauncherTarget]:
        """The same launcher, asked over a connection of its own: for another thread."""
        other = copy.copy(self)
        with contextlib.closing(LauncherClient(self.instance.launcher_socket)) as other._client:
            yield other

    def warm_up(self, cases: Sequence[Case]) -> None:
        """A job of each program, so that what the launcher keeps for ever is there before it is measured."""
        for case in {case.table.program: case for case in cases}.values():
            self._run(self._stage(case.alone(), ()))

    def run_before(self, case: Case) -> None:
        """The job that has ended before the case's own. Raises LauncherUnavailable when it did not run."""
        seen = self._run(self._stage(case, case.role(case.table.before)))
        if seen.verdict is not Verdict.OK:
            raise LauncherUnavailable(f"the job before did not run: {seen.reason} {seen.stderr.decode()[-200:]}")

    @contextlib.contextmanager
    def beside(self, case: Case) -> Iterator[_Peer | None]:
        """While the job beside the case's own runs; None where it has none."""
        if not case.table.beside:
            yield None
            return
        peer = _Peer(self, self._stage(case, case.role(case.table.beside), stdin=None))
        try:
            peer.await_ready()
            yield peer
        finally:
            peer.end()

    def _stage(self, case: Case, args: Sequence[str], *, stdin: bytes | None = b"") -> StageSpec:
        policy = self._catalogue.policy(_NO_NETWORK if case.table.no_network else _POLICY)
        names = (case.table.program, *case.table.files)
        return StageSpec(
            name="run",
            policy=policy.name,
            image=policy.image,
            argv=argv_of(case, args),
            env=case.table.env,
            limits=effective_limits(policy, {}, from_edge(case.table.limits)),
            files=tuple(
                InputFile(path=name, content=(PROGRAMS / name).read_bytes(), executable=not name.endswith(".py"))
                for name in names
            ),
            stdin=stdin,
            collect=case.table.collect,
        )

    def _run(self, stage: StageSpec) -> Observation:
        stdout, stderr = bytearray(), bytearray()
        outcome = self._client.run(stage, on_stdout=stdout.extend, on_stderr=stderr.extend)
        said = bytes(stdout[: 1 << 20])
        if stage.collect:
            said += f" {_taken(outcome)}".encode()
        return self._observation(stage, outcome, said, bytes(stderr[: 1 << 20]))

    def _observation(self, stage: StageSpec, outcome: StageOutcome, stdout: bytes, stderr: bytes) -> Observation:
        judgement = judge(stage, outcome, self._catalogue)
        if judgement is None:
            raise LauncherUnavailable("the job was cancelled, by nobody")
        return Observation(
            stdout=stdout,
            stderr=stderr,
            verdict=judgement.verdict,
            exit_code=judgement.exit_code,
            signal=judgement.signal,
            facts=outcome.facts,
            reason=judgement.reason,
        )


def _taken(outcome: StageOutcome) -> str:
    """Whether what was taken out is the program's own."""
    if not outcome.files:
        return "nothing"
    return "held" if all(file.content == OWN for file in outcome.files) else SUCCEEDED


class _Peer:
    """A job that runs beside the case's own until its stdin ends."""

    def __init__(self, target: LauncherTarget, stage: StageSpec) -> None:
        self.said = b""
        self.stderr = b""
        self._changed = threading.Condition()
        self._stdin_read, self._stdin = os.pipe()
        self._cancel = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, args=(target, stage))
        self._thread.start()

    def _run(self, target: LauncherTarget, stage: StageSpec) -> None:
        def take(chunk: bytes) -> None:
            with self._changed:
                self.said += chunk
                self._changed.notify_all()

        def complain(chunk: bytes) -> None:
            self.stderr += chunk

        with contextlib.closing(LauncherClient(target.instance.launcher_socket)) as client:
            client.run(stage, on_stdout=take, on_stderr=complain, stdin_fd=self._stdin_read, cancel_fd=self._cancel)
        with self._changed:
            self._changed.notify_all()

    def await_ready(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: READY in self.said or not self._thread.is_alive(), _READY_S)
        if READY not in self.said:
            raise LauncherUnavailable(f"the job beside is not ready: {self.stderr.decode(errors='replace')[-200:]}")

    def end(self) -> None:
        os.close(self._stdin)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            os.eventfd_write(self._cancel, 1)
            self._thread.join()
        os.close(self._stdin_read)
        os.close(self._cancel)


class Routed:
    """A network namespace made for the audit, in which everything has a route: to the namespace's own loopback device.
    Nothing that is sent there ever leaves it.
    """

    def __enter__(self) -> Routed:
        command = ["/usr/bin/unshare", "--net", "--", sys.executable, "-I", "-m", "sandboxd.audit.routed"]
        self._process = subprocess.Popen(
            ["/usr/bin/setpriv", "--pdeathsig", "KILL", "--", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._process.stdout is None or self._process.stdout.read(len(READY)) != READY:
            self.__exit__()
            raise HostError("network namespace", "no namespace with routes could be made", "needs root and iproute")
        self.enter = ("/usr/bin/nsenter", f"--net=/proc/{self._process.pid}/ns/net")
        return self

    def __exit__(self, *_exception: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(10)
