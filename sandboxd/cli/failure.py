"""How a command ends when sandboxd, not a program, failed: one line on standard error and status 125."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import click

from sandboxd.errors import SandboxdError
from sandboxd.exit_status import OUR_FAULT_STATUS

P = ParamSpec("P")


def reported(function: Callable[P, None]) -> Callable[P, None]:
    """Decorates a command: an exception raised on purpose is told in one line; anything else stays a traceback."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except SandboxdError as error:
            click.echo(f"sandboxd: {error}", err=True)
            raise SystemExit(OUR_FAULT_STATUS) from None

    return wrapper
