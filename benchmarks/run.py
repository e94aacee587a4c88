"""One run: the questions are asked one after the other, and what was found is written to a folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from benchmarks import chart, peers, questions, report
from benchmarks.bench import Bench
from benchmarks.report import Load, Run

_LOOK_S = 1.0


def ask(names: Sequence[str], scratch: Path, console: Console, scale: float, wait_s: float) -> Run:
    """Every question in turn; one that cannot be measured does not keep the others from it."""
    failed: dict[str, str] = {}
    loads: list[Load] = []
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        # No thread that draws while something is measured.
        console=console, auto_refresh=False,
    )  # fmt: skip
    date = report.now()
    with progress:
        bench = Bench(scratch, (), progress, scale)
        with peers.found(bench.programs.path("hello"), scratch) as (present, absent):
            bench.peers = tuple(present)
            for name in names:
                bench.question = name
                before = await_quiet(wait_s)
                load_average = os.getloadavg()[0]
                try:
                    questions.load(name).measure(bench)
                except Exception as error:  # the process edge: said in the table, and the others are still asked
                    failed[name] = f"{type(error).__name__}: {error}"
                    console.print(Text(f"{name} could not be measured: {error}", style="red"))
                # A second look: what came up meanwhile disturbed it as well.
                loads.append(Load(question=name, load_average_1m=load_average, others_cpus=max(before, others_cpus())))
    version, commit = report.version()
    return Run(
        date=date,
        command=tuple(sys.orig_argv),
        machine=report.machine(),
        version=version,
        commit=commit,
        peers=bench.peers,
        absent=tuple(absent),
        loads=tuple(loads),
        rows=tuple(bench.rows),
        failed=failed,
    )


def await_quiet(wait_s: float) -> float:
    """Cores that others use now; with `wait_s`, once they use hardly any or the time is over."""
    deadline_s = time.monotonic() + wait_s
    while (used := others_cpus()) > report.NOISE_CPUS and time.monotonic() < deadline_s:
        pass  # each look takes a second
    return used


def others_cpus() -> float:
    """Cores that the machine uses while we sleep."""
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    before, started_s = _busy_ticks(), time.monotonic()
    time.sleep(_LOOK_S)
    return (_busy_ticks() - before) / ticks_per_s / (time.monotonic() - started_s)


def _busy_ticks() -> int:
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + softirq + steal


def write(run: Run, folder: Path) -> Iterator[Path]:
    """The figures as `result.json`, then a chart of each question that has some; each file once it is there."""
    for name, content in _files(run):
        path = folder / name
        path.write_bytes(content)
        yield path


def _files(run: Run) -> Iterator[tuple[str, bytes]]:
    yield "result.json", report.encode(run)
    for name in dict.fromkeys(row.question for row in run.rows):
        rows = [row for row in run.rows if row.question == name]
        yield f"{name}.svg", chart.svg(questions.load(name).TITLE, rows).encode()
