"""`sandboxd policy`: what a job may do, and where that is written. Needs neither root nor a server."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from sandboxd import spec
from sandboxd.config import load_settings
from sandboxd.errors import InputError
from sandboxd.policy import units
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.model import Policy
from sandboxd.spec import LIMIT_NAMES

_FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the policies.  [default: SANDBOXD_POLICIES, else the installed ones]",
)


class _Mistake(click.ClickException):
    """A file is wrong."""

    exit_code = 1


@click.group()
def command() -> None:
    """Show and check policies: what a job may do, and which file said so.

    \b
    Example:  sandboxd policy explain default
              sandboxd policy lint --folder ./policies
    """


@command.command("list")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="As JSON, names and values as in the HTTP API.")
def list_(folder: Path | None, as_json: bool) -> None:
    """List the policies.

    \b
    Example:  sandboxd policy list
    """
    policies = sorted(_load(folder).values(), key=lambda policy: policy.name)
    if as_json:
        _print_json([{"name": p.name, "description": p.description, "digest": p.digest} for p in policies])
        return
    _print_table((policy.name, policy.description) for policy in policies)


@command.command()
@click.argument("name")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="As JSON, names and values as in the HTTP API.")
def explain(name: str, folder: Path | None, as_json: bool) -> None:
    """Print each value that policy NAME puts in force and the file that it came from.

    \b
    Example:  sandboxd policy explain default
    """
    policies = _load(folder)
    if name not in policies:
        raise click.UsageError(f"unknown policy {name[:64]!r}; there are: {', '.join(sorted(policies))}")
    policy, bounds = policies[name], _bounds()
    if as_json:
        _print_json(_as_json(policy, bounds))
        return
    click.echo(f"{policy.name}: {policy.description}\ndigest {policy.digest}\n")
    _print_table(_scalar_rows(policy))
    click.echo()
    _print_table(_limit_rows(policy))
    click.echo("\nBounds of a request, whatever the policy:\n")
    _print_table((key, _readable(key, value), source) for key, (value, source) in bounds.items())


@command.command()
@_FOLDER
def lint(folder: Path | None) -> None:
    """Look for mistakes in policies, languages and seccomp profiles; the exit status is 1 when there are any.

    \b
    Example:  sandboxd policy lint --folder ./policies
    """
    # Resolving names of syscalls takes libseccomp; the other commands do without.
    from sandboxd.policy.lint import lint_folder

    findings = lint_folder(_folder(folder))
    for finding in findings:
        click.echo(str(finding))
    if findings:
        raise SystemExit(1)
    click.echo("no mistakes found")


def _folder(folder: Path | None) -> Path:
    try:
        return folder or policy_folder()
    except InputError as error:
        raise _Mistake(str(error)) from None


def _load(folder: Path | None) -> dict[str, Policy]:
    try:
        return load_policies(_folder(folder))
    except InputError as error:
        raise _Mistake(str(error)) from None


def _scalar_rows(policy: Policy) -> Iterable[tuple[str, ...]]:
    for key in ("image", "network", "seccomp", "output_kill_factor", "report_denied"):
        yield key, str(getattr(policy, key)), policy.provenance[key]


def _limit_rows(policy: Policy) -> Iterable[tuple[str, ...]]:
    yield "limit", "default", "from", "ceiling", "from"
    for name in LIMIT_NAMES:
        row = [units.edge_name(name)]
        for part, limits in (("defaults", policy.defaults), ("ceilings", policy.ceilings)):
            row += [units.describe(name, getattr(limits, name)), policy.provenance[f"{part}.{units.edge_name(name)}"]]
        yield tuple(row)


def _as_json(policy: Policy, bounds: dict[str, tuple[float, str]]) -> dict[str, Any]:
    return {
        "name": policy.name,
        "description": policy.description,
        "digest": policy.digest,
        "image": policy.image,
        "network": policy.network,
        "seccomp": policy.seccomp,
        "output_kill_factor": policy.output_kill_factor,
        "report_denied": policy.report_denied,
        "defaults": units.to_edge(policy.defaults),
        "ceilings": units.to_edge(policy.ceilings),
        "smallest": {units.edge_name(name): units.edge_value(name, units.SMALLEST[name]) for name in LIMIT_NAMES},
        "provenance": policy.provenance,
        "bounds": {key: value for key, (value, _) in bounds.items()},
    }


def _bounds() -> dict[str, tuple[float, str]]:
    """Bounds of a request and who sets them: those that an operator may lower, as set here, then the fixed ones."""
    try:
        settings = load_settings()
    except InputError as error:
        raise _Mistake(str(error)) from None
    bounds: dict[str, tuple[float, str]] = {}
    for key in ("body_max_bytes", "source_max_bytes", "stdin_max_bytes", "files_max", "wait_max_s"):
        bounds[key] = getattr(settings, key), f"setting SANDBOXD_{key.upper()}"
    for key in ("path_max_bytes", "path_max_levels", "args_max", "env_max", "arg_max_bytes", "json_max_depth"):
        bounds[key] = getattr(spec, key.upper()), "fixed"
    return bounds


def _readable(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return units.describe_bytes(int(value))
    return f"{value:g} s" if key.endswith("_s") else f"{value:g}"


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_table(rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell, two spaces apart."""
    cells = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
