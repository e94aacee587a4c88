"""The whole service under load: how many jobs a second, how long one takes, and whose CPU time that is.

Clients are kept connections of one process that sends prepared bytes and reads answers, and does little else, on the
same cores. What is compared takes turns: one client's jobs with jobs asked at the service's own launcher, or with bare
interpreters, seconds of sixteen clients with seconds of as many bare interpreters at once as there are cores.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import inventory
from benchmarks.bare import run_once, spawn_silent
from benchmarks.bench import Bench, timed_ms
from benchmarks.report import Bound
from benchmarks.rig import LauncherRig, NotMeasured, ServiceRig, cgroup_parents, require_exit, running_service, usage_ns
from benchmarks.stats import percentile, ratio, summarize

TITLE = "jobs a second over HTTP with 16 clients, latency at half of that, and CPU time by process"
CLIENTS = 16
JOBS = 120
BLOCK = 10
"""So many of one client's jobs without a rest, then as many of what they are compared with."""
ROUNDS, ROUND_S = 4, 2.0
PYTHON_SHARE_MIN = 0.6
HELLO_RATE_MIN = 150.0
P99_TIMES_P50_MAX = 5.0
HELLO_CPU_MAX_MS = 12.0
PAUSE_S = 0.05
HELLO_PLUS_MS = 8.0
PYTHON_PLUS_MS = 12.0
BARE = ("/usr/bin/python3", "-c", "print(1)")
_HELLO, _PYTHON = "hello without libc (9 KB)", "Python print"
_PREPARED, _INTERPRETER = "its sandbox, at the launcher", "bare python3 -c"


def measure(bench: Bench) -> None:
    binary = bench.programs.binary("hello_small")
    hello = {
        "command": ["./hello"],
        "files": [
            {"path": "hello", "content": base64.b64encode(binary).decode(), "encoding": "base64", "executable": True}
        ],
    }
    python = {"language": "python", "source": "print(1)"}
    with running_service(bench.scratch) as rig, rig.launcher() as launcher:
        wires = _Wire(rig, hello), _Wire(rig, python)
        asyncio.run(_drive(wires[0], CLIENTS, 1.0))  # warm, and the pool has grown
        _one_client(bench, wires[0], _HELLO, _PREPARED, lambda: _sandboxed(launcher, binary), HELLO_PLUS_MS)
        _one_client(bench, wires[1], _PYTHON, _INTERPRETER, lambda: run_once(BARE).wall_ms, PYTHON_PLUS_MS)
        rate = _hellos(bench, rig, wires[0])
        _half(bench, wires[0], rate / 2)
        _pythons(bench, rig, wires[1])


def _sandboxed(launcher: LauncherRig, binary: bytes) -> float:
    wall_ms, (outcome, printed) = timed_ms(lambda: launcher.run(launcher.stage(binary)))
    require_exit(outcome)
    if not printed:
        raise NotMeasured("nothing was printed")
    return wall_ms


class _Wire:
    """A job as bytes on a connection."""

    def __init__(self, rig: ServiceRig, job: Mapping[str, Any]) -> None:
        self.port = rig.client.base_url.port
        body = json.dumps(job).encode()
        head = (
            f"POST /v1/jobs?wait=30 HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: {rig.client.headers['Authorization']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.request = head.encode() + body

    async def post(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        """One job; its time in ms."""
        started_s = time.perf_counter()
        writer.write(self.request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(int(length.partition(b":")[2]))
        if b'"verdict":"ok"' not in body:
            raise NotMeasured(f"answered {head[:80]!r} {body[:300]!r}")
        return (time.perf_counter() - started_s) * 1000


async def _drive(wire: _Wire, clients: int, seconds: float, pause_s: float = 0.0) -> list[float]:
    """Each client posts one job after the other, or one each `pause_s`. The times in ms."""
    samples: list[float] = []
    end_s = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port, limit=1 << 20)
        due_s = time.perf_counter() + pause_s * number / clients
        while time.perf_counter() < end_s:
            if pause_s:
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                due_s += pause_s
            samples.append(await wire.post(reader, writer))
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return samples


async def _in_turn(
    wire: _Wire, other: Callable[[], float], turns: Iterable[int], block: int, pause_s: float
) -> tuple[list[float], list[float]]:
    """Blocks of one client's jobs and of `other`, in ms, each begun `pause_s` after the one before."""
    ours: list[float] = []
    theirs: list[float] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port, limit=1 << 20)
    due_s = time.perf_counter()
    for _ in turns:
        for is_ours in [True] * block + [False] * block:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            due_s += pause_s
            if is_ours:
                ours.append(await wire.post(reader, writer))
            else:
                theirs.append(other())
    writer.close()
    return ours, theirs


def _one_client(
    bench: Bench, wire: _Wire, what: str, peer: str, other: Callable[[], float], plus_ms: float
) -> None:
    """One job after the other, and with rests between."""
    jobs = bench.times(JOBS, at_least=BLOCK)
    for pattern, block, pause_s in (
        ("one job after the other", BLOCK, 0.0),
        (f"a job every {PAUSE_S * 1000:g} ms", 1, PAUSE_S),
    ):
        turns = bench.track(range(jobs // block), jobs // block, f"{what}, {pattern}")
        ours, theirs = asyncio.run(_in_turn(wire, other, turns, block, pause_s))
        more_ms = summarize(ours).median - summarize(theirs).median
        bound = Bound(what=f"at most {plus_ms:g} ms more", value=more_ms, limit=plus_ms)
        bench.add(f"{what}, one client, {pattern}", "ms", ours, peer=peer, theirs=theirs, bound=bound)


class _Load:
    """Seconds under all clients: jobs a second of each, the times of all jobs, and their CPU time by role."""

    def __init__(self, rig: ServiceRig, wire: _Wire) -> None:
        self._rig, self._wire = rig, wire
        self.rates: list[float] = []
        self.job_ms: list[float] = []
        self._cpu_ms: dict[str, float] = defaultdict(float)

    def drive(self, seconds: float) -> None:
        before, started_s = _cpu_ms(self._rig), time.perf_counter()
        samples = asyncio.run(_drive(self._wire, CLIENTS, seconds))
        self.rates.append(len(samples) / (time.perf_counter() - started_s))
        self.job_ms += samples
        for role, ms in _cpu_ms(self._rig).items():
            self._cpu_ms[role] += ms - before.get(role, 0.0)

    def add_cpu_time(self, bench: Bench, what: str, bound_ms: float | None = None) -> None:
        used = {role: ms / len(self.job_ms) for role, ms in self._cpu_ms.items()}
        total = sum(used.values())
        bound = None if bound_ms is None else Bound(what=f"at most {bound_ms:g} ms", value=total, limit=bound_ms)
        parts = ", ".join(f"{role} {ms:.2f}" for role, ms in sorted(used.items(), key=lambda item: -item[1]))
        bench.add(f"{what}, CPU time of one job", "ms CPU", [total], bound=bound, note=parts)

    @property
    def note(self) -> str:
        median, p99 = (percentile(self.job_ms, percent) for percent in (50, 99))
        return f"each a rate of {ROUND_S:g} s; median of a job {median:.1f} ms, p99 {p99:.1f} ms"


def _hellos(bench: Bench, rig: ServiceRig, wire: _Wire) -> float:
    load, seconds = _Load(rig, wire), ROUND_S * min(1.0, bench.times(10, at_least=2) / 10)
    for _ in bench.track(range(ROUNDS), ROUNDS, f"{_HELLO}, {CLIENTS} clients"):
        load.drive(seconds)
    rate = summarize(load.rates).median
    bound = Bound(what=f"at least {HELLO_RATE_MIN:g}/s", value=rate, limit=HELLO_RATE_MIN, at_least=True)
    bench.add(f"{_HELLO}, {CLIENTS} clients", "1/s", load.rates, bound=bound, note=load.note)
    load.add_cpu_time(bench, _HELLO, HELLO_CPU_MAX_MS)
    return rate


def _pythons(bench: Bench, rig: ServiceRig, wire: _Wire) -> None:
    load, seconds = _Load(rig, wire), ROUND_S * min(1.0, bench.times(10, at_least=2) / 10)
    bare: list[float] = []
    for _ in bench.track(range(ROUNDS), ROUNDS, f"{_PYTHON}, {CLIENTS} clients, and bare"):
        load.drive(seconds)
        bare.append(_bare_rate(seconds))
    share = ratio(summarize(load.rates).median, summarize(bare).median)
    bench.add(
        f"{_PYTHON}, {CLIENTS} clients",
        "1/s",
        load.rates,
        peer=f"{_INTERPRETER} on all cores",
        theirs=bare,
        bound=Bound(what=f"at least {PYTHON_SHARE_MIN:g} x bare", value=share, limit=PYTHON_SHARE_MIN, at_least=True),
        note=load.note,
    )
    load.add_cpu_time(bench, _PYTHON)


def _half(bench: Bench, wire: _Wire, rate: float) -> None:
    seconds = ROUNDS * ROUND_S * min(1.0, bench.times(10, at_least=1) / 10)
    samples = asyncio.run(_drive(wire, CLIENTS, seconds, pause_s=CLIENTS / rate))
    times = percentile(samples, 99) / percentile(samples, 50)
    bench.add(
        "hello without libc, at half of that rate",
        "ms",
        samples,
        bound=Bound(what=f"p99 at most {P99_TIMES_P50_MAX:g} x p50", value=times, limit=P99_TIMES_P50_MAX),
        note=f"{rate:.0f} jobs a second",
    )


def _cpu_ms(rig: ServiceRig) -> dict[str, float]:
    """CPU time of the service's processes by role; the rest of what their cgroups count is the sandboxes'."""
    tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
    found: dict[str, float] = defaultdict(float)
    for role, pids in inventory.take(rig.pid, rig.instance.name).resident_kib.items():
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a sandbox's that ended meanwhile
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[role] += (int(fields[11]) + int(fields[12])) * tick_ms
    found.pop(inventory.OTHER, None)  # sandboxes that live now, and what serve started to look
    counted = found.values() if rig.account else [found["launcher"]]
    found["sandboxes"] = usage_ns(rig.account or cgroup_parents(rig.instance)[0]) / 1e6 - sum(counted)
    return found


def _bare_rate(seconds: float) -> float:
    """How many interpreters all cores start and end in a second."""
    running: set[int] = set()
    ended = 0
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        while len(running) < (os.cpu_count() or 1):
            running.add(spawn_silent(BARE))
        pid, _ = os.wait()
        if pid in running:
            running.remove(pid)
            ended += 1
    rate = ended / (time.perf_counter() - started_s)
    for pid in running:
        os.waitpid(pid, 0)
    return rate
