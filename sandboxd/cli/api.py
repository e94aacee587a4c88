"""`sandboxd api`: the HTTP interface alone, under gunicorn, for a host where Redis and the workers run as units of
their own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from sandboxd.config import load_settings
from sandboxd.errors import InputError


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [default: 8080]")
@click.option("--socket", type=click.Path(path_type=Path), help="Listen on this unix socket instead.")
@click.option("--processes", "api_processes", type=click.IntRange(1, 64), help="API processes.  [default: 1]")
@click.option("--no-auth", is_flag=True, default=None, help="Ask for no token; on a loopback address alone.")
def command(
    host: str | None, port: int | None, socket: Path | None, api_processes: int | None, no_auth: bool | None
) -> None:
    """Serve the HTTP API. Settings: SANDBOXD_* and /etc/sandboxd/sandboxd.toml.

    \b
    Example:  SANDBOXD_REDIS_URL=redis://10.0.0.5 sandboxd api --socket /run/sandboxd/api.sock
    """
    if os.geteuid() == 0:
        raise click.ClickException("the API must not be root: sudo -u sandboxd sandboxd api")
    try:
        settings = load_settings(
            host=host, port=port, socket=socket and socket.absolute(), api_processes=api_processes, no_auth=no_auth
        )
    except InputError as error:
        raise click.UsageError(str(error)) from None
    # gunicorn, as soon as it is imported, looks at the folder it was started in, which this user may not enter.
    os.chdir("/")
    from sandboxd.api.server import Server

    sys.argv[:] = ["sandboxd-api"]
    Server(settings).run()
