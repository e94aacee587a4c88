"""20,000 jobs in a row through `sandboxd serve`: the last thousand as fast as the first, and nothing that grows."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.questions.thousand import FIRST, measure_jobs

TITLE = "20,000 jobs in a row: as fast at the end, and nothing that grows"
JOBS = 20_000


def measure(bench: Bench) -> None:
    measure_jobs(bench, bench.times(JOBS, at_least=2 * FIRST))
