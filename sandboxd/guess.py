"""Which language a file is in, told from the names that the offered languages give their main file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from sandboxd.errors import InputError

EXECUTABLE = "executable"
"""The language of a file that is run as it is."""


def guess_language(file_name: str, beginning: bytes, source_names: Mapping[str, str]) -> str:
    """The language whose `source_name` has the suffix of `file_name`; a program or a script with `#!` is `executable`.

    `source_names` maps each offered language to its `source_name`, `beginning` holds the file's first bytes.
    Raises InputError naming what is offered.
    """
    suffix = PurePath(file_name).suffix
    if suffix:
        for language, source_name in source_names.items():
            if PurePath(source_name).suffix == suffix:
                return language
    if EXECUTABLE in source_names and beginning.startswith((b"\x7fELF", b"#!")):
        return EXECUTABLE
    known = ", ".join(f"{name} ({PurePath(source).suffix or 'any'})" for name, source in sorted(source_names.items()))
    raise InputError("language", f"cannot tell it from the name {PurePath(file_name).name!r}; say --language: {known}")
