"""Rows of the result, the table that is printed, and the same as JSON."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sandboxd
from benchmarks.peers import Absent, Peer
from benchmarks.stats import Summary

Unit = Literal["ms", "ms CPU", "ns", "s", "1/s", "MiB", "KiB", "%", "count"]
_DIGITS = {"ms": 2, "ms CPU": 2, "ns": 1, "s": 1, "1/s": 1, "MiB": 2, "KiB": 2, "%": 2, "count": 0}


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: `value` (of `what`, as the row computed it) is at most `limit`, or at least."""

    what: str
    """As a person reads it: `median at most 15 x bare`."""
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def verdict(self) -> str:
        return "met" if self.met else "NOT met"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. Without a bound it is reported for comparison alone."""

    question: str
    what: str
    unit: Unit
    ours: Summary
    ours_cpu_ms: float | None = None
    """CPU time of one run, everything that took part in it."""
    peer: str | None = None
    theirs: Summary | None = None
    theirs_cpu_ms: float | None = None
    ratio: float | None = None
    """Median to median."""
    bound: Bound | None = None
    note: str = ""

    @property
    def lost(self) -> bool:
        """Whether the peer does better: by the medians, of which that of a rate is better when it is larger."""
        if self.ratio is None:
            return False
        return self.ratio < 1 if self.unit == "1/s" else self.ratio > 1


P95_SAMPLES_MIN, P99_SAMPLES_MIN = 20, 100
"""Of fewer it would be the largest sample."""
NOISE_CPUS = 0.1
"""More than so many cores used by others, and a question is called noisy."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the machine was with other things around a question."""

    question: str
    load_average_1m: float
    others_cpus: float
    """Cores in use while we did nothing: the larger of a second before the question and a second after it."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, as it is written to the JSON file."""

    date: str
    command: tuple[str, ...]
    machine: dict[str, str | int]
    version: str
    commit: str
    peers: tuple[Peer, ...]
    absent: tuple[Absent, ...]
    loads: tuple[Load, ...]
    rows: tuple[Row, ...]
    failed: dict[str, str]
    """Questions that could not be measured, with the reason."""


def machine() -> dict[str, str | int]:
    """What a figure depends on and a reader must know."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    release = platform.freedesktop_os_release()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1 << 20),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "system": release.get("PRETTY_NAME", "unknown"),
        "cgroup": "hybrid" if Path("/sys/fs/cgroup/memory").is_dir() else "v2",
        "python": platform.python_version(),
    }


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def version() -> tuple[str, str]:
    """The installed version, and the commit that scripts/install.sh found it at."""
    commit = Path(sys.prefix, ".installed-commit")
    return sandboxd.__version__, commit.read_text().strip() if commit.exists() else "unknown"


def print_run(console: Console, run: Run) -> None:
    """The table, the commands of the peers, and what could not be measured."""
    console.print(_table(run.rows))
    for row in run.rows:
        if row.note:
            console.print(Text(f"  {row.what}: {row.note}", style="dim"))
    for peer in run.peers:
        for command in peer.commands:
            console.print(Text(f"{peer.name} ({peer.version}; {peer.does}): {' '.join(command)}"))
    if run.absent:
        console.print(Text("not compared: " + "; ".join(f"{each.name} ({each.reason})" for each in run.absent)))
    for load in run.loads:
        if load.others_cpus > NOISE_CPUS:
            text = f"NOISY: before or after {load.question}, other programs used {load.others_cpus:.2f} cores"
            console.print(Text(text, style="yellow"))
    for question, reason in run.failed.items():
        console.print(Text(f"NOT MEASURED  {question}: {reason}", style="bold red"))
    missed = [row for row in run.rows if row.bound is not None and not row.bound.met]
    judged = [row for row in run.rows if row.bound is not None]
    console.print(Text(f"{len(judged) - len(missed)} of {len(judged)} bounds are met.", style="bold"))
    compared = [row for row in run.rows if row.ratio is not None]
    if compared:
        lost = sum(row.lost for row in compared)
        console.print(Text(f"{lost} of {len(compared)} comparisons are lost: the peer does better.", style="bold"))


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="sandboxd, measured", title_justify="left")
    for heading in ("question", "what"):
        table.add_column(heading, overflow="fold")
    for heading in ("unit", "n", "median", "p95", "p99", "CPU ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("peer")
    for heading in ("peer's median", "peer's CPU ms"):
        table.add_column(heading, justify="right")
    table.add_column("ratio", no_wrap=True)
    table.add_column("bound", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("met?")
    previous = ""
    for row in rows:
        if previous and row.question != previous:
            table.add_section()
        digits = _DIGITS[row.unit]
        table.add_row(
            row.question if row.question != previous else "",
            row.what,
            row.unit,
            str(row.ours.samples),
            _number(row.ours.median, digits),
            _number(row.ours.p95 if row.ours.samples >= P95_SAMPLES_MIN else None, digits),
            _number(row.ours.p99 if row.ours.samples >= P99_SAMPLES_MIN else None, digits),
            _number(row.ours_cpu_ms, 2),
            row.peer or "",
            _number(row.theirs.median if row.theirs else None, digits),
            _number(row.theirs_cpu_ms, 2),
            Text(f"{_number(row.ratio, 2)}{' LOST' if row.lost else ''}", style="yellow" if row.lost else ""),
            row.bound.what if row.bound else "",
            _number(row.bound.value if row.bound else None, 2),
            _met(row.bound),
        )
        previous = row.question
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _met(bound: Bound | None) -> Text:
    if bound is None:
        return Text("")
    return Text("yes", style="green") if bound.met else Text("NO", style="bold red")


def encode(run: Run) -> bytes:
    """The run as indented JSON; whether each bound was met and each comparison lost is said in it."""
    document = msgspec.to_builtins(run)
    for row, built in zip(run.rows, document["rows"], strict=True):
        for name in ("ours", "theirs"):
            summary = getattr(row, name)
            built[name] = summary._asdict() if summary is not None else None
        if row.ratio is not None:
            built["lost"] = row.lost
        if row.bound is not None:
            built["bound"]["met"] = row.bound.met
    for name, values in (("peers", run.peers), ("absent", run.absent)):
        document[name] = [value._asdict() for value in values]
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
