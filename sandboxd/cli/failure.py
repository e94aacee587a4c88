"""How a command ends when its caller (status 2) or sandboxd (125) failed, not a program: one line on standard error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import click

from sandboxd.errors import InputError, SandboxdError
from sandboxd.exit_status import OUR_FAULT_STATUS, USAGE_STATUS

P = ParamSpec("P")


def reported(function: Callable[P, None]) -> Callable[P, None]:
    """Decorates a command: an exception raised on purpose is told in one line; anything else stays a traceback."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except SandboxdError as error:
            click.echo(f"sandboxd: {error}", err=True)
            raise SystemExit(USAGE_STATUS if isinstance(error, InputError) else OUR_FAULT_STATUS) from None

    return wrapper
