"""`sandboxd audit`: attack this host's own sandboxes, and say what held."""

from __future__ import annotations

import os
import sys
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
from sandboxd.audit.suite import Report, Row, Run
from sandboxd.audit.target import COMMANDS
from sandboxd.cli.failure import reported
from sandboxd.delegation import ensure_delegated
from sandboxd.errors import HostError, InputError

OURS = "sandboxd"


@click.command()
@click.option("--quick", is_flag=True, help="Leave out the slow cases: under a minute.")
@click.option("--prepared", is_flag=True, help="Attack sandboxes that were built before their jobs came.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option(
    "--soak", "soak_jobs", type=click.IntRange(0, 10_000_000), default=0, help="Run so many jobs at the end, mixed."
)
@click.option(
    "--against",
    type=click.Choice([OURS, *COMMANDS, suite.NO_WALL]),
    default=OURS,
    show_default=True,
    help="Run the programs in another sandbox, or in none, for comparison.",
)
@click.option("--report", "page", type=click.Path(path_type=Path), help="Write the report to this file (Markdown).")
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
    ensure_delegated()
    cases = chosen(words)
    together = not quick and not words
    found = _with_progress(
        cases, quick=quick, prepared=prepared, together=together, soak_jobs=soak_jobs, against=against
    )
    if page is not None:
        page.write_text(report.markdown(found), encoding="utf-8")
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif against == OURS:
        _print(found)
    else:
        _print_comparison(found)
    raise SystemExit(0 if found.is_green or against != OURS else 1)


def chosen(words: tuple[str, ...]) -> list[Case]:
    """The cases that one of the words names. Raises InputError when there is none."""
    cases = corpus.load()
    found = [case for case in cases if not words or any(word in case.id or word in case.topic for word in words)]
    if not found:
        raise InputError("words", f"no case has one of {', '.join(words)} in its name or topic")
    return found


def _with_progress(
    cases: list[Case], *, quick: bool, prepared: bool, together: bool, soak_jobs: int, against: str
) -> Report:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        runs = suite.plan(cases, quick=quick) if against == OURS else suite.comparable(cases)
        at_end = soak_jobs + (neighbours.STEPS if together else 0)
        task = progress.add_task("attacking", total=len(runs) + (at_end if against == OURS else 0))

        def on_run(run: Run, row: Row | None) -> None:
            if row is None:
                progress.update(task, description=f"{run.walls:<24.24} {run.case.id:<40.40}")
            else:
                progress.advance(task)

        def on_job() -> None:
            progress.update(task, description=f"{'many at once':<65}", advance=1)

        if against == OURS:
            return suite.audit(
                cases,
                quick=quick,
                prepared=prepared,
                together=together,
                soak_jobs=soak_jobs,
                on_run=on_run,
                on_job=on_job,
            )
        return suite.compare(against, cases, on_run=on_run)


def _print(found: Report) -> None:
    """A line for each topic and class of walls; each run that did not hold in full."""
    console = Console(highlight=False)
    table = Table("topic", "all walls", "one wall off", "controls", title="What held")
    for topic in dict.fromkeys(row.topic for row in found.rows):
        rows = [row for row in found.rows if row.topic == topic]
        kinds = (suite.ALL_WALLS, suite.DEPTH, suite.CONTROL)
        table.add_row(topic, *(_held([row for row in rows if row.walls.startswith(kind)]) for kind in kinds))
    console.print(table)
    wrong = [row for row in found.rows if row.state not in NO_FINDING]
    if wrong:
        details = Table("case", "severity", "walls", "result", "evidence")
        for row in wrong:
            details.add_row(*(Text(str(part)) for part in (row.case, row.severity, row.walls, row.state, row.evidence)))
        console.print(details)
    for change in found.changes:
        console.print(Text(f"CHANGED  {change}"))
    console.print(report.summary(found))


def _held(rows: list[Row]) -> str:
    return f"{sum(row.state is State.HELD for row in rows)} of {len(rows)}" if rows else ""


def _print_comparison(found: Report) -> None:
    console = Console(highlight=False)
    table = Table("case", "severity", found.against, title=f"What the programs say in: {found.against}")
    for row in found.rows:
        table.add_row(*(Text(str(part)) for part in (row.case, row.severity, row.evidence)))
    console.print(table)
    worked = sum(row.state is State.BROKEN for row in found.rows)
    console.print(f"{worked} of {len(found.rows)} attacks worked in: {found.against}")
