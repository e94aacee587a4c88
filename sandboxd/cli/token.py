"""`sandboxd token`: the token that clients of the local service send."""

from __future__ import annotations

import os

import click

from sandboxd.errors import InputError
from sandboxd.instance import Instance


@click.group()
def command() -> None:
    """The token that clients of the service on this machine send.

    \b
    Example:  sudo sandboxd token show
    """


@command.command()
@click.option("--instance", help="Name of the instance.  [default: default]")
def show(instance: str | None) -> None:
    """Print the token of the instance; `sandboxd serve` made it at its first start.

    \b
    Example:  curl -H "Authorization: Bearer $(sudo sandboxd token show)" http://127.0.0.1:8080/v1/languages
    """
    try:
        click.echo(read_token(Instance.from_environment(instance)))
    except InputError as error:
        raise click.UsageError(str(error)) from None


def read_token(instance: Instance) -> str:
    """The instance's token. Ends the command with a message when there is none or it may not be read."""
    try:
        return instance.token_path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        message = f"there is no token at {instance.token_path}: sandboxd serve makes it at its first start"
    except PermissionError:
        message = f"{instance.token_path} may not be read: try sudo, or set SANDBOXD_TOKEN"
    click.echo(f"sandboxd: {message}", err=True)
    raise SystemExit(os.EX_NOINPUT)
