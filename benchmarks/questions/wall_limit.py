"""How long a program that only waits lives beyond its wall time limit, and how long its client waits for the answer:
alone, and beside jobs of which the launcher takes big files out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import msgspec

from benchmarks.bench import Bench, timed_ms
from benchmarks.report import Bound
from benchmarks.rig import LauncherRig, NotMeasured, require_exit, running_launcher
from sandboxd.jail.client import LauncherClient
from sandboxd.result import Ending
from sandboxd.spec import MIB, NANOSECONDS, StageSpec

TITLE = "time lived beyond wall_time_s"
OVERSHOOT_MAX_MS = 50.0
LEAVES_BYTES = 30 * MIB
_LIMIT_S = 0.3


def measure(bench: Bench) -> None:
    with running_launcher(bench.scratch) as rig:
        stage = rig.stage(bench.programs.binary("sleeper"), wall_time_s=_LIMIT_S)
        _lived(bench, rig, stage, "lived beyond the wall limit")
        with _jobs_that_leave_much(rig, stage):
            _lived(bench, rig, stage, f"the same beside jobs that leave {LEAVES_BYTES >> 20} MiB")


def _lived(bench: Bench, rig: LauncherRig, stage: StageSpec, what: str) -> None:
    over_ms: list[float] = []
    answer_ms: list[float] = []
    repeats = bench.times(30, at_least=3)
    for _ in bench.track(range(repeats), repeats, what):
        wall_ms, (outcome, _) = timed_ms(lambda: rig.run(stage))
        if outcome.facts.ending is not Ending.WALL_TIME:
            raise NotMeasured(f"not ended by its wall time: {outcome.facts}")
        over_ms.append((outcome.facts.wall_time_ns - _LIMIT_S * NANOSECONDS) / 1e6)
        answer_ms.append(wall_ms - _LIMIT_S * 1000)
    bound = Bound(what=f"largest at most {OVERSHOOT_MAX_MS:g} ms", value=max(over_ms), limit=OVERSHOOT_MAX_MS)
    bench.add(what, "ms", over_ms, bound=bound)
    bench.add("request to answer, less the limit", "ms", answer_ms, note="by the client's clock; the birth is in it")


@contextlib.contextmanager
def _jobs_that_leave_much(rig: LauncherRig, like: StageSpec) -> Iterator[None]:
    """One after the other, over a connection of their own."""
    command = ("sh", "-c", f"head -c {LEAVES_BYTES} /dev/zero > f")
    leaves = msgspec.structs.replace(like, argv=command, files=(), collect=("f",), limits=rig.policy.defaults)
    stop = threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        try:
            with contextlib.closing(LauncherClient(rig.instance.launcher_socket)) as client:
                while not stop.is_set():
                    outcome = client.run(leaves, on_stdout=_ignore, on_stderr=_ignore)
                    require_exit(outcome)
                    if sum(len(file.content) for file in outcome.files) != LEAVES_BYTES:
                        raise NotMeasured("a job left less than it should have")
        except Exception as error:  # told by the thread that measures
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failed:
        raise NotMeasured(f"the jobs beside: {failed[0]}")


def _ignore(chunk: bytes) -> None:
    """They print nothing."""
