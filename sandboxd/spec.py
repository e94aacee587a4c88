"""What one stage of a job asks for: plain frozen values, validated where they are decoded, trusted afterwards.

Base units inside: nanoseconds and bytes. Seconds exist only at the edges (HTTP, command line, TOML), where fields end
in `_s`. The bounds below are those of `docs/http.md`; each is also printed by `sandboxd policy explain`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

NANOSECONDS = 1_000_000_000
KIB = 1024
MIB = 1024 * KIB

BODY_MAX_BYTES = 16 * MIB
SOURCE_MAX_BYTES = 1 * MIB
STDIN_MAX_BYTES = 8 * MIB
FILES_MAX = 256
PATH_MAX_BYTES = 255
PATH_MAX_LEVELS = 16
ARGS_MAX = 256
ENV_MAX = 64
ARG_MAX_BYTES = 4 * KIB
WAIT_MAX_S = 60
JSON_MAX_DEPTH = 32
ARTIFACT_PATTERNS_MAX = 32


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every value that crosses a border: immutable, unknown fields refused (`frozen` and `kw_only` are said
    by each class)."""


Count = Annotated[int, Meta(ge=1, le=1 << 20)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 48)]
Nanoseconds = Annotated[int, Meta(ge=1, le=86_400 * NANOSECONDS)]


class Limits(Struct, frozen=True, kw_only=True):
    """The effective limits of one stage. A stage never runs with a limit missing."""

    cpu_time_ns: Nanoseconds
    """CPU time of the program and all its descendants, from `execve`."""
    wall_time_ns: Nanoseconds
    """Time from `execve` to the main process's end."""
    memory_bytes: Bytes
    """Everything the kernel charges: anonymous memory, page cache, the write layer, kernel objects."""
    processes: Count
    """Processes and threads at once."""
    output_bytes: Bytes
    """What is kept of each of stdout and stderr."""
    file_size_bytes: Bytes
    """The largest file that can be written (RLIMIT_FSIZE)."""
    disk_bytes: Bytes
    """The write layer: counts inside `memory_bytes`, at most half of it."""
    open_files: Count
    """RLIMIT_NOFILE."""
    stack_bytes: Bytes
    """RLIMIT_STACK of the main process."""


LIMIT_NAMES: tuple[str, ...] = Limits.__struct_fields__
"""Field names inside. At the edges `cpu_time_ns` and `wall_time_ns` are `cpu_time_s` and `wall_time_s`, float
seconds."""


Text = Annotated[str, Meta(max_length=ARG_MAX_BYTES)]
"""Bounds of collections and texts are checked while a message is decoded, before they take memory; `bounds`
checks bytes."""


class InputFile(Struct, frozen=True, kw_only=True):
    """A file put into the working directory before the program starts. `path` is relative and already checked."""

    path: Text
    content: bytes
    executable: bool = False


class StageSpec(Struct, frozen=True, kw_only=True):
    """One stage of a job, complete: a launcher needs nothing else, and checks all of it against its own policies."""

    name: Text
    """`compile` or `run`: used in messages only."""
    policy: Text
    image: Text
    argv: Annotated[tuple[Text, ...], Meta(max_length=2 * ARGS_MAX)]
    env: Annotated[dict[Text, Text], Meta(max_length=2 * ENV_MAX)]
    limits: Limits
    files: Annotated[tuple[InputFile, ...], Meta(max_length=2 * FILES_MAX)] = ()
    stdin: bytes | None = b""
    """None: the client streams it in chunks."""
    collect: Annotated[tuple[Text, ...], Meta(max_length=ARTIFACT_PATTERNS_MAX)] = ()
    """Glob patterns, relative to the working directory, of the regular files to hand back when the sandbox is dead."""


class InputSizes(Struct, frozen=True, kw_only=True):
    """Bytes of a stage's files, in its order, and of its stdin, where the contents travel apart from the stage."""

    files: Annotated[tuple[Bytes, ...], Meta(max_length=2 * FILES_MAX)] = ()
    stdin: Bytes = 0

    @property
    def total(self) -> int:
        return sum(self.files) + self.stdin


def input_sizes(stage: StageSpec) -> InputSizes:
    """Of a stage that still has its contents."""
    return InputSizes(files=tuple(len(file.content) for file in stage.files), stdin=len(stage.stdin or b""))


class JobRequest(Struct, frozen=True, kw_only=True):
    """A client's job after validation, in internal units: what the API stores, the worker reads and `sandboxd run`
    builds."""

    language: str | None = None
    command: tuple[str, ...] | None = None
    files: tuple[InputFile, ...] = ()
    stdin: bytes | None = b""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    policy: str = "default"
    image: str | None = None
    limits: dict[str, int] = {}
    """What the client asked for, by `Limits` field; all else comes from the language and the policy."""
    compile_limits: dict[str, int] = {}
