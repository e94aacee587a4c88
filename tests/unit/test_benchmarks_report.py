"""What a run of the benchmarks says: the table names each loss."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.report import Bound, Row, Run, Unit
from benchmarks.stats import Summary, ratio, summarize


def row(
    what: str, unit: Unit, ours: float, peer: str | None = None, theirs: float = 1, limit: float | None = None
) -> Row:
    """A row whose 99th percentile is twice, and whose 95th one and a half times its median."""
    return Row(
        question="cold",
        what=what,
        unit=unit,
        ours=spread(ours),
        peer=peer,
        theirs=spread(theirs) if peer else None,
        ratio=ratio(ours, theirs) if peer else None,
        bound=None if limit is None else Bound(what=f"at most {limit:g}", value=ours, limit=limit),
    )


def spread(median: float) -> Summary:
    return summarize([median] * 93 + [1.5 * median] * 3 + [2 * median] * 4)


@pytest.mark.parametrize(
    ("unit", "ours", "theirs", "lost"),
    [("ms", 7, 6, True), ("ms", 6, 7, False), ("ms", 7, 7, False), ("1/s", 80, 200, True), ("1/s", 200, 80, False)],
)
def test_a_peer_that_does_better_is_named_a_loss(unit: Unit, ours: float, theirs: float, lost: bool) -> None:
    found = row("hello", unit, ours, "peer", theirs)
    assert found.lost is lost
    table = printed([found])
    assert (f"{found.ratio:.2f} LOST" in table) is lost
    assert f"{lost:d} of 1 comparisons are lost" in table


def test_a_bound_that_is_not_met_is_said_in_the_table() -> None:
    table = printed([row("hello", "ms", 7, limit=6), row("hello", "ms", 7, limit=8)])
    cells = [line.split("│")[-2].strip() for line in table.splitlines() if "hello" in line]
    assert cells == ["NO", "yes"]
    assert "1 of 2 bounds are met" in table


def printed(rows: Iterable[Row]) -> str:
    console = Console(file=io.StringIO(), width=200)
    run = Run(
        date=report.now(),
        command=(),
        machine=report.machine(),
        version="0",
        commit="0",
        peers=(),
        absent=(),
        loads=(),
        rows=tuple(rows),
        failed={},
    )
    report.print_run(console, run)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
