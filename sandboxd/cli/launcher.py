"""`sandboxd launcher`: the privileged process of one instance. `sandboxd serve` starts it by itself."""

from __future__ import annotations

import asyncio

import click

from sandboxd import log as logging
from sandboxd.cli.failure import reported
from sandboxd.config import PREPARED_MAX, prepared_default
from sandboxd.delegation import ensure_delegated
from sandboxd.instance import Instance
from sandboxd.jail.launcher import Launcher
from sandboxd.jail.plan import LAYERS, Layer


@click.command()
@click.option("--instance", "name", default=None, help="Instance to serve; default: $SANDBOXD_INSTANCE or `default`.")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(LAYERS),
    help="Control run: leave this layer out (refused for the instance `default`); every result says so.",
)
@click.option(
    "--prepared",
    "prepared_max",
    type=click.IntRange(0, PREPARED_MAX),
    default=prepared_default,
    show_default="four for each core",
    help="Sandboxes kept ready for jobs to come, at most; 0: each is built when its job is there.",
)
@click.option(
    "--favor-dynmods",
    is_flag=True,
    help="On cgroup v1: no wait of 9 to 18 ms for the first sandbox after a pause. Changes the whole kernel.",
)
@click.option("--quiet", is_flag=True, help="Log warnings and errors alone.")
@reported
def command(name: str | None, without: tuple[Layer, ...], prepared_max: int, favor_dynmods: bool, quiet: bool) -> None:
    """Build, watch and destroy sandboxes for one instance, as root.

    \b
    Example: sudo sandboxd launcher --instance default
    """
    logging.configure("launcher", level="warning" if quiet else "info")
    ensure_delegated()
    instance = Instance.from_environment(name)
    asyncio.run(_serve(instance, without, prepared_max=prepared_max, favor_dynmods=favor_dynmods))


async def _serve(instance: Instance, without: tuple[Layer, ...], *, prepared_max: int, favor_dynmods: bool) -> None:
    launcher = Launcher(instance, without, prepared_max=prepared_max, favor_dynmods=favor_dynmods)
    try:
        await launcher.start()
        await launcher.serve()
    finally:
        await launcher.close()
