"""`python -m benchmarks [QUESTION...]`: asks the questions, prints one table, writes one JSON file.

Exit status 0 when everything could be measured, bounds met or not: this measures, it does not judge. 1 when a question
could not be.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from benchmarks import peers, questions, report
from benchmarks.bench import Bench
from benchmarks.report import Load, Run

_LOOK_S = 1.0


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("names", metavar="[QUESTION]...", nargs=-1, type=click.Choice(questions.NAMES))
@click.option("--list", "list_only", is_flag=True, help="Print the questions and end.")
@click.option("--scale", type=click.FloatRange(0.01, 100), default=1.0, help="Times the usual number of repetitions.")
@click.option(
    "--wait-quiet",
    "wait_s",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    help="Before each question, wait so many seconds at most until other programs leave the machine alone.",
)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the result.")
def main(names: tuple[str, ...], list_only: bool, scale: float, wait_s: float, json_path: Path | None) -> None:
    """Measure sandboxd against bare processes and against the other sandboxes that are installed, as ratios of one run.

    \b
    Example: scripts/bench.sh /opt/sandboxd-tests cold http
    """
    if list_only:
        for name in questions.NAMES:
            click.echo(f"{name:12} {questions.load(name).TITLE}")
        return
    if os.geteuid() != 0:
        raise click.ClickException("the launcher needs root: make bench asks sudo for it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as folder:
        scratch = Path(folder)
        scratch.chmod(0o711)  # the service user must reach its folder below
        run = ask(names or questions.NAMES, scratch, console, scale, wait_s)
    report.print_run(console, run)
    console.print(f"written to {write(report.encode(run), json_path)}")
    raise SystemExit(1 if run.failed else 0)


def ask(names: tuple[str, ...], scratch: Path, console: Console, scale: float, wait_s: float) -> Run:
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
                loads.append(
                    Load(question=name, load_average_1m=load_average, others_cpus=max(before, others_cpus()))
                )
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


def write(text: bytes, path: Path | None) -> Path:
    """Into `path`, else into a new folder of our own below /var/tmp, whose name nobody can foresee."""
    path = path or Path(tempfile.mkdtemp(prefix="sandboxd-bench-", dir="/var/tmp"), "result.json")
    path.write_bytes(text)
    return path


if __name__ == "__main__":
    main()
