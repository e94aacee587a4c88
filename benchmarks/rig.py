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
from sandboxd.jail.client import LauncherClient
from sandboxd.policy.merge import effective_limits
from sandboxd.policy.units import from_edge
from sandboxd.result import StageOutcome
from sandboxd.spec import InputFile, StageSpec

READY_S = 120.0
STOP_S = 60.0
SETTLE_S = 10.0
_PREFIX = ("/usr/bin/setpriv", "--pdeathsig=TERM", "--")
"""What is measured ends should this process be killed."""


class NotMeasured(Exception):
    """A program ended otherwise than it should have: its time would say nothing."""


def instance_in(folder: Path, kind: str) -> Instance:
    return Instance(name=f"bench-{kind}-{os.getpid()}", state_root=str(folder))


class LauncherRig:
    """A running launcher and one connection to it, as a worker has one."""

    def __init__(self, instance: Instance, process: subprocess.Popen[bytes], client: LauncherClient) -> None:
        self.instance = instance
        self.pid = process.pid
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
        return any(name.startswith("slot-") for parent in self.cgroup_parents() for name in os.listdir(parent))

    def cgroup_parents(self) -> tuple[Path, ...]:
        """Folders of this instance's sandboxes, one for each hierarchy; the v2 one comes first."""
        record = msgspec.json.decode((self.instance.run_dir / "cgroups.json").read_bytes(), type=tuple[str, ...])
        return tuple(Path(path) for path in record)

    def cpu_ms(self) -> float:
        """CPU time of the launcher and of every process of its that ended, by clock ticks (10 ms): for many runs."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) * 1000 / os.sysconf("SC_CLK_TCK")

    def sandboxes_cpu_ns(self) -> int:
        """CPU time of every sandbox so far as their common v2 cgroup counts it, setup included: not our accounting."""
        for line in (self.cgroup_parents()[0] / "cpu.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) * 1000
        raise NotMeasured("cpu.stat has no usage_usec")


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
        ["launcher", "--instance", instance.name, "--prepared", str(prepared_max)], folder, log_path
    ) as process:
        await_true(lambda: _accepts(instance.launcher_socket), process, log_path)
        with contextlib.closing(LauncherClient(instance.launcher_socket)) as client:
            yield LauncherRig(instance, process, client)


class ServiceRig:
    """A running `sandboxd serve` and one keep-alive connection to its API."""

    def __init__(self, instance: Instance, process: subprocess.Popen[bytes], client: httpx.Client) -> None:
        self.instance = instance
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
def running_service(folder: Path, *options: str) -> Iterator[ServiceRig]:
    """The whole service, ready, on a free port; `options` are those of `sandboxd serve`."""
    instance = instance_in(folder, "serve")
    log_path = folder / f"{instance.name}.log"
    port = free_port()
    with _child(["serve", "--instance", instance.name, "--port", str(port), *options], folder, log_path) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=90, trust_env=False) as client:
            await_true(lambda: _is_ready(client), process, log_path)
            client.headers["Authorization"] = f"Bearer {instance.token_path.read_text().strip()}"
            yield ServiceRig(instance, process, client)


@contextlib.contextmanager
def _child(arguments: Sequence[str], folder: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """This installation's `sandboxd ARGUMENTS`, asked to end afterwards; its state is removed with it."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SANDBOXD_STATE_ROOT": str(folder)}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*_PREFIX, sys.executable, "-I", "-m", "sandboxd", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
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
