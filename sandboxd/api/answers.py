"""The JSON of answers, described for the OpenAPI document. The answers themselves are built by `document` and
`routes`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sandboxd.api.schemas import JOB_ID

Verdict = Literal[
    "ok",
    "compile_error",
    "runtime_error",
    "signalled",
    "cpu_time_exceeded",
    "wall_time_exceeded",
    "memory_exceeded",
    "output_exceeded",
    "disk_exceeded",
    "internal_error",
]
Encoding = Literal["utf8", "base64"]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Limits(_Answer):
    cpu_time_s: float
    wall_time_s: float
    memory_bytes: int
    processes: int
    output_bytes: int
    file_size_bytes: int
    disk_bytes: int
    open_files: int
    stack_bytes: int


class DeniedSyscall(_Answer):
    name: str
    count: int


class Stage(_Answer):
    name: Literal["compile", "run"]
    verdict: Verdict | None = Field(description="null: the job was cancelled in this stage.")
    exit_code: int | None
    signal: str | None = Field(description="Such as SIGSEGV; null unless a signal ended the program.")
    stdout: str
    stdout_encoding: Encoding = Field(description="base64 when what was kept is not UTF-8.")
    stdout_dropped_bytes: int = Field(description="Bytes between the kept first and last half.")
    stdout_gap_at_bytes: int | None = Field(description="Where they are missing, as an offset into the kept bytes.")
    stderr: str
    stderr_encoding: Encoding
    stderr_dropped_bytes: int
    stderr_gap_at_bytes: int | None
    cpu_time_s: float
    wall_time_s: float
    memory_peak_bytes: int
    processes_peak: int | None
    limits: Limits
    denied_syscalls: list[DeniedSyscall] | None


class Digested(_Answer):
    name: str
    digest: str | None = Field(description="null until the job has run.")


class Isolation(_Answer):
    namespaces: list[str]
    cgroup: str
    seccomp: bool
    landlock_abi: int | None
    selinux: str | None
    rootless: bool
    without: list[str]


class Job(_Answer):
    id: Annotated[str, Field(pattern=JOB_ID)]
    state: Literal["queued", "running", "finished", "cancelled", "failed"]
    verdict: Verdict | None = Field(description="null until the job has ended, and when it was cancelled.")
    reason: str | None = Field(description="One sentence that a person understands.")
    stages: list[Stage]
    policy: Digested
    image: Digested
    isolation: Isolation | None
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    worker: str | None = Field(description="host:pid")


class Language(_Answer):
    name: str
    title: str
    version: str
    image: str
    source_name: str = Field(description="Name of the main file; a single `source` is stored under it.")
    compiled: bool = Field(description="Whether a compile stage comes first.")
    limits: dict[str, float | int] = Field(description="The language's own defaults for the run stage.")
    compile_limits: dict[str, float | int] = Field(description="And for the compile stage.")


class Languages(_Answer):
    languages: list[Language]


class Policy(_Answer):
    name: str
    description: str
    digest: str
    image: str = Field(description="Used when a job names none.")
    network: str
    output_kill_factor: int = Field(description="The job is ended when a stream reaches so many times output_bytes.")
    report_denied: bool = Field(description="Whether a result lists the system calls that were refused.")
    defaults: Limits
    ceilings: Limits


class Policies(_Answer):
    policies: list[Policy]


class Image(_Answer):
    name: str
    digest: str


class Images(_Answer):
    images: list[Image]


class Health(_Answer):
    status: Literal["ok"]


class FieldError(_Answer):
    field: str = Field(description="As in files[0].path; empty for the body as a whole.")
    message: str


class ProblemDocument(_Answer):
    """RFC 9457."""

    type: str = Field(description="Stable for each kind of problem.")
    title: str
    status: int
    detail: str
    errors: list[FieldError] = Field(default=[], description="For 422.")
