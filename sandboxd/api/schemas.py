"""The JSON of requests and answers: types and bounds of every field, and the way from a request to `spec.JobRequest`.

Requests are strict: no number for a string, no unknown field. What needs to know what is offered (languages,
policies, ceilings) is checked by `languages.plan_stages` afterwards, with the same names of fields. The bounds that
`bounds` and `units` check, with words of their own, stand here for the OpenAPI document alone (a schema counts
characters where they count bytes); those that are settings are told by `docs`.
"""

from __future__ import annotations

import base64
import binascii
import functools
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic.types import JsonValue

from sandboxd.catalogue import Catalogue
from sandboxd.config import Settings
from sandboxd.errors import InputError
from sandboxd.policy.units import edge_bounds, from_edge
from sandboxd.spec import (
    ARG_MAX_BYTES,
    ARGS_MAX,
    ENV_MAX,
    FILES_MAX,
    PATH_MAX_BYTES,
    PATH_MAX_LEVELS,
    WAIT_MAX_S,
    InputFile,
    JobRequest,
)

JOB_ID = r"^[0-9a-f]{32}$"
Encoding = Literal["utf8", "base64"]
_NAME_MAX = 64
# Patterns without lookaround and back references: every engine of a client knows what is left.
_NO_NUL = r"^[^\x00]*$"
_LEVEL = r"(?:[^./\x00\n][^/\x00\n]*|\.[^./\x00\n][^/\x00\n]*|\.\.[^/\x00\n]+)"
_PATH = rf"^{_LEVEL}(?:/{_LEVEL}){{0,{PATH_MAX_LEVELS - 1}}}$"


def _told(**keywords: JsonValue) -> FieldInfo:
    """What the document tells beside the type, and other modules check."""
    told: FieldInfo = Field(json_schema_extra=keywords)
    return told


def _told_limit(name: str) -> FieldInfo:
    smallest, largest = edge_bounds(name)
    return _told(minimum=smallest, maximum=largest)


_Name = Annotated[str, Field(min_length=1, max_length=_NAME_MAX)]
_Argument = Annotated[str, _told(maxLength=ARG_MAX_BYTES, pattern=_NO_NUL)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class LimitsIn(_Request):
    """Limits of a stage; what is left out comes from the language, then the policy. Ceilings: GET /v1/policies."""

    cpu_time_s: Annotated[float, _told_limit("cpu_time_ns")] | None = Field(
        None, description="CPU time of the program and all its descendants."
    )
    wall_time_s: Annotated[float, _told_limit("wall_time_ns")] | None = Field(
        None, description="Time from start to end."
    )
    memory_bytes: Annotated[int, _told_limit("memory_bytes")] | None = Field(
        None, description="Memory, with page cache and disk."
    )
    processes: Annotated[int, _told_limit("processes")] | None = Field(
        None, description="Processes and threads at once."
    )
    output_bytes: Annotated[int, _told_limit("output_bytes")] | None = Field(
        None, description="What is kept of each of stdout and stderr."
    )
    file_size_bytes: Annotated[int, _told_limit("file_size_bytes")] | None = Field(
        None, description="The largest file that can be written."
    )
    disk_bytes: Annotated[int, _told_limit("disk_bytes")] | None = Field(
        None, description="All files written; at most half of memory_bytes."
    )
    open_files: Annotated[int, _told_limit("open_files")] | None = Field(
        None, description="File descriptors of a process."
    )
    stack_bytes: Annotated[int, _told_limit("stack_bytes")] | None = Field(
        None, description="Stack of the main thread."
    )


class FileIn(_Request):
    """A file in the working directory."""

    path: Annotated[str, _told(maxLength=PATH_MAX_BYTES, pattern=_PATH)] = Field(
        description="Relative, at most 255 bytes and 16 levels, no `..`; no other file's, and no folder of another's."
    )
    content: str
    encoding: Encoding = "utf8"
    executable: bool = False


_TEXT: JsonValue = {"type": "string"}
_NULL: JsonValue = {"type": "null"}
_PROGRAM: JsonValue = [{"type": "string", "minLength": 1, "maxLength": ARG_MAX_BYTES, "pattern": _NO_NUL}]
_VARIABLE: JsonValue = {"minLength": 1, "maxLength": ARG_MAX_BYTES - 1, "pattern": r"^[^=\x00]+$"}
_SHAPES: JsonValue = [
    {
        "title": "language and source",
        "required": ["language", "source"],
        "properties": {"language": _TEXT, "source": _TEXT, "files": _NULL, "command": _NULL},
    },
    {
        "title": "language and files",
        "required": ["language", "files"],
        "properties": {
            "language": _TEXT,
            "source": _NULL,
            "files": {"type": "array", "minItems": 1},
            "command": _NULL,
        },
    },
    {
        "title": "command",
        "required": ["command"],
        "properties": {"language": _NULL, "source": _NULL, "command": {"type": "array"}},
    },
]


class JobIn(_Request):
    """A job. Exactly one of `language` and `command`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _SHAPES})

    language: _Name | None = Field(None, description="A name from GET /v1/languages.")
    command: (
        Annotated[list[_Argument], Field(min_length=1, max_length=ARGS_MAX), _told(prefixItems=_PROGRAM)] | None
    ) = Field(None, description="The program and its arguments, each at most 4 KiB.")
    source: str | None = Field(None, description="The one file of a job with a language, in UTF-8; excludes `files`.")
    files: Annotated[list[FileIn], Field(max_length=FILES_MAX)] | None = Field(
        None, description="The main file is the one named as the language's `source_name`, else the first."
    )
    stdin: str = ""
    stdin_encoding: Encoding = "utf8"
    args: Annotated[list[_Argument], Field(max_length=ARGS_MAX)] = Field(
        [], description="Appended to the run command; each at most 4 KiB."
    )
    env: Annotated[dict[str, _Argument], Field(max_length=ENV_MAX), _told(propertyNames=_VARIABLE)] = Field(
        {}, description="Each at most 4 KiB as NAME=VALUE."
    )
    policy: _Name = Field("default", description="A name from GET /v1/policies.")
    image: _Name | None = Field(None, description="A name from GET /v1/images.")
    limits: LimitsIn | None = None
    compile_limits: LimitsIn | None = Field(None, description="Where the language has a compile stage.")


class WaitQuery(BaseModel):
    """How long the answer may wait for the job's end."""

    model_config = ConfigDict(extra="forbid")

    wait: Annotated[float, Field(ge=0, le=WAIT_MAX_S, allow_inf_nan=False)] = Field(
        0.0, description="Seconds to wait for the job's end, at most 60."
    )


class NoQuery(BaseModel):
    """No parameter is known."""

    model_config = ConfigDict(extra="forbid")


for _query in (WaitQuery, NoQuery):
    # flask-openapi asks for it with every request: a sixth of the API's CPU time when it is made each time.
    _query.model_json_schema = functools.cache(_query.model_json_schema)  # type: ignore[method-assign, assignment]  # as it is called


class JobPath(BaseModel):
    job_id: Annotated[str, _told(pattern=JOB_ID)]


def to_job(body: JobIn, settings: Settings, catalogue: Catalogue) -> JobRequest:
    """The job in internal units. Raises InputError naming the field and its bound."""
    if (body.language is None) == (body.command is None):
        raise InputError("language", "exactly one of language and command must be given")
    return JobRequest(
        language=body.language,
        command=None if body.command is None else tuple(body.command),
        files=_files(body, settings, catalogue),
        stdin=_stdin(body, settings),
        args=tuple(body.args),
        env=body.env,
        policy=body.policy,
        image=body.image,
        limits=_limits(body.limits, "limits"),
        compile_limits=_limits(body.compile_limits, "compile_limits"),
    )


def _files(body: JobIn, settings: Settings, catalogue: Catalogue) -> tuple[InputFile, ...]:
    if body.source is None:
        files = body.files or []
        if len(files) > settings.files_max:
            raise InputError("files", f"must have at most {settings.files_max} entries")
        return tuple(
            InputFile(
                path=file.path,
                content=_decode(file.content, file.encoding, f"files[{number}].content"),
                executable=file.executable,
            )
            for number, file in enumerate(files)
        )
    if body.files is not None:
        raise InputError("source", "excludes files: send one of the two")
    if body.language is None:
        raise InputError("source", "needs a language")
    content = body.source.encode("utf-8")
    if len(content) > settings.source_max_bytes:
        raise InputError("source", f"must be at most {settings.source_max_bytes} bytes in UTF-8")
    return (InputFile(path=catalogue.language(body.language).source_name, content=content),)


def _stdin(body: JobIn, settings: Settings) -> bytes:
    stdin = _decode(body.stdin, body.stdin_encoding, "stdin")
    if len(stdin) > settings.stdin_max_bytes:
        raise InputError("stdin", f"must be at most {settings.stdin_max_bytes} bytes")
    return stdin


def _decode(text: str, encoding: Encoding, field: str) -> bytes:
    if encoding == "utf8":
        return text.encode("utf-8")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(field, "is not base64 (RFC 4648, with padding)") from None


def _limits(limits: LimitsIn | None, field: str) -> dict[str, int]:
    if limits is None:
        return {}
    return from_edge(limits.model_dump(exclude_none=True), field)
