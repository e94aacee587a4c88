"""How a command ends when its caller (status 2) or sandboxd (125) failed, not a program: one line on standard error."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import ParamSpec

import click

from sandboxd.errors import InputError, SandboxdError
from sandboxd.exit_status import OUR_FAULT_STATUS, USAGE_STATUS

P = ParamSpec("P")


def reported(function: Callable[P, None]) -> Callable[P, None]:
    """Decorates a command: what was raised on purpose, or by the system, is told in a line; all else is a traceback."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except SandboxdError as error:
            click.echo(f"sandboxd: {error}", err=True)
            raise SystemExit(USAGE_STATUS if isinstance(error, InputError) else OUR_FAULT_STATUS) from None
        except BrokenPipeError:
            discard_output()
            raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as error:  # a full disk behind the standard output, say
            discard_output()
            click.echo(f"sandboxd: {error}", err=True)
            raise SystemExit(OUR_FAULT_STATUS) from None

    return wrapper


def discard_output() -> None:
    """What is buffered cannot be written either, and would be tried again at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
