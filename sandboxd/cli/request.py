"""A job from a command line: the options that `run`, `submit` and `explain` share, and the request they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import click

from sandboxd.catalogue import Catalogue
from sandboxd.errors import InputError
from sandboxd.guess import guess_language
from sandboxd.policy.units import parse_assignments
from sandboxd.spec import BODY_MAX_BYTES, InputFile, JobRequest, Struct

COMMAND_SETTINGS = {"allow_interspersed_args": False}
"""What follows FILE belongs to the program."""


class JobOptions(Struct, frozen=True, kw_only=True):
    """A job as a command line says it."""

    file: Path
    args: tuple[str, ...]
    language: str | None
    policy: str
    image: str | None
    limits: tuple[str, ...]
    compile_limits: tuple[str, ...]
    env: tuple[str, ...]

    def variables(self) -> dict[str, str]:
        """Of `--env`. Raises InputError."""
        variables = {}
        for text in self.env:
            name, equals, value = text.partition("=")
            if not equals:
                raise InputError("env", f"{text[:64]!r} is not NAME=VALUE")
            variables[name] = value
        return variables


def job_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options and arguments that make a job, and `--instance`; the function gets them as one `JobOptions`."""

    @functools.wraps(function)
    def wrapper(**given: Any) -> None:  # noqa: ANN401  # what click parsed
        options = JobOptions(**{name: given.pop(name) for name in JobOptions.__struct_fields__})
        function(options, **given)

    command: Callable[..., None] = wrapper
    for decorate in reversed(
        (
            click.option("--language", help="Name of the language.  [default: from the file's name]"),
            click.option("--policy", default="default", show_default=True, help="What the program may do."),
            click.option("--image", help="What the program runs in.  [default: the policy's]"),
            click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Such as memory_bytes=64M."),
            click.option(
                "--compile-limit", "compile_limits", multiple=True, metavar="NAME=VALUE", help="For compiling."
            ),
            click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="Variable of the program's."),
            click.option("--instance", help="Instance to use.  [default: $SANDBOXD_INSTANCE or default]"),
            click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path)),
            click.argument("args", nargs=-1, type=click.UNPROCESSED),
        )
    ):
        command = decorate(command)
    return command


def read_file(file: Path) -> bytes:
    """A program. Raises InputError for one that is no regular file, or too large to be any job's."""
    if not file.is_file():  # opening a fifo would wait for its writer
        raise InputError("file", f"{printable(file)} is not a regular file")
    with file.open("rb") as opened:
        return read_bounded(opened, "file")


def read_bounded(opened: IO[bytes], field: str) -> bytes:
    """All of it, or InputError: what has no end is not read to it."""
    content = opened.read(BODY_MAX_BYTES + 1)
    if len(content) > BODY_MAX_BYTES:
        raise InputError(field, f"must be at most {BODY_MAX_BYTES} bytes")
    return content


def printable(path: Path) -> str:
    """A name as it can be printed: its bytes need not be UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def make_request(options: JobOptions, catalogue: Catalogue) -> JobRequest:
    """The request; stdin is streamed. Raises InputError for what the command line got wrong."""
    content = read_file(options.file)
    names = {offered.name: offered.source_name for offered in catalogue.languages}
    return JobRequest(
        language=options.language or guess_language(options.file.name, content[:4], names),
        files=(InputFile(path=options.file.name, content=content),),
        stdin=None,
        args=options.args,
        env=options.variables(),
        policy=options.policy,
        image=options.image,
        limits=parse_assignments(options.limits, "limits"),
        compile_limits=parse_assignments(options.compile_limits, "compile_limits"),
    )
