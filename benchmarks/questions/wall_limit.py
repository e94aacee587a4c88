"""How long a program that only waits lives beyond its wall time limit, and how long its client waits for the answer."""

from __future__ import annotations

from benchmarks.bench import Bench, timed_ms
from benchmarks.report import Bound
from benchmarks.rig import NotMeasured, running_launcher
from sandboxd.result import Ending
from sandboxd.spec import NANOSECONDS

TITLE = "time lived beyond wall_time_s"
OVERSHOOT_MAX_MS = 50.0
_LIMIT_S = 0.3


def measure(bench: Bench) -> None:
    over_ms: list[float] = []
    answer_ms: list[float] = []
    repeats = bench.times(30, at_least=3)
    with running_launcher(bench.scratch) as rig:
        stage = rig.stage(bench.programs.binary("sleeper"), wall_time_s=_LIMIT_S)
        for _ in bench.track(range(repeats), repeats, "a program that waits"):
            rig.settle()
            wall_ms, (outcome, _) = timed_ms(lambda: rig.run(stage))
            if outcome.facts.ending is not Ending.WALL_TIME:
                raise NotMeasured(f"not ended by its wall time: {outcome.facts}")
            over_ms.append((outcome.facts.wall_time_ns - _LIMIT_S * NANOSECONDS) / 1e6)
            answer_ms.append(wall_ms - _LIMIT_S * 1000)
    bench.add(
        "lived beyond the wall limit",
        "ms",
        over_ms,
        bound=Bound(what=f"largest at most {OVERSHOOT_MAX_MS:g} ms", value=max(over_ms), limit=OVERSHOOT_MAX_MS),
    )
    bench.add("request to answer, less the limit", "ms", answer_ms, note="by the client's clock; the birth is in it")
