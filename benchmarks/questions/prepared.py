"""What a sandbox costs that was built before its job came: from the request on the launcher's socket to the answer.

Each job finds a full pool (of `--prepared 16`, more than is usual on two cores), and is followed by a bare run of the
same program. What has to travel shows in the three programs: one of 762 KB and one of 9 KB that come with their job,
and one that the image has. Then bursts, in which a job finds what the one before it left: the launcher builds the next
sandbox beside the jobs from the third on.
"""

from __future__ import annotations

import time

import msgspec

from benchmarks.bare import Timed, run_once
from benchmarks.bench import Bench, timed_ms
from benchmarks.report import Bound
from benchmarks.rig import LauncherRig, NotMeasured, require_exit, running_launcher
from benchmarks.stats import ratio, summarize
from sandboxd.spec import StageSpec

TITLE = "a prepared sandbox around a static hello against a bare fork and exec of it"
TIMES_BARE_MAX = 3
SAMPLES = 200
BURST = 5
PREPARED_MAX = 16
PREPARED = 8
"""Wait at least before a job comes, whatever their policy."""
JOBS_UNTIL_GROWN_MAX = 2000
BARE = "bare fork+exec"
OF_IMAGE = ("/usr/sbin/ldconfig", "--version")
"""A static program that every glibc system has: nothing of it has to be brought into the sandbox."""


def measure(bench: Bench) -> None:
    with running_launcher(bench.scratch, PREPARED_MAX) as rig:
        hello = rig.stage(bench.programs.binary("hello"))
        _grow(rig, hello)
        _alone(bench, rig, hello, (path(bench, "hello"),), "static hello (762 KB)", bounded=True)
        small = rig.stage(bench.programs.binary("hello_small"))
        _alone(bench, rig, small, (path(bench, "hello_small"),), "hello without libc (9 KB)")
        of_image = msgspec.structs.replace(hello, argv=OF_IMAGE, files=())
        _alone(bench, rig, of_image, OF_IMAGE, f"{' '.join(OF_IMAGE)}, of the image")
        _bursts(bench, rig, hello)


def path(bench: Bench, program: str) -> str:
    return str(bench.programs.path(program))


def _grow(rig: LauncherRig, stage: StageSpec) -> None:
    """The pool grows where jobs miss it."""
    for count in range(JOBS_UNTIL_GROWN_MAX):
        _sandboxed(rig, stage)
        if count % 100 == 99:
            time.sleep(0.1)
            if rig.prepared() >= PREPARED:
                return
    raise NotMeasured(f"after {JOBS_UNTIL_GROWN_MAX} jobs {rig.prepared()} sandboxes are prepared")


def _sandboxed(rig: LauncherRig, stage: StageSpec) -> float:
    wall_ms, (outcome, printed) = timed_ms(lambda: rig.run(stage))
    require_exit(outcome)
    if not printed:
        raise NotMeasured("nothing was printed")
    return wall_ms


def _alone(
    bench: Bench, rig: LauncherRig, stage: StageSpec, command: tuple[str, ...], what: str, *, bounded: bool = False
) -> None:
    ours: list[float] = []
    bare: list[Timed] = []
    samples = bench.times(SAMPLES, at_least=10)
    rig.await_prepared(PREPARED)
    cpu_ms = rig.cpu_ms()
    for _ in bench.track(range(samples), samples, what):
        ours.append(_sandboxed(rig, stage))
        rig.await_prepared(PREPARED)
        bare.append(run_once(command))
    cpu_ms = (rig.cpu_ms() - cpu_ms) / samples
    bare_ms = [timed.wall_ms for timed in bare]
    times = ratio(summarize(ours).median, summarize(bare_ms).median)
    bound = Bound(what=f"at most {TIMES_BARE_MAX} x bare", value=times, limit=TIMES_BARE_MAX) if bounded else None
    bench.add(
        f"{what}, prepared",
        "ms",
        ours,
        ours_cpu_ms=cpu_ms,
        peer=BARE,
        theirs=bare_ms,
        theirs_cpu_ms=sum(timed.cpu_ms for timed in bare) / samples,
        bound=bound,
        note="CPU: launcher and sandboxes, the next one's building among it" if bounded else "",
    )


def _bursts(bench: Bench, rig: LauncherRig, stage: StageSpec) -> None:
    hello = path(bench, "hello")
    ours: list[float] = []
    bare: list[float] = []
    rounds = bench.times(SAMPLES // BURST, at_least=2)
    for _ in bench.track(range(rounds), rounds, "bursts"):
        rig.await_prepared(PREPARED)
        ours += [_sandboxed(rig, stage) for _ in range(BURST)]
        rig.await_prepared(PREPARED)
        bare += [run_once((hello,)).wall_ms for _ in range(BURST)]
    bench.add(f"static hello, {BURST} prepared ones in a row", "ms", ours, peer=BARE, theirs=bare)
