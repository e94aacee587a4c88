"""What a run of the benchmarks says: the table names each loss, and a chart shows each row and loads nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks import chart, report
from benchmarks.report import Bound, Row, Run, Unit
from benchmarks.stats import Summary, ratio, summarize

SVG = "{http://www.w3.org/2000/svg}"


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


ROWS = (
    row("hello", "ms", 7, "bare", 0.5, limit=10),
    row("hello", "ms", 7, "bubblewrap", 8, limit=6),
    row("hello & <small>", "ms", 5),
    row("memory", "MiB", 0.25, limit=1.5),
    row("growth", "count", 0),
    row("change", "%", -3),
    row("rate", "1/s", 80, "bare on all cores", 200),
)


def texts(drawing: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in drawing.iter(f"{SVG}text")]


def drawn(rows: Iterable[Row] = ROWS) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg("What does hello cost?", tuple(rows)))  # noqa: S314  # our own


def test_a_chart_shows_every_row_with_its_peer_and_its_bound() -> None:
    shown = texts(drawn())
    for label in (
        "hello: sandboxd",
        "bare (bound: at most 10: 7, met)",
        "bubblewrap (bound: at most 6: 7, NOT met)",
        "hello & <small>: sandboxd",
        "memory: sandboxd (bound: at most 1.5: 0.25, met)",
        "growth: sandboxd",
        "change: sandboxd",
        "rate: sandboxd",
        "bare on all cores",
    ):
        assert shown.count(label) == 1, label


def bars(rows: Iterable[Row]) -> list[float]:
    found = (element for element in drawn(rows).iter(f"{SVG}desc") if "value" in element.attrib["class"])
    return sorted(float(element.text or "") for element in found)


def test_a_chart_shows_median_p95_and_p99_of_both_sides() -> None:
    assert bars(ROWS[:1]) == [0.5, 0.75, 1, 7, 10.5, 14]


def test_one_sample_has_no_percentiles_in_a_chart() -> None:
    assert bars([Row(question="cold", what="rate", unit="1/s", ours=summarize([80.0]))]) == [80]


def test_each_unit_has_a_panel_of_its_own_that_is_titled_with_it() -> None:
    panels = drawn().findall(f"{SVG}g/{SVG}svg")
    labels = {
        panel.findtext(f"{SVG}title"): [text for text in texts(panel) if ": sandboxd" in text] for panel in panels
    }
    assert {title: len(found) for title, found in labels.items()} == {
        "What does hello cost?, ms": 2,
        "What does hello cost?, MiB": 1,
        "What does hello cost?, count": 1,
        "What does hello cost?, %": 1,
        "What does hello cost?, 1/s": 1,
    }


def test_panels_do_not_overlap() -> None:
    drawing = drawn()
    bottom = 0.0
    for place in drawing.findall(f"{SVG}g"):
        found = re.fullmatch(r"translate\(0 (\d+)\)", place.attrib["transform"])
        assert found is not None
        assert float(found.group(1)) == bottom
        bottom += float(place[0].attrib["height"])
    assert float(drawing.attrib["height"]) == bottom


def test_a_chart_loads_and_runs_nothing() -> None:
    text = chart.svg("What does hello cost?", ROWS)
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"|<!--.*?-->', "", text, flags=re.DOTALL)
    for word in ("http:", "https:", "//", "href", "url(", "@import", "script", "<?xml-stylesheet", "<image"):
        assert word not in without_names, word


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
