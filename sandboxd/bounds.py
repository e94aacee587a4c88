"""The bounds of what a client may send: paths, arguments, environment. Checked by the API and again by the launcher.

Lengths are bytes of UTF-8. What UTF-8 cannot carry (lone surrogates) and what the kernel cannot (NUL) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sandboxd.errors import InputError
from sandboxd.spec import (
    ARG_MAX_BYTES,
    ARGS_MAX,
    ARTIFACT_PATTERNS_MAX,
    ENV_MAX,
    FILES_MAX,
    PATH_MAX_BYTES,
    PATH_MAX_LEVELS,
    InputFile,
)

STAGE_ARGV_MAX = 2 * ARGS_MAX
"""Entries of a stage's argv: a language's command and the client's `args`."""
STAGE_FILES_MAX = 2 * FILES_MAX
"""Files of a stage: the client's and what the stage before left."""


def check_files(files: Sequence[InputFile], field: str = "files", *, maximum: int = FILES_MAX) -> None:
    """Raises InputError for too many files, a bad path, two files of one path, or a file that is another's folder."""
    if len(files) > maximum:
        raise InputError(field, f"must have at most {maximum} files, not {len(files)}")
    seen: dict[str, int] = {}
    folders: dict[str, int] = {}
    for number, file in enumerate(files):
        where = f"{field}[{number}].path"
        check_path(file.path, where)
        if file.path in seen:
            raise InputError(where, f"is the path of {field}[{seen[file.path]}] too")
        if file.path in folders:
            raise InputError(where, f"is the folder of {field}[{folders[file.path]}]")
        parts = file.path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder in seen:
                raise InputError(where, f"lies below {field}[{seen[folder]}], which is a file")
            folders.setdefault(folder, number)
        seen[file.path] = number


def check_path(path: str, field: str) -> None:
    """Raises InputError unless `path` is relative, clean and inside the bounds."""
    size = len(_encoded(path, field))
    if not path:
        raise InputError(field, "must not be empty")
    if size > PATH_MAX_BYTES:
        raise InputError(field, f"must be at most {PATH_MAX_BYTES} bytes long, not {size}")
    if "\n" in path:
        raise InputError(field, "must not contain a newline")
    if path.startswith("/"):
        raise InputError(field, "must be relative, without a leading '/'")
    levels = path.split("/")
    if any(level in ("", ".", "..") for level in levels):
        raise InputError(field, "must have no empty, '.' or '..' component")
    if len(levels) > PATH_MAX_LEVELS:
        raise InputError(field, f"must have at most {PATH_MAX_LEVELS} levels, not {len(levels)}")


def check_patterns(patterns: Sequence[str], field: str = "artifacts") -> None:
    """Raises InputError unless there are few enough glob patterns and each is written as a path is."""
    if len(patterns) > ARTIFACT_PATTERNS_MAX:
        raise InputError(field, f"must have at most {ARTIFACT_PATTERNS_MAX} patterns, not {len(patterns)}")
    for number, pattern in enumerate(patterns):
        check_path(pattern, f"{field}[{number}]")


def check_args(args: Sequence[str], field: str = "args", *, maximum: int = ARGS_MAX) -> None:
    """Raises InputError for too many arguments or one that is too long or contains NUL."""
    if len(args) > maximum:
        raise InputError(field, f"must have at most {maximum} entries, not {len(args)}")
    for number, arg in enumerate(args):
        _check_length(arg, f"{field}[{number}]")


def check_argv(argv: Sequence[str], field: str = "command", *, maximum: int = ARGS_MAX) -> None:
    """`check_args` for a whole command: it names a program."""
    if not argv:
        raise InputError(field, "must name a program")
    check_args(argv, field, maximum=maximum)
    if not argv[0]:
        raise InputError(f"{field}[0]", "must not be empty: it names the program")


def check_env(env: Mapping[str, str], field: str = "env") -> None:
    """Raises InputError for too many variables, a name that is empty or has `=` or NUL, or too long an entry."""
    if len(env) > ENV_MAX:
        raise InputError(field, f"must have at most {ENV_MAX} entries, not {len(env)}")
    for name, value in env.items():
        where = f"{field}.{printable(name)}"
        if not name:
            raise InputError(field, "a name must not be empty")
        if "=" in name:
            raise InputError(where, "a name must not contain '='")
        size = len(_encoded(name, where)) + 1 + len(_encoded(value, where))
        if size > ARG_MAX_BYTES:
            raise InputError(where, f"must be at most {ARG_MAX_BYTES} bytes as NAME=VALUE, not {size}")


def printable(text: str) -> str:
    """The text's beginning, fit for a message: at most 64 characters, what cannot be printed escaped."""
    short = text[:64]
    return short if short.isprintable() else short.encode("unicode_escape").decode("ascii")


def _check_length(text: str, field: str) -> None:
    size = len(_encoded(text, field))
    if size > ARG_MAX_BYTES:
        raise InputError(field, f"must be at most {ARG_MAX_BYTES} bytes long, not {size}")


def _encoded(text: str, field: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise InputError(field, "must be valid Unicode, without lone surrogates") from None
    if b"\0" in encoded:
        raise InputError(field, "must not contain NUL")
    return encoded
