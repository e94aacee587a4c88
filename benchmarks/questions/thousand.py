"""1,000 jobs in a row through `sandboxd serve`: how long they take, and whether anything grows.

What there is after the first 50 jobs is compared with what there is after all. Counted are this service's processes,
its cgroups, the mounts and namespaces that its processes are in or hold open, their descriptors; of each resident
process its memory; and what Redis holds for each stored result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import redis

from benchmarks import inventory
from benchmarks.bare import run_once
from benchmarks.bench import Bench, timed_ms
from benchmarks.inventory import Inventory
from benchmarks.report import Bound
from benchmarks.rig import ServiceRig, running_service
from benchmarks.stats import growth_percent, ratio, summarize

TITLE = "1,000 jobs in a row: duration, and nothing that grows"
JOBS = 1000
FIRST = 50
DURATION_MAX_S = 90.0
GROWTH_MAX_PERCENT = 5.0
RESULT_MAX_KIB = 8.0
JOB = {"language": "python", "source": "print(1)"}
BARE = ("/usr/bin/python3", "-c", "print(1)")
BARE_EACH = 10
"""Jobs between two bare interpreters, by which the machine's own speed is told: it drifts within minutes."""
SLOWER_MAX_PERCENT = 5.0
_QUIET_S = 1.5
"""Longer than the append-only file's write and what ends on its own after a job."""


PREPARED = 4
"""One for each policy, and no place for more: the pool neither grows nor shrinks, and nothing else may."""


def measure(bench: Bench) -> None:
    measure_jobs(bench, bench.times(JOBS, at_least=2 * FIRST))


def measure_jobs(bench: Bench, jobs: int) -> None:
    """So many in a row."""
    with running_service(bench.scratch, "--prepared", str(PREPARED)) as rig:
        job_ms: list[float] = []
        bare_ms: list[float] = []
        busy_s = 0.0
        first = last = None
        first_bytes = 0
        for number in bench.track(range(1, jobs + 1), jobs, "print(1)"):
            started_s = time.monotonic()
            wall_ms, _ = timed_ms(lambda: rig.post(JOB))
            job_ms.append(wall_ms)
            busy_s += time.monotonic() - started_s
            if number % BARE_EACH == 0:
                bare_ms.append(run_once(BARE).wall_ms)
            if number == FIRST:
                first, first_bytes = _take(rig), _redis_bytes(rig)
        last, last_bytes = _take(rig), _redis_bytes(rig)
        if first is None:
            raise ValueError("there were too few jobs")
        _duration(bench, job_ms, busy_s)
        _speed(bench, job_ms, bare_ms)
        _counts(bench, first, last)
        _memory(bench, first, last)
        stored_kib = (last_bytes - first_bytes) / (jobs - FIRST) / 1024
        bench.add(
            "Redis memory for each stored result",
            "KiB",
            [stored_kib],
            bound=Bound(what=f"at most {RESULT_MAX_KIB:g} KiB", value=stored_kib, limit=RESULT_MAX_KIB),
        )


def _take(rig: ServiceRig) -> Inventory:
    """After a moment of quiet: teardown follows the answer."""
    time.sleep(_QUIET_S)
    return inventory.take(rig.pid, rig.instance.name)


def _redis_bytes(rig: ServiceRig) -> int:
    with redis.Redis(unix_socket_path=str(rig.instance.redis_socket)) as client:
        return int(client.info("memory")["used_memory_dataset"])


def _duration(bench: Bench, job_ms: list[float], busy_s: float) -> None:
    scaled_max_s = DURATION_MAX_S * len(job_ms) / JOBS
    bench.add(
        f"{len(job_ms)} jobs in a row",
        "s",
        [busy_s],
        bound=Bound(what=f"at most {scaled_max_s:g} s", value=busy_s, limit=scaled_max_s),
    )


def _speed(bench: Bench, job_ms: Sequence[float], bare_ms: Sequence[float]) -> None:
    """The end against the begin, each measured by the bare interpreters beside it."""
    part = min(len(job_ms) // 10, JOBS)
    last, first = job_ms[-part:], job_ms[:part]
    bench.add(f"one job, the last {part} against the first {part}", "ms", last, peer=f"first {part}", theirs=first)
    beside = part // BARE_EACH
    times = [
        ratio(summarize(jobs).median, summarize(bare).median)
        for jobs, bare in ((first, bare_ms[:beside]), (last, bare_ms[-beside:]))
    ]
    slower = growth_percent(*times)
    bench.add(
        "the same, each against the bare interpreters beside it",
        "%",
        [slower],
        # Of fewer jobs the medians vary by more than that.
        bound=Bound(what=f"at most {SLOWER_MAX_PERCENT:g} % slower", value=slower, limit=SLOWER_MAX_PERCENT)
        if part == JOBS
        else None,
        note=f"{times[0]:.3f} times bare at the begin, {times[1]:.3f} at the end",
    )


def _counts(bench: Bench, first: Inventory, last: Inventory) -> None:
    for name in inventory.COUNTED:
        before, after = getattr(first, name), getattr(last, name)
        bench.add(
            f"{name.replace('_', ' ')} after all, less after {FIRST}",
            "count",
            [after - before],
            bound=Bound(what=f"no more than the {before} after {FIRST}", value=after, limit=before),
            note=_descriptors(first, last) if name == "descriptors" else "",
        )
    bench.add(
        "memory cgroups of the whole machine, growth",
        "count",
        [last.memory_cgroups_of_machine - first.memory_cgroups_of_machine],
        note="removed ones that the kernel still holds included, and those of other programs",
    )


def _descriptors(first: Inventory, last: Inventory) -> str:
    roles = sorted({*first.descriptors_of, *last.descriptors_of})
    of_each = ", ".join(f"{role} {first.descriptors_of.get(role)} -> {last.descriptors_of.get(role)}" for role in roles)
    return (
        f"{of_each}; of the launcher's, cached build lists {first.build_lists} -> {last.build_lists} are not counted: "
        "one is kept for each uid slot once used, and how many slots are used at once is a matter of timing"
    )


def _memory(bench: Bench, first: Inventory, last: Inventory) -> None:
    for role in sorted(set(first.resident_kib) - {inventory.OTHER}):
        growths = [
            growth_percent(before, last.resident_kib[role][pid])
            for pid, before in first.resident_kib[role].items()
            if pid in last.resident_kib[role]
        ]
        if len(growths) != len(first.resident_kib[role]):
            raise ValueError(f"a {role} was restarted in between")
        sizes = ", ".join(f"{kib / 1024:.1f}" for kib in last.resident_kib[role].values())
        judged = role in ("launcher", "worker", "api")
        bench.add(
            f"resident memory of {role}, growth",
            "%",
            growths,
            bound=Bound(
                what=f"largest at most {GROWTH_MAX_PERCENT:g} %", value=max(growths), limit=GROWTH_MAX_PERCENT
            )
            if judged
            else None,
            note=f"{sizes} MiB at the end",
        )
