"""Whether the reported memory is the truth: a program that touches 50 MiB, less the same program touching none."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.report import Bound
from benchmarks.rig import LauncherRig, require_exit, running_launcher
from sandboxd.spec import MIB

TITLE = "50 MiB touched are reported as 50 MiB"
TOUCHED_MIB = 50
ERROR_MAX_MIB = 0.02 * TOUCHED_MIB + 1


def measure(bench: Bench) -> None:
    reported_mib: list[float] = []
    idle_mib: list[float] = []
    repeats = bench.times(20, at_least=2)
    with running_launcher(bench.scratch) as rig:
        touch = bench.programs.binary("touch")
        for _ in bench.track(range(repeats), repeats, "touching pages"):
            nothing = _peak_mib(rig, touch, 0)
            idle_mib.append(nothing)
            reported_mib.append(_peak_mib(rig, touch, TOUCHED_MIB) - nothing)
    error_mib = max(abs(value - TOUCHED_MIB) for value in reported_mib)
    bench.add(
        "peak with 50 MiB touched, less with none",
        "MiB",
        reported_mib,
        bound=Bound(
            what=f"off by at most 2 % + 1 MiB = {ERROR_MAX_MIB:g} MiB", value=error_mib, limit=ERROR_MAX_MIB
        ),
    )
    bench.add("peak with none touched", "MiB", idle_mib, note="the program's file, PID 1, page tables, kernel objects")


def _peak_mib(rig: LauncherRig, touch: bytes, touched_mib: int) -> float:
    outcome, _ = rig.run(rig.stage(touch, str(touched_mib)))
    require_exit(outcome)
    return outcome.facts.memory_peak_bytes / MIB
