"""The demonstration: starts the whole service, posts honest and hostile programs over HTTP, shows what came back,
stops.

Everything of it hangs on an instance, a port and a folder of its own, so that a service that runs is not disturbed. At
the end it looks for itself whether anything is left on the machine. Exit status 0: every verdict was the expected one
and nothing is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandboxd.instance import RUN_ROOT
from sandboxd.jail.slots import SLOTS_DIR
from sandboxd.jail.sweeper import host_lock

PROGRAMS = Path(__file__).parent / "programs"
INSTANCE = f"demo-{os.getpid()}"
PREFIX = ("/usr/bin/setpriv", "--pdeathsig=TERM", "--")
"""The service ends as if asked to should this process be killed."""
READY_S = 120
MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One program, what is sent along, and what must come back."""

    file: str
    shows: str
    language: str
    verdict: str = "ok"
    stdout: str | None = None
    stdin: str = ""
    limits: dict[str, float] = dataclasses.field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        return {
            "language": self.language,
            "source": (PROGRAMS / self.file).read_text(),
            "stdin": self.stdin,
            "limits": self.limits,
        }


CASES = (
    Case(file="hello.c", shows="hello in C", language="c", stdout="hello from C\n"),
    Case(file="hello.cpp", shows="hello in C++", language="cpp", stdout="hello from C++\n"),
    Case(file="hello.py", shows="hello in Python", language="python"),
    Case(file="sum.py", shows="reads its input", language="python", stdin="1 2 3\n4 5\n", stdout="15\n"),
    Case(file="broken.c", shows="does not compile", language="c", verdict="compile_error"),
    Case(
        file="endless.py",
        shows="loops for ever",
        language="python",
        verdict="cpu_time_exceeded",
        limits={"cpu_time_s": 1},
    ),
    Case(
        file="memory.py",
        shows="eats memory",
        language="python",
        verdict="memory_exceeded",
        limits={"memory_bytes": 64 * MIB},
    ),
    Case(
        file="flood.py",
        shows="prints without end",
        language="python",
        verdict="output_exceeded",
        limits={"output_bytes": 65536},
    ),
    Case(file="forkbomb.c", shows="fork bomb", language="c", verdict="runtime_error", limits={"processes": 16}),
    Case(file="spy.py", shows="passwords, processes, a way out?", language="python"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """A running `sandboxd serve`: where it is and how to call it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    workers: int


@contextlib.contextmanager
def service(state_root: Path) -> Iterator[Service]:
    """Start the service, wait until it is ready, stop it. Raises SystemExit with its last words when it does not
    start.
    """
    port = free_port()
    log_path = state_root / "serve.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            # A session of its own: Ctrl-C in the terminal comes here, and from here SIGTERM goes there.
            [*PREFIX, sys.executable, "-I", "-m", "sandboxd", "serve", "--instance", INSTANCE, "--port", str(port)],
            env={**os.environ, "SANDBOXD_STATE_ROOT": str(state_root)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=90, trust_env=False) as client:
            await_ready(process, client, log_path)
            token = (state_root / INSTANCE / "token").read_text().strip()
            client.headers["Authorization"] = f"Bearer {token}"
            yield Service(process=process, client=client, workers=len(os.sched_getaffinity(0)))
        complaints = [line for line in log_path.read_text().splitlines() if "[error" in line or "[critical" in line]
        for line in complaints:
            print(line, file=sys.stderr)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_ready(process: subprocess.Popen[bytes], client: httpx.Client, log_path: Path) -> None:
    """Return when the API says that Redis and a worker answer."""
    deadline_s = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/ready").status_code == httpx.codes.OK:
                return
        if process.poll() is not None or time.monotonic() > deadline_s:
            print(log_path.read_text(errors="replace"), file=sys.stderr)
            raise SystemExit("demo: the service did not start; what it said is above")
        time.sleep(0.05)


def submit(client: httpx.Client, case: Case) -> dict[str, Any]:
    """Post one program and wait for its end; the job document, or an error document in its place."""
    response = client.post("/jobs", params={"wait": 60}, json=case.request())
    document: dict[str, Any] = response.json()
    return document


def differs(case: Case, job: dict[str, Any]) -> str | None:
    """What of the job is not as expected; None when all is."""
    if job.get("verdict") != case.verdict:
        return f"expected {case.verdict}, got {job.get('verdict')}: {job.get('reason') or job}"
    if case.stdout is not None and job["stages"][-1]["stdout"] != case.stdout:
        return f"expected {case.stdout!r} on standard output, got {job['stages'][-1]['stdout']!r}"
    return None


def table_of(results: list[tuple[Case, dict[str, Any]]]) -> Table:
    table = Table(title="What came back over HTTP", title_justify="left")
    for heading in ("program", "what it does", "verdict", "reason"):
        table.add_column(heading, overflow="fold")
    for heading in ("CPU s", "MiB", "wall s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for case, job in results:
        stages = job.get("stages", [])
        table.add_row(
            case.file,
            case.shows,
            Text(str(job.get("verdict")), style="green" if differs(case, job) is None else "bold red"),
            # Text, not markup: a reason must not be able to colour the terminal.
            Text(job.get("reason") or ""),
            f"{sum(stage['cpu_time_s'] for stage in stages):.2f}",
            f"{max((stage['memory_peak_bytes'] for stage in stages), default=0) / MIB:.1f}",
            f"{sum(stage['wall_time_s'] for stage in stages):.2f}",
        )
    return table


def leftovers() -> list[str]:
    """What of this instance is still on the machine."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                # A zombie has no memory to read its command from: it has ended, and its parent is to be told, not to
                # be killed.
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                if INSTANCE.encode() in text or f"sandboxd-{INSTANCE}" in (process / "cgroup").read_text():
                    found.append(f"process {process.name}: {text[:60]!r}")
    found += [
        f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if INSTANCE in line
    ]
    found += [
        f"cgroup {folder}/{name}"
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if INSTANCE in name
    ]
    found += [f"run folder {path}" for path in RUN_ROOT.glob("*") if INSTANCE in path.name]
    for slot in SLOTS_DIR.glob("*"):
        with contextlib.suppress(OSError):
            if INSTANCE in os.readlink(slot):
                found.append(f"uid slot {slot}")
    return found


def run_cases(console: Console, state_root: Path) -> list[tuple[Case, dict[str, Any]]]:
    started_s = time.monotonic()
    console.print(f"Starting Redis, launcher, workers and API (instance {INSTANCE}) ...")
    with service(state_root) as running:
        console.print(f"Ready at {running.client.base_url} after {time.monotonic() - started_s:.1f} s.")
        console.print(f"Posting {len(CASES)} programs, {running.workers} at once ...")
        with ThreadPoolExecutor(running.workers) as threads:
            jobs = list(threads.map(lambda case: submit(running.client, case), CASES))
        console.print("Stopping ...")
    return list(zip(CASES, jobs, strict=True))


def remove_run_root() -> None:
    """What every instance of this host shares; it stays when another instance has come meanwhile."""
    with host_lock():
        if {path.name for path in RUN_ROOT.iterdir()} == {".lock", "slots"} and not any(SLOTS_DIR.iterdir()):
            SLOTS_DIR.rmdir()
            (RUN_ROOT / ".lock").unlink()
            RUN_ROOT.rmdir()


def main() -> int:
    """Run the demonstration; its exit status."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if os.geteuid() != 0:
        console.print("demo: the launcher needs root: make demo asks sudo for it")
        return os.EX_NOPERM
    run_root_existed = RUN_ROOT.exists()
    state_root = Path(tempfile.mkdtemp(prefix="sandboxd-demo-"))
    state_root.chmod(0o711)  # the service user must reach its folder below
    try:
        results = run_cases(console, state_root)
    finally:
        shutil.rmtree(state_root)
        if not run_root_existed:
            remove_run_root()
    console.print(table_of(results))
    spy = results[-1][1].get("stages", [])
    if spy:
        console.print("What spy.py saw of this machine:")
        console.print(Text("\n".join("  " + line for line in spy[-1]["stdout"].splitlines())))
    wrong = [f"{case.file}: {difference}" for case, job in results if (difference := differs(case, job))]
    left = leftovers()
    for line in wrong:
        console.print(Text(f"NOT AS EXPECTED  {line}"))
    for line in left:
        console.print(Text(f"LEFT BEHIND  {line}"))
    if not wrong:
        console.print(f"All {len(CASES)} verdicts are as expected.")
    if not left:
        console.print("Nothing is left: no process, no mount, no cgroup, no file.")
    return 1 if wrong or left else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
