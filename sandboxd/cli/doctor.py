"""`sandboxd doctor`: the checks that a launcher makes at its start, with what mends each."""

from __future__ import annotations

import json
import os

import click
import msgspec

from sandboxd import redis_server
from sandboxd.config import load_settings
from sandboxd.delegation import ensure_delegated
from sandboxd.jail.facts import Finding, findings

_MARKS = {(True, True): "ok  ", (True, False): "ok  ", (False, False): "warn", (False, True): "FAIL"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> None:
    """Check this host: what sandboxd must have, and what would make it stronger.

    Exit status 0: it can serve; 1: something that it must have is missing.

    \b
    Example:  sudo sandboxd doctor
    """
    if os.geteuid() == 0:
        ensure_delegated()  # what `run` and `serve` would do: cgroups are judged by the scope they would have
    found = [*findings(), redis_server.finding(load_settings().redis_url)]
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        for finding in found:
            click.echo(_line(finding))
        missing = [finding.name for finding in found if finding.must and not finding.ok]
        warnings = sum(not finding.ok for finding in found) - len(missing)
        summary = f"cannot serve here: {', '.join(missing)}" if missing else "sandboxd can serve on this host"
        click.echo(f"\n{summary}; {warnings} warning{'' if warnings == 1 else 's'}")
    raise SystemExit(any(finding.must and not finding.ok for finding in found))


def _line(finding: Finding) -> str:
    line = f"{_MARKS[finding.ok, finding.must]}  {finding.name:<30} {finding.detail}"
    return line if finding.ok else f"{line}\n      to mend it: {finding.remedy}"
