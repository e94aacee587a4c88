"""The `sandboxd` command. Each command lives in a module of its own and is imported only when it is used."""

from __future__ import annotations

import importlib

import click

import sandboxd

# name of the command -> module that defines it as `command`
_COMMANDS = {
    "run": "run",
    "submit": "submit",
    "explain": "explain",
    "doctor": "doctor",
    "audit": "audit",
    "bench": "bench",
    "policy": "policy",
    "token": "token",
    "serve": "serve",
    "api": "api",
    "worker": "worker",
    "launcher": "launcher",
}


class _LazyGroup(click.Group):
    """Imports a command's module on demand: `sandboxd run` must not pay for Flask."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sandboxd.cli.{_COMMANDS[name]}").command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(sandboxd.__version__)
def main() -> None:
    """Run code nobody trusts, in a fresh container that leaves nothing behind.

    \b
    Try it:    sudo sandboxd run hello.py
    A service: sudo sandboxd serve        (HTTP on 127.0.0.1:8080)
    Example:   echo 'print(6 * 7)' > answer.py && sudo sandboxd run answer.py
    """
