"""`sandboxd audit`: attack this host's own sandboxes, and say what held."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sandboxd.audit import corpus, neighbours, report, suite
from sandboxd.audit.corpus import Case
from sandboxd.audit.judge import NO_FINDING, State
from sandboxd.audit.peer import COMMANDS, NO_WALL
from sandboxd.audit.suite import Report, Row, Run
from sandboxd.cli.failure import reported
from sandboxd.delegation import ensure_delegated
from sandboxd.errors import HostError, InputError, LauncherUnavailable


@click.command()
@click.option("--quick", is_flag=True, help="Leave out the slow cases: under a minute.")
@click.option("--prepared", is_flag=True, help="Attack sandboxes that were built before their jobs came.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option(
    "--soak", "soak_jobs", type=click.IntRange(0, 10_000_000), default=0, help="Run so many jobs at the end, mixed."
)
@click.option(
    "--against",
    type=click.Choice([report.OURS, *COMMANDS, NO_WALL]),
    default=report.OURS,
    show_default=True,
    help="Run the programs in another sandbox, or in none, for comparison.",
)
@click.option(
    "--report",
    "page",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report to this file (Markdown).",
)
@click.argument("words", nargs=-1)
@reported
def command(
    quick: bool,
    prepared: bool,
    as_json: bool,
    soak_jobs: int,
    against: str,
    page: Path | None,
    words: tuple[str, ...],
) -> None:
    """Attack this host's own sandboxes, and say what held. WORDS: only cases whose name or topic has one of them.

    Runs hostile programs through a launcher of its own, with all walls, with one wall at a time taken away, and as
    controls with every wall taken away that stops them. Looks after each run what is left on the host. Needs root.

    \b
    Exit status 0: nothing escaped, leaked or stayed, and every control worked. 1: something did.
    Example:  sudo sandboxd audit --quick
              sudo sandboxd audit --against none namespaces
              sudo sandboxd audit --quick --soak 10000
    """
    if os.geteuid() != 0:
        raise HostError("root", "the audit starts launchers of its own", "run it with sudo")
    if against != report.OURS and (quick or prepared or soak_jobs):
        raise InputError("against", "--quick, --prepared and --soak are of our own sandbox")
    if page is not None:
        try:
            page.open("ab").close()  # what is wrong with it is told before anything runs
        except OSError as error:
            raise InputError("report", f"{page} cannot be written: {error.strerror}") from None
    ensure_delegated()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    cases = chosen(words)
    if against != "sandboxd" and not suite.comparable(cases):
        raise InputError("words", f"none of these cases means anything in {against}")
    progress = _Progress(cases, quick=quick, together=not quick and not words, soak_jobs=soak_jobs, against=against)
    try:
        found = progress.run(prepared=prepared)
    except (KeyboardInterrupt, _Stopped, LauncherUnavailable) as stop:
        progress.print(as_json=as_json)
        if isinstance(stop, LauncherUnavailable):
            raise
        raise SystemExit(128 + (stop.number if isinstance(stop, _Stopped) else signal.SIGINT)) from None
    if page is not None:
        page.write_text(report.markdown(found), encoding="utf-8")
    if as_json:
        click.echo(msgspec.json.encode(msgspec.to_builtins(found) | {"is_green": found.is_green}))
    elif against == report.OURS:
        _print(found)
    else:
        _print_comparison(found)
    raise SystemExit(0 if found.is_green else 1)


class _Console(Console):
    """A pipe that nobody reads ends the command as it ends others: rich would say status 1, which is a finding."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Stopped(Exception):
    """Told to stop by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: object) -> None:
    raise _Stopped(number)


def chosen(words: tuple[str, ...]) -> list[Case]:
    """The cases that one of the words names. Raises InputError when there is none."""
    cases = corpus.load()
    found = [case for case in cases if not words or any(word in case.id or word in case.topic for word in words)]
    if not found:
        raise InputError("words", f"no case has one of {', '.join(words)} in its name or topic")
    return found


class _Progress:
    """An audit or a comparison under way, and what came of its runs so far."""

    def __init__(self, cases: list[Case], *, quick: bool, together: bool, soak_jobs: int, against: str) -> None:
        self.rows: list[Row] = []
        self._cases = cases
        self._quick = quick
        self._together = together
        self._soak_jobs = soak_jobs
        self._against = against
        runs = suite.plan(cases, quick=quick) if against == report.OURS else suite.comparable(cases)
        self.total = len(runs) + soak_jobs + (neighbours.STEPS if together and against == report.OURS else 0)

    def print(self, *, as_json: bool) -> None:
        """What is known when it could not be brought to its end."""
        if as_json:
            click.echo(msgspec.json.encode({"stopped": True, "runs": self.total, "rows": self.rows}))
        elif self._against == report.OURS:
            _print_rows(self.rows)
        else:
            _print_answers(self.rows, self._against)
        click.echo(f"stopped after {len(self.rows)} of {self.total} runs; of the others nothing is known", err=True)

    def run(self, *, prepared: bool) -> Report:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=_Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("attacking", total=self.total)

            def on_run(run: Run, row: Row | None) -> None:
                if row is None:
                    progress.update(task, description=f"{run.walls:<24.24} {run.case.id:<40.40}")
                else:
                    self.rows.append(row)
                    progress.advance(task)

            def on_job() -> None:
                progress.update(task, description=f"{'many at once':<65}", advance=1)

            if self._against != report.OURS:
                return suite.compare(self._against, self._cases, on_run=on_run)
            return suite.audit(
                self._cases,
                quick=self._quick,
                prepared=prepared,
                together=self._together,
                soak_jobs=self._soak_jobs,
                on_run=on_run,
                on_job=on_job,
            )


def _print(found: Report) -> None:
    """A line for each case, then one for each topic and class of walls."""
    console = _Console(highlight=False)
    _print_rows(found.rows)
    table = Table("topic", "all walls", "one wall off", "controls", title="What held")
    for topic in dict.fromkeys(row.topic for row in found.rows):
        rows = [row for row in found.rows if row.topic == topic]
        kinds = (suite.ALL_WALLS, suite.DEPTH, suite.CONTROL)
        table.add_row(topic, *(_held([row for row in rows if row.walls.startswith(kind)]) for kind in kinds))
    console.print(table)
    for change in found.changes:
        console.print(Text(f"CHANGED  {change}"))
    for what in found.unseen:
        console.print(Text(f"NOT LOOKED AT  {what}"))
    console.print(report.summary(found))


def _print_rows(rows: Sequence[Row]) -> None:
    """Each case with all walls, and which of them decides, as its control showed; then what is not as it should be."""
    console = _Console(highlight=False)
    controls = {row.case: row.state for row in rows if row.walls.startswith(suite.CONTROL)}
    table = Table("case", "severity", "result", "evidence", "control")
    for row in rows:
        if row.walls == suite.ALL_WALLS:
            shown = {State.HELD: "works", None: ""}.get(controls.get(row.case), str(controls.get(row.case)))
            without = f" without {', '.join(row.decided_by)}" if row.decided_by and row.case in controls else ""
            table.add_row(*map(_text, (row.case, row.severity, row.state, row.evidence, f"{shown}{without}")))
    console.print(table)
    wrong = [row for row in rows if row.state not in NO_FINDING or row.state is State.NOT_DEFENDED]
    if wrong:
        details = Table("case", "severity", "walls", "result", "evidence")
        for row in wrong:
            details.add_row(*map(_text, (row.case, row.severity, row.walls, row.state, row.evidence)))
        console.print(details)


def _text(cell: str) -> Text:
    return Text(report.printable(cell))


def _held(rows: list[Row]) -> str:
    return f"{sum(row.state is State.HELD for row in rows)} of {len(rows)}" if rows else ""


def _print_comparison(found: Report) -> None:
    _print_answers(found.rows, found.against)
    _Console(highlight=False).print(report.comparison(found))


def _print_answers(rows: Sequence[Row], against: str) -> None:
    table = Table("case", "severity", "result", "answer", title=f"What the programs say in: {against}")
    for row in rows:
        table.add_row(*map(_text, (row.case, row.severity, report.WORKED[row.state], row.evidence)))
    _Console(highlight=False).print(table)
