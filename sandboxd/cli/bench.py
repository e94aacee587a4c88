"""`sandboxd bench`: what sandboxes cost on this host, against bare processes and other sandboxes."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from benchmarks import questions
from sandboxd.cli.failure import reported
from sandboxd.delegation import ensure_delegated
from sandboxd.errors import HostError


@click.command()
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
@click.option(
    "--output",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for result.json and a chart of each question.  [default: a new one below /var/tmp]",
)
@reported
def command(names: tuple[str, ...], list_only: bool, scale: float, wait_s: float, folder: Path | None) -> None:
    """Measure sandboxd against bare processes and the other sandboxes that are installed, as ratios of one run.

    Without a QUESTION all are asked, which takes long. Nothing is installed, and only figures stay. Needs root and gcc.

    \b
    Exit status 0: all could be measured, bounds met or not. 1: a question could not.
    Example:  sandboxd bench --list
              sudo sandboxd bench cold prepared
              sudo sandboxd bench --scale 0.1 --output figures inside
    """
    if list_only:
        for name in questions.NAMES:
            click.echo(f"{name:12} {questions.load(name).TITLE}")
        return
    if os.geteuid() != 0:
        raise HostError("root", "what is measured starts launchers of its own", "run it with sudo")
    ensure_delegated()
    # Here, not above: the other commands' help must not wait for a library of charts.
    from benchmarks import report
    from benchmarks.run import ask, write

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # whatever is wrong with it is told before anything is measured
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-") as name:
        scratch = Path(name)
        scratch.chmod(0o711)  # the service user must reach its folder below
        run = ask(names or questions.NAMES, scratch, console, scale, wait_s)
    report.print_run(console, run)
    for path in write(run, folder or own_folder()):
        click.echo(f"written: {path}")
    raise SystemExit(1 if run.failed else 0)


def own_folder() -> Path:
    """A new one, whose name nobody can foresee, and which whoever called sudo can read."""
    folder = Path(tempfile.mkdtemp(prefix="sandboxd-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    return folder
