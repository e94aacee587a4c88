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
@click.option("--quiet", is_flag=True, help="Log warnings and errors alone.")
@reported
def command(name: str | None, without: tuple[Layer, ...], prepared_max: int, quiet: bool) -> None:
    """Build, watch and destroy sandboxes for one instance, as root.

    \b
    Example: sudo sandboxd launcher --instance default
    """
    logging.configure("launcher", level="warning" if quiet else "info")
    ensure_delegated()
    asyncio.run(_serve(Instance.from_environment(name), without, prepared_max))


async def _serve(instance: Instance, without: tuple[Layer, ...], prepared_max: int) -> None:
    launcher = Launcher(instance, without, prepared_max=prepared_max)
    try:
        await launcher.start()
        await launcher.serve()
    finally:
        await launcher.close()
