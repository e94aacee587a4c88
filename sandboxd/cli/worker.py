"""`sandboxd worker`: one worker process; start as many as jobs shall run at once."""

from __future__ import annotations

import os

import click

from sandboxd import log as logging
from sandboxd.config import load_settings
from sandboxd.errors import HostError, InputError, SandboxdError


@click.command()
@click.option("--instance", help="Name of the instance whose launcher runs the jobs.  [default: default]")
@click.option("--name", help="The worker's name, unique on its Redis.  [default: from instance, host and process id]")
def command(instance: str | None, name: str | None) -> None:
    """Take jobs from the queue and have the launcher run them, one at a time. Settings: SANDBOXD_*.

    \b
    Example:  SANDBOXD_REDIS_URL=redis://10.0.0.5 sandboxd worker
    """
    try:
        settings = load_settings(instance=instance)
    except InputError as error:
        raise click.UsageError(str(error)) from None
    logging.configure("worker", level=settings.log_level, json=settings.log_json)
    from workers.main import run_worker

    try:
        run_worker(settings, name=name)
    except HostError as error:
        click.echo(f"sandboxd: {error}", err=True)
        raise SystemExit(os.EX_NOPERM) from None
    except SandboxdError as error:
        click.echo(f"sandboxd: {error}", err=True)
        raise SystemExit(os.EX_TEMPFAIL) from None
