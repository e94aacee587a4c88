"""A thousand live sandboxes at once: what each takes, how long one more takes to start, how soon all are gone.

Each holds a program of 9 KB that says that it runs, and waits. Memory is what the machine has less available then,
divided by their number: kernel objects, page tables and the launcher's share are all in it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.report import Bound
from benchmarks.rig import LauncherRig, NotMeasured, running_launcher
from benchmarks.stats import ratio, summarize
from sandboxd.jail import protocol
from sandboxd.jail.inputs import Outbox
from sandboxd.jail.protocol import Frames, Kind, frame
from sandboxd.spec import MIB, StageSpec

TITLE = "a thousand live sandboxes: memory of each, time to start one more, time to end all"
FEW = 10
MANY = 1000
ROUNDS = 5
MEMORY_MAX_MIB = 1.5
TIMES_MAX = 1.5
GONE_MAX_S = 10.0
_SETTLE_S = 2.0
_GONE_S = 60.0


def measure(bench: Bench) -> None:
    many = bench.times(MANY, at_least=2 * FEW)
    with running_launcher(bench.scratch) as rig, contextlib.ExitStack() as live:
        stage = rig.stage(
            bench.programs.binary("waiter"), memory_bytes=8 * MIB, disk_bytes=1 * MIB, wall_time_s=110, processes=2
        )
        for _ in range(FEW):
            _start(rig, stage, live)
        at_few = [_timed_start(rig, stage) for _ in range(ROUNDS)]
        time.sleep(_SETTLE_S)
        before_kib = _available_kib()
        for _ in bench.track(range(many - FEW), many - FEW, "starting"):
            _start(rig, stage, live)
        time.sleep(_SETTLE_S)
        each_mib = (before_kib - _available_kib()) / 1024 / (many - FEW)
        at_many = [_timed_start(rig, stage) for _ in range(ROUNDS)]
        started_s = time.monotonic()
        live.close()
        while rig.has_leaves():
            if time.monotonic() - started_s > _GONE_S:
                raise NotMeasured(f"sandboxes are left after {_GONE_S:g} s")
            time.sleep(0.01)
        gone_s = time.monotonic() - started_s
    bench.add(
        f"memory of each of {many}",
        "MiB",
        [each_mib],
        bound=Bound(what=f"at most {MEMORY_MAX_MIB:g} MiB", value=each_mib, limit=MEMORY_MAX_MIB),
    )
    times = ratio(summarize(at_many).median, summarize(at_few).median)
    bench.add(
        f"starting one more beside {many}",
        "ms",
        at_many,
        peer=f"beside {FEW}",
        theirs=at_few,
        bound=Bound(what=f"at most {TIMES_MAX:g} x", value=times, limit=TIMES_MAX),
    )
    bench.add(
        f"until nothing of {many} is left",
        "s",
        [gone_s],
        bound=Bound(what=f"at most {GONE_MAX_S:g} s", value=gone_s, limit=GONE_MAX_S),
    )


def _start(rig: LauncherRig, stage: StageSpec, live: contextlib.ExitStack) -> None:
    """A sandbox whose program has said that it runs; it dies with its connection."""
    client = live.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(str(rig.instance.launcher_socket))
    with contextlib.closing(Outbox()) as outbox, outbox.packed(stage) as (run, contents):
        if contents is None:
            raise NotMeasured("the program is empty")
        socket.send_fds(client, [frame(Kind.RUN, protocol.encode(run))], [contents])
    for kind, body in Frames(protocol.TO_CLIENT).receive(client) or ():
        if (kind, body) != (Kind.STDOUT, b"up\n"):
            raise NotMeasured(f"a sandbox answered {kind.name} {bytes(body)[:200]!r}")


def _timed_start(rig: LauncherRig, stage: StageSpec) -> float:
    with contextlib.ExitStack() as one:
        started_s = time.perf_counter()
        _start(rig, stage, one)
        return (time.perf_counter() - started_s) * 1000


def _available_kib() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise NotMeasured("the kernel does not say how much memory is available")
    return int(found.group(1))
