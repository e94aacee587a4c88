"""`sandboxd serve`: the whole service on this machine, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os

import click
import structlog

from sandboxd import log as logging
from sandboxd.cli.failure import discard_output
from sandboxd.config import PREPARED_MAX, load_settings
from sandboxd.delegation import ensure_delegated
from sandboxd.errors import InputError, SandboxdError
from sandboxd.serve import READY_TIMEOUT_S, ServeOptions, check_start, serve
from sandboxd.service_files import CannotServe
from sandboxd.supervisor import Stopped

log = structlog.get_logger()


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 8080]")
@click.option("--instance", help="Name of the instance.  [default: default]")
@click.option("--workers", type=click.IntRange(1, 256), help="Jobs at once.  [default: one per core]")
@click.option(
    "--prepared", type=click.IntRange(0, PREPARED_MAX), help="Sandboxes kept ready at most.  [default: four per core]"
)
@click.option("--no-auth", is_flag=True, default=None, help="Ask for no token; on a loopback address alone.")
@click.option(
    "--ready-timeout",
    type=click.FloatRange(1, 3600),
    default=READY_TIMEOUT_S,
    show_default=True,
    help="Seconds for a part to start.",
)
def command(
    host: str | None,
    port: int | None,
    instance: str | None,
    workers: int | None,
    prepared: int | None,
    no_auth: bool | None,
    ready_timeout: float,
) -> None:
    """Run the whole service: a private Redis, the launcher, workers and the HTTP API.

    \b
    Example:  sudo sandboxd serve --port 8080
              sudo sandboxd token show          # what clients send as "Authorization: Bearer ..."
              sandboxd submit hello.py
    """
    try:
        settings = load_settings(host=host, port=port, instance=instance, prepared=prepared, no_auth=no_auth)
        logging.configure("serve", level=settings.log_level, json=settings.log_json)
        check_start(settings)
        ensure_delegated()
        options = ServeOptions(workers=workers or len(os.sched_getaffinity(0)), ready_timeout_s=ready_timeout)
        serve(settings, options, announce=_announce)
    except Stopped:
        click.echo("sandboxd: stopped before it was ready", err=True)
        raise SystemExit(0) from None
    except CannotServe as error:
        raise _ended(str(error), error.status) from None
    except InputError as error:
        raise click.UsageError(str(error)) from None
    except SandboxdError as error:
        raise _ended(str(error), os.EX_SOFTWARE) from None


def _announce(text: str) -> None:
    """Whoever started the service may have left; it serves all the same."""
    try:
        click.echo(text)
    except OSError as error:
        discard_output()
        log.warning("nobody reads how to use it", error=str(error))


def _ended(message: str, status: int) -> SystemExit:
    click.echo(f"sandboxd: {message}", err=True)
    return SystemExit(status)
