"""`sandboxd run`: one program through launcher and sandbox, without a server; behaves as if it had run here."""

from __future__ import annotations

import os
import signal
import sys

import click
import msgspec

from sandboxd import document
from sandboxd.catalogue import Catalogue
from sandboxd.cli.failure import reported
from sandboxd.cli.request import COMMAND_SETTINGS, JobOptions, job_options, make_request
from sandboxd.delegation import ensure_delegated
from sandboxd.errors import InputError
from sandboxd.execution import Ended, run_job
from sandboxd.exit_status import OUR_FAULT_STATUS, exit_status
from sandboxd.instance import Instance
from sandboxd.jail.denied import REPORTS_MAX
from sandboxd.local_launcher import is_running, local_launcher
from sandboxd.output import KeptOutput
from sandboxd.result import Verdict

DEFAULT_POLICY = "default"
REPORTING_POLICY = "report"
_QUIET = (Verdict.OK, Verdict.RUNTIME_ERROR)


@click.command(context_settings=COMMAND_SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print the job's document instead of what the program prints.")
@click.option("--report-denied", is_flag=True, help="List the system calls that were refused (policy report).")
@job_options
@reported
def command(options: JobOptions, instance: str | None, as_json: bool, report_denied: bool) -> None:
    """Run FILE in a sandbox: stdin, stdout, stderr and exit status are passed on.

    Uses the instance's running launcher, else starts one for this run alone (root).

    \b
    128 + N: signal N ended it.  124: a limit did.  125: the fault is ours.  2: it is the command line's.
    Example:  echo 3 4 | sudo sandboxd run --limit cpu_time_s=2 --limit memory_bytes=64M sum.py
    """
    where = Instance.from_environment(instance)
    if not is_running(where):
        ensure_delegated()
    created_at = document.now_rfc3339()
    with local_launcher(where) as client, _Cancellation() as cancellation:
        catalogue = client.catalogue()
        if report_denied:
            options = msgspec.structs.replace(options, policy=_reporting_policy(catalogue, options.policy))
        request = make_request(options, catalogue)
        output = _Output(cancellation)
        sink = None if as_json else output.pass_on
        stdin_fd = sys.stdin.fileno() if sys.stdin is not None else None
        ended = run_job(request, catalogue, client, sink=sink, stdin_fd=stdin_fd, cancel_fd=cancellation.fd)
    output.report()
    if as_json:
        _print_document(ended, created_at)
    else:
        _print_reason(ended)
        _print_denied(ended)
    raise SystemExit(_status(ended, cancellation))


class _Cancellation:
    """Ctrl-C, SIGTERM and SIGHUP end the sandbox, not this process: `fd` becomes readable."""

    def __enter__(self) -> _Cancellation:
        self.number = signal.SIGINT
        """The last signal that came."""
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.fd)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.number = signal.Signals(number)
        self.now()

    def now(self) -> None:
        os.eventfd_write(self.fd, 1)


class _Output:
    """Passes the program's output on. When it cannot be written the program is ended: nobody would see the rest."""

    def __init__(self, cancellation: _Cancellation) -> None:
        self._cancellation = cancellation
        self._error: OSError | None = None

    def pass_on(self, stream: str, chunk: bytes) -> None:
        output = sys.stdout if stream == "stdout" else sys.stderr
        if output is None or self._error is not None:
            return
        try:
            output.buffer.write(chunk)
            output.buffer.flush()
        except OSError as error:
            self._error = error
            self._cancellation.now()

    def report(self) -> None:
        """Ends the command as a program that nobody reads ends, or says what was wrong."""
        if self._error is None:
            return
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is buffered cannot be written either
        if isinstance(self._error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE)
        click.echo(f"sandboxd: the program's output cannot be written: {self._error.strerror}", err=True)
        raise SystemExit(OUR_FAULT_STATUS)


def _print_document(ended: Ended, created_at: str) -> None:
    judgement = ended.judgement
    result = document.job_result(
        verdict=judgement.verdict if judgement else None,
        reason=judgement.reason if judgement else None,
        stages=ended.stages,
        policy=ended.policy,
        image=ended.image,
    )
    whole = document.job_document(
        result,
        job_id=None,
        state=ended.state,
        created_at=created_at,
        started_at=created_at,
        finished_at=document.now_rfc3339(),
        worker=None,
    )
    click.echo(document.encode(whole))


def _reporting_policy(catalogue: Catalogue, policy: str) -> str:
    """`default` becomes `report`, the same but for the reporting. Raises InputError for one that does not report."""
    chosen = REPORTING_POLICY if policy == DEFAULT_POLICY else policy
    if not catalogue.policy(chosen).report_denied:
        raise InputError("policy", f"{chosen!r} does not report denied calls; leave --policy out, or set report_denied")
    return chosen


def _print_denied(ended: Ended) -> None:
    """The last stage's, one line each."""
    calls = ended.stages[-1].outcome.facts.denied or ()
    for denied in calls:
        click.echo(f"sandboxd: denied {denied.name}, {denied.count} time{'' if denied.count == 1 else 's'}", err=True)
    if sum(denied.count for denied in calls) >= REPORTS_MAX:
        click.echo(f"sandboxd: what was denied after the first {REPORTS_MAX} calls is not listed", err=True)


def _print_reason(ended: Ended) -> None:
    """The compiler's words go to stderr: they are about the program, not from it."""
    last = ended.stages[-1]
    if last.name == "compile":
        for kept in (last.stdout, last.stderr):
            sys.stderr.buffer.write(_whole(kept))
        sys.stderr.buffer.flush()
    if ended.judgement is None:
        click.echo("sandboxd: cancelled", err=True)
    elif ended.judgement.verdict not in _QUIET:
        click.echo(f"sandboxd: {ended.judgement.reason}", err=True)


def _whole(kept: KeptOutput) -> bytes:
    head, tail = kept.kept()
    return head + tail


def _status(ended: Ended, cancellation: _Cancellation) -> int:
    last = ended.stages[-1].judgement
    if last is None:
        return 128 + cancellation.number
    return exit_status(last.verdict, last.exit_code, last.signal)
