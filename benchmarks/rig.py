"""What is measured: a launcher, or the whole service, of an instance of its own; stopped afterwards, state and all."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from sandboxd.audit.host import claimed_slots, waiting_slots
from sandboxd.instance import Instance
from sandboxd.jail.cgroup_host import detect
from sandboxd.jail.cgroups import field, remove_folder
from sandboxd.jail.client import LauncherClient
from sandboxd.jail.sweeper import RECORD
from sandboxd.policy.merge import effective_limits
from sandboxd.policy.units import from_edge
from sandboxd.result import StageOutcome
from sandboxd.spec import InputFile, StageSpec

READY_S = 120.0
STOP_S = 60.0
SETTLE_S = 10.0
_PREFIX = ("/usr/bin/setpriv", "--pdeathsig=TERM", "--")
"""What is measured ends should this process be killed."""
_ENTER = 'echo $$ >"$0" && exec "$@"'


class NotMeasured(Exception):
    """A program ended otherwise than it should have: its time would say nothing."""


def instance_in(folder: Path, kind: str) -> Instance:
    return Instance(name=f"bench-{kind}-{os.getpid()}", state_root=str(folder))


class LauncherRig:
    """A running launcher and one connection to it, as a worker has one."""

    def __init__(self, instance: Instance, client: LauncherClient, account: Path | None = None) -> None:
        self.instance = instance
        self._account = account
        self.client = client
        self.policy = client.catalogue().policy("default")

    def stage(self, binary: bytes, *args: str, **limits: float) -> StageSpec:
        """A run of `binary` under the policy `default`, complete; limits in edge names and units."""
        return StageSpec(
            name="run",
            policy="default",
            image="host",
            argv=("./program", *args),
            env={},
            limits=effective_limits(self.policy, {}, from_edge(limits)),
            files=(InputFile(path="program", content=binary, executable=True),),
        )

    def run(self, stage: StageSpec) -> tuple[StageOutcome, bytes]:
        """Runs a stage to its verdict's facts; what it wrote to standard output comes along."""
        printed = bytearray()
        outcome = self.client.run(stage, on_stdout=printed.extend, on_stderr=printed.extend)
        return outcome, bytes(printed)

    def settle(self) -> None:
        """Returns when nothing of any sandbox is left: teardown follows the answer."""
        deadline_s = time.monotonic() + SETTLE_S
        while self.has_leaves():
            if time.monotonic() > deadline_s:
                raise NotMeasured(f"a sandbox's cgroup is still there after {SETTLE_S:g} s")
            time.sleep(0.0002)

    def prepared(self) -> int:
        """Sandboxes that wait for a job."""
        return len(waiting_slots(self.instance))

    def await_prepared(self, at_least: int) -> None:
        """Returns when so many sandboxes wait for a job, none has one, and none is being built."""
        deadline_s = time.monotonic() + SETTLE_S
        while claimed_slots(self.instance) or self.prepared() < at_least:
            if time.monotonic() > deadline_s:
                raise NotMeasured(f"{self.prepared()} sandboxes are prepared instead of {at_least}")
            time.sleep(0.001)

    def has_leaves(self) -> bool:
        """Whether a sandbox's cgroup is left in any hierarchy."""
        return any(name.startswith("slot-") for parent in cgroup_parents(self.instance) for name in os.listdir(parent))

    def cpu_ms(self) -> float:
        """CPU time of the launcher and of all that it started, sandboxes included."""
        return usage_ns(self._account or cgroup_parents(self.instance)[0]) / 1e6

    def sandboxes_cpu_ns(self) -> int:
        """CPU time of every sandbox so far as their common v2 cgroup counts it, setup included: not our accounting."""
        return usage_ns(cgroup_parents(self.instance)[0])


def cgroup_parents(instance: Instance) -> tuple[Path, ...]:
    """Folders of an instance's sandboxes, one for each hierarchy; the v2 one comes first."""
    record = msgspec.json.decode((instance.run_dir / RECORD).read_bytes(), type=tuple[str, ...])
    return tuple(Path(path) for path in record)


def usage_ns(cgroup: Path) -> int:
    """CPU time of all that is or was in a v2 cgroup, and below it."""
    return field((cgroup / "cpu.stat").read_text(), "usage_usec") * 1000


def require_exit(outcome: StageOutcome, status: int = 0) -> None:
    """Raises NotMeasured unless the program ended by itself with `status`."""
    facts = outcome.facts
    if facts.exit_code != status or facts.failure is not None:
        raise NotMeasured(f"a program ended with {facts}")


@contextlib.contextmanager
def running_launcher(folder: Path, prepared_max: int = 0) -> Iterator[LauncherRig]:
    """A launcher that is ready and has answered once, and keeps at most `prepared_max` sandboxes ready."""
    instance = instance_in(folder, "jail")
    log_path = folder / f"{instance.name}.log"
    with _child(
        instance, ["launcher", "--instance", instance.name, "--prepared", str(prepared_max)], folder, log_path
    ) as (process, account):
        await_true(lambda: _accepts(instance.launcher_socket), process, log_path)
        with contextlib.closing(LauncherClient(instance.launcher_socket)) as client:
            yield LauncherRig(instance, client, account)


class ServiceRig:
    """A running `sandboxd serve` and one keep-alive connection to its API."""

    def __init__(
        self, instance: Instance, process: subprocess.Popen[bytes], client: httpx.Client, account: Path | None
    ) -> None:
        self.instance = instance
        self.account = account
        """The v2 cgroup that counts the CPU time of all of it; None where each part has one of its own."""
        self.pid = process.pid
        self.client = client

    def post(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Posts a job and waits for its end. Raises NotMeasured unless it is answered, and with verdict ok."""
        response = self.client.post("/jobs", params={"wait": 60}, json=job)
        if response.status_code != httpx.codes.OK:
            raise NotMeasured(f"status {response.status_code}: {response.text}")
        document: dict[str, Any] = response.json()
        if document["verdict"] != "ok":
            raise NotMeasured(f"verdict {document['verdict']}: {document['reason']}")
        return document


    @contextlib.contextmanager
    def launcher(self) -> Iterator[LauncherRig]:
        """The service's own launcher, asked beside its workers."""
        with contextlib.closing(LauncherClient(self.instance.launcher_socket)) as client:
            yield LauncherRig(self.instance, client)


@contextlib.contextmanager
def running_service(folder: Path, *options: str) -> Iterator[ServiceRig]:
    """The whole service, ready, on a free port; `options` are those of `sandboxd serve`."""
    instance = instance_in(folder, "serve")
    log_path = folder / f"{instance.name}.log"
    port = free_port()
    arguments = ["serve", "--instance", instance.name, "--port", str(port), *options]
    with _child(instance, arguments, folder, log_path) as (process, account):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=90, trust_env=False) as client:
            await_true(lambda: _is_ready(client), process, log_path)
            client.headers["Authorization"] = f"Bearer {instance.token_path.read_text().strip()}"
            yield ServiceRig(instance, process, client, account)


@contextlib.contextmanager
def _child(
    instance: Instance, arguments: Sequence[str], folder: Path, log_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path | None]]:
    """This installation's `sandboxd ARGUMENTS`, asked to end afterwards, and the cgroup of all of it; its state is
    removed with it."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SANDBOXD_STATE_ROOT": str(folder)}
    with _account(instance) as account, log_path.open("wb") as log:
        prefix = () if account is None else ("/bin/sh", "-c", _ENTER, str(account / "cgroup.procs"))
        process = subprocess.Popen(
            [*prefix, *_PREFIX, sys.executable, "-I", "-m", "sandboxd", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process, account
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise NotMeasured(f"did not stop within {STOP_S:g} s: {' '.join(arguments)}") from None
            finally:
                for state in folder.glob("bench-*"):
                    if state.is_dir():
                        shutil.rmtree(state)


@contextlib.contextmanager
def _account(instance: Instance) -> Iterator[Path | None]:
    """On hybrid hosts a v2 cgroup that only counts: the launcher's children are reaped by the kernel, so nobody's
    account gets their time. None on others, where a launcher is in its instance's cgroup."""
    found = detect()
    if not found.hybrid:
        yield None
        return
    account = found.v2 / instance.name
    account.mkdir()
    try:
        yield account
    finally:
        deadline_s = time.monotonic() + SETTLE_S
        while not remove_folder(account):
            if time.monotonic() > deadline_s:
                raise NotMeasured(f"{account} cannot be removed")
            time.sleep(0.01)


def await_true(condition: Callable[[], bool], process: subprocess.Popen[bytes], log_path: Path) -> None:
    """Raises NotMeasured with what the process said when it ends first, or takes too long."""
    deadline_s = time.monotonic() + READY_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise NotMeasured(f"not ready:\n{log_path.read_text(errors='replace')}")
        time.sleep(0.02)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
