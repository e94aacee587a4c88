"""What one sandbox costs when nothing of it was prepared: from the request on the launcher's socket to the answer.

A static hello travels along with each request, as a judge's submission does. The launcher is warm, all protections are
on. Measured twice. Back to back: in rounds that alternate with rounds of the bare program and of the other sandboxes; a
round starts when the sandboxes before it are torn down, so that no side pays for the other, and with one run on each
side that is not counted. And after 40 ms of rest on all sides, since the kernel makes the first move of a task between
v1 cgroups after a pause wait.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from benchmarks.bare import Timed, run_once, run_sequence
from benchmarks.bench import Bench, timed_ms
from benchmarks.report import Bound
from benchmarks.rig import LauncherRig, NotMeasured, require_exit, running_launcher
from benchmarks.stats import ratio, summarize
from sandboxd.spec import StageSpec

TITLE = "a cold sandbox around a static hello against a bare fork and exec of it"
ROUND = 10
REST_S = 0.04
BARE = "bare fork+exec"
TIMES_MAX = {BARE: 15, "bubblewrap": 1.4, "runc": 1 / 4, "docker": 1 / 30}
"""Of each other side's time, back to back."""


def measure(bench: Bench) -> None:
    with running_launcher(bench.scratch) as rig:
        hello = rig.stage(bench.programs.binary("hello"))
        for _ in range(2 * ROUND):
            _sandboxed(rig, hello)
        _back_to_back(bench, rig, hello)
        _after_rest(bench, rig, hello)
        _small(bench, rig)


def _sandboxed(rig: LauncherRig, stage: StageSpec) -> float:
    wall_ms, (outcome, printed) = timed_ms(lambda: rig.run(stage))
    require_exit(outcome)
    if printed != b"hello\n":
        raise NotMeasured(f"hello printed {printed!r}")
    return wall_ms


def _round(rig: LauncherRig, stage: StageSpec) -> tuple[list[float], float]:
    """The samples in ms of one round, and the CPU that all of its runs took, their teardown included."""
    _sandboxed(rig, stage)
    rig.settle()
    before_ms = rig.cpu_ms()
    samples = [_sandboxed(rig, stage) for _ in range(ROUND)]
    rig.settle()
    return samples, rig.cpu_ms() - before_ms


def _others(bench: Bench) -> dict[str, Callable[[], Timed]]:
    hello = str(bench.programs.path("hello"))
    others: dict[str, Callable[[], Timed]] = {BARE: lambda: run_once((hello,))}
    for peer in bench.peers:
        others[peer.name] = lambda commands=peer.commands: run_sequence(commands)  # type: ignore[misc]  # a default binds the loop's value
    return others


def _back_to_back(bench: Bench, rig: LauncherRig, hello: StageSpec) -> None:
    ours: list[float] = []
    theirs: dict[str, list[Timed]] = defaultdict(list)
    cpu_ms = 0.0
    rounds = bench.times(20, at_least=2)
    for _ in bench.track(range(rounds), rounds, "back to back"):
        samples, used_ms = _round(rig, hello)
        ours += samples
        cpu_ms += used_ms
        for name, run in _others(bench).items():
            run()
            theirs[name] += [run() for _ in range(ROUND)]
    _rows(bench, "back to back", ours, theirs, cpu_ms / len(ours), bounded=True)


def _after_rest(bench: Bench, rig: LauncherRig, hello: StageSpec) -> None:
    ours: list[float] = []
    theirs: dict[str, list[Timed]] = defaultdict(list)
    repeats = bench.times(100, at_least=5)
    before_ms = rig.cpu_ms()
    for _ in bench.track(range(repeats), repeats, "after 40 ms of rest"):
        rig.settle()
        time.sleep(REST_S)
        ours.append(_sandboxed(rig, hello))
        rig.settle()
        for name, run in _others(bench).items():
            time.sleep(REST_S)
            theirs[name].append(run())
    _rows(bench, "after 40 ms of rest", ours, theirs, (rig.cpu_ms() - before_ms) / len(ours), bounded=False)


def _rows(
    bench: Bench, when: str, ours: list[float], theirs: dict[str, list[Timed]], cpu_ms: float, *, bounded: bool
) -> None:
    for name, timed in theirs.items():
        walls = [each.wall_ms for each in timed]
        times = ratio(summarize(ours).median, summarize(walls).median)
        most = TIMES_MAX.get(name) if bounded else None
        bench.add(
            f"static hello, {when}",
            "ms",
            ours,
            ours_cpu_ms=cpu_ms,
            peer=name,
            theirs=walls,
            theirs_cpu_ms=sum(each.cpu_ms for each in timed) / len(timed),
            bound=None if most is None else Bound(what=f"at most {most:.3g} x {name}", value=times, limit=most),
        )


def _small(bench: Bench, rig: LauncherRig) -> None:
    """The same program without a C library: the difference is the price of 750 KB on their way."""
    small = rig.stage(bench.programs.binary("hello_small"))
    path = str(bench.programs.path("hello_small"))
    ours: list[float] = []
    bare: list[float] = []
    cpu_ms = 0.0
    rounds = bench.times(10, at_least=2)
    for _ in bench.track(range(rounds), rounds, "9 KB program, back to back"):
        samples, used_ms = _round(rig, small)
        ours += samples
        cpu_ms += used_ms
        run_once((path,))
        bare += [run_once((path,)).wall_ms for _ in range(ROUND)]
    bench.add(
        "hello without libc (9 KB), back to back",
        "ms",
        ours,
        ours_cpu_ms=cpu_ms / len(ours),
        peer=BARE,
        theirs=bare,
    )
