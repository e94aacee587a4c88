"""A Python print over HTTP with `wait`, one client with a kept connection, against the bare interpreter."""

from __future__ import annotations

from benchmarks.bare import run_once
from benchmarks.bench import Bench, timed_ms
from benchmarks.report import Bound
from benchmarks.rig import NotMeasured, running_service
from benchmarks.stats import summarize

TITLE = "Python print over HTTP against bare /usr/bin/python3 -c"
JOB = {"language": "python", "source": "print(1)"}
BARE = ("/usr/bin/python3", "-c", "print(1)")
TIMES_BARE = 2
PLUS_MS = 25.0
_WARM_UP = 20


def measure(bench: Bench) -> None:
    ours: list[float] = []
    bare: list[float] = []
    bare_cpu_ms = 0.0
    inside_ms: list[float] = []
    repeats = bench.times(200, at_least=5)
    with running_service(bench.scratch) as rig:
        for _ in range(_WARM_UP):
            rig.post(JOB)
            run_once(BARE)
        for _ in bench.track(range(repeats), repeats, "print(1)"):
            wall_ms, document = timed_ms(lambda: rig.post(JOB))
            stage = document["stages"][-1]
            if stage["stdout"] != "1\n":
                raise NotMeasured(f"printed {stage['stdout']!r}")
            ours.append(wall_ms)
            inside_ms.append(stage["wall_time_s"] * 1000)
            timed = run_once(BARE)
            bare.append(timed.wall_ms)
            bare_cpu_ms += timed.cpu_ms
    limit_ms = TIMES_BARE * summarize(bare).median + PLUS_MS
    bench.add(
        "Python print, POST to result",
        "ms",
        ours,
        peer="bare python3 -c",
        theirs=bare,
        theirs_cpu_ms=bare_cpu_ms / len(bare),
        bound=Bound(
            what=f"median at most {TIMES_BARE} x bare + {PLUS_MS:g} ms = {limit_ms:.1f} ms",
            value=summarize(ours).median,
            limit=limit_ms,
        ),
    )
    bench.add(
        "of which the interpreter inside the sandbox",
        "ms",
        inside_ms,
        peer="bare python3 -c",
        theirs=bare,
        note="its own wall time, from execve to its end",
    )
