"""How soon 41 daemons are gone once the program that left them behind has ended.

The program prints the wall clock's time right before its end; the clock is read again when the answer is here (every
process is dead by then: PID 1 was reaped) and when the kernel has let the cgroups be removed in every hierarchy.
"""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.report import Bound
from benchmarks.rig import NotMeasured, require_exit, running_launcher

TITLE = "41 daemonised processes gone after the main process's end"
DAEMONS = 41
GONE_MAX_MS = 100.0


def measure(bench: Bench) -> None:
    answered_ms: list[float] = []
    gone_ms: list[float] = []
    repeats = bench.times(50, at_least=3)
    with running_launcher(bench.scratch) as rig:
        stage = rig.stage(bench.programs.binary("daemons"), processes=DAEMONS + 2)
        for _ in bench.track(range(repeats), repeats, "daemons"):
            outcome, printed = rig.run(stage)
            answered_ns = time.time_ns()
            rig.settle()
            gone_ns = time.time_ns()
            require_exit(outcome)
            left, end_ns = (int(word) for word in printed.split())
            if left != DAEMONS:
                raise NotMeasured(f"{left} daemons were started")
            answered_ms.append((answered_ns - end_ns) / 1e6)
            gone_ms.append((gone_ns - end_ns) / 1e6)
    bench.add(
        "main process's end to no process and no cgroup",
        "ms",
        gone_ms,
        bound=Bound(what=f"largest at most {GONE_MAX_MS:g} ms", value=max(gone_ms), limit=GONE_MAX_MS),
    )
    bench.add("main process's end to the answer", "ms", answered_ms, note="every process is dead by then")
