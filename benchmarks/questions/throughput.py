"""The whole service under load: how many jobs a second, how long one takes, and whose CPU time that is.

Clients are kept connections of one process that sends prepared bytes and reads answers, and does little else, on the
same cores. The rate of the bare interpreter is that of as many processes at once as there are cores.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import inventory
from benchmarks.bare import run_once, spawn_silent
from benchmarks.bench import Bench
from benchmarks.report import Bound
from benchmarks.rig import NotMeasured, ServiceRig, cgroup_parents, running_service, usage_ns
from benchmarks.stats import percentile, summarize

TITLE = "jobs a second over HTTP with 16 clients, latency at half of that, and CPU time by process"
CLIENTS = 16
SECONDS = 6.0
PYTHON_SHARE_MIN = 0.6
HELLO_RATE_MIN = 150.0
P99_TIMES_P50_MAX = 5.0
HELLO_CPU_MAX_MS = 12.0
PAUSE_S = 0.05
PLUS_MS = 12.0
BARE = ("/usr/bin/python3", "-c", "print(1)")


def measure(bench: Bench) -> None:
    seconds = SECONDS * bench.times(10, at_least=1) / 10
    binary = bench.programs.binary("hello_small")
    hello = {
        "command": ["./hello"],
        "files": [
            {"path": "hello", "content": base64.b64encode(binary).decode(), "encoding": "base64", "executable": True}
        ],
    }
    python = {"language": "python", "source": "print(1)"}
    with running_service(bench.scratch) as rig:
        asyncio.run(_drive(_Wire(rig, hello), CLIENTS, 1.0))  # warm, and the pool has grown
        _one_client(bench, rig, hello, "hello without libc (9 KB)", seconds, None)
        _one_client(bench, rig, python, "Python print", seconds, BARE)
        rate = _all_clients(bench, rig, hello, "hello without libc (9 KB)", seconds, None)
        _half(bench, rig, hello, rate / 2, seconds)
        _all_clients(bench, rig, python, "Python print", seconds, _bare_rate(seconds / 2))


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


def _one_client(
    bench: Bench, rig: ServiceRig, job: Mapping[str, Any], what: str, seconds: float, bare: tuple[str, ...] | None
) -> None:
    """One job after the other, and with rests between, which `bare` has too."""
    wire = _Wire(rig, job)
    bench.add(f"{what}, one client, one job after the other", "ms", asyncio.run(_drive(wire, 1, seconds)))
    spaced = asyncio.run(_drive(wire, 1, seconds, pause_s=PAUSE_S))
    if bare is None:
        bench.add(f"{what}, one client, a job every {PAUSE_S * 1000:g} ms", "ms", spaced)
        return
    theirs = []
    for _ in spaced:
        time.sleep(PAUSE_S / 2)
        theirs.append(run_once(bare).wall_ms)
    more_ms = summarize(spaced).median - summarize(theirs).median
    bench.add(
        f"{what}, one client, a job every {PAUSE_S * 1000:g} ms",
        "ms",
        spaced,
        peer=f"bare {' '.join(map(os.path.basename, bare[:2]))}",
        theirs=theirs,
        bound=Bound(what=f"at most bare + {PLUS_MS:g} ms", value=more_ms, limit=PLUS_MS),
    )


def _all_clients(
    bench: Bench, rig: ServiceRig, job: Mapping[str, Any], what: str, seconds: float, bare_rate: float | None
) -> float:
    wire = _Wire(rig, job)
    before, started_s = _cpu_ms(rig), time.perf_counter()
    samples = asyncio.run(_drive(wire, CLIENTS, seconds))
    rate = len(samples) / (time.perf_counter() - started_s)
    used = {role: (ms - before.get(role, 0.0)) / len(samples) for role, ms in _cpu_ms(rig).items()}
    least = HELLO_RATE_MIN if bare_rate is None else PYTHON_SHARE_MIN * bare_rate
    bench.add(
        f"{what}, {CLIENTS} clients",
        "1/s",
        [rate],
        peer=None if bare_rate is None else "bare python3 -c on all cores",
        theirs=None if bare_rate is None else [bare_rate],
        bound=Bound(what=f"at least {least:.0f}/s", value=rate, limit=least, at_least=True),
        note=f"median {percentile(samples, 50):.1f} ms, p99 {percentile(samples, 99):.1f} ms",
    )
    parts = ", ".join(f"{role} {ms:.2f}" for role, ms in sorted(used.items(), key=lambda item: -item[1]))
    total = sum(used.values())
    bench.add(
        f"{what}, CPU time of one job",
        "ms CPU",
        [total],
        bound=Bound(what=f"at most {HELLO_CPU_MAX_MS:g} ms", value=total, limit=HELLO_CPU_MAX_MS)
        if bare_rate is None
        else None,
        note=parts,
    )
    return rate


def _half(bench: Bench, rig: ServiceRig, job: Mapping[str, Any], rate: float, seconds: float) -> None:
    samples = asyncio.run(_drive(_Wire(rig, job), CLIENTS, seconds, pause_s=CLIENTS / rate))
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
