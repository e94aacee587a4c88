"""What every question gets: programs, peers, a scratch folder, progress on the terminal, rows to fill."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rich.progress import Progress

from benchmarks.peers import Peer
from benchmarks.programs import Programs
from benchmarks.report import Bound, Row, Unit
from benchmarks.stats import ratio, summarize

_T = TypeVar("_T")


class Bench:
    """One run of the benchmarks. `scale` multiplies the number of repetitions."""

    def __init__(self, scratch: Path, peers: Sequence[Peer], progress: Progress, scale: float = 1.0) -> None:
        self.scratch = scratch
        self.programs = Programs(scratch)
        self.peers = tuple(peers)
        self.rows: list[Row] = []
        self.question = ""
        self._progress = progress
        self._scale = scale

    def times(self, usual: int, *, at_least: int = 1) -> int:
        """How often to repeat what is usually repeated `usual` times."""
        return max(at_least, round(usual * self._scale))

    def track(self, items: Iterable[_T], total: int, what: str) -> Iterator[_T]:
        """The items, with a bar that moves between them, never while one is under way: the terminal is not measured.

        Garbage is collected between items too, and not while one is measured."""
        task = self._progress.add_task(f"{self.question}: {what}", total=total)
        drawn_s = 0.0
        with _without_garbage_collection():
            for item in items:
                if time.monotonic() - drawn_s > 0.5:
                    gc.collect(0)
                    self._progress.refresh()
                    drawn_s = time.monotonic()
                yield item
                self._progress.advance(task)
        self._progress.refresh()

    def add(
        self,
        what: str,
        unit: Unit,
        ours: Sequence[float],
        *,
        ours_cpu_ms: float | None = None,
        peer: str | None = None,
        theirs: Sequence[float] | None = None,
        theirs_cpu_ms: float | None = None,
        bound: Bound | None = None,
        note: str = "",
    ) -> None:
        """One row of the table."""
        mine = summarize(ours)
        other = summarize(theirs) if theirs is not None else None
        self.rows.append(
            Row(
                question=self.question,
                what=what,
                unit=unit,
                ours=mine,
                ours_cpu_ms=ours_cpu_ms,
                peer=peer,
                theirs=other,
                theirs_cpu_ms=theirs_cpu_ms,
                ratio=ratio(mine.median, other.median) if other is not None else None,
                bound=bound,
                note=note,
            )
        )


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def timed_ms(action: Callable[[], _T]) -> tuple[float, _T]:
    """Wall time of one call, and what it returned."""
    started_ns = time.perf_counter_ns()
    value = action()
    return (time.perf_counter_ns() - started_ns) / 1e6, value
