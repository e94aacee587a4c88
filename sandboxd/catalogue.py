"""What a launcher offers: languages, policies, images and facts of its host.

The launcher answers with it when asked; the worker publishes the part that clients may see; the API validates against
it.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from sandboxd.errors import InputError
from sandboxd.result import Isolation
from sandboxd.spec import Limits, Struct


class Stage(Struct, frozen=True, kw_only=True):
    """How a language's stage is run. In `command`: `{source}`, `{output}`, `{memory_mib}`, `{cpus}`."""

    command: tuple[str, ...]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    limits: dict[str, int] = msgspec.field(default_factory=dict)
    """Defaults of the language for this stage, by `Limits` field; never a ceiling."""
    collect: tuple[str, ...] = ()
    """What the compile stage leaves for the run stage: glob patterns relative to the working directory."""


class SelfTest(Struct, frozen=True, kw_only=True):
    """The program by which a language proves that it works in the image."""

    source: str
    stdin: str = ""
    stdout: str


class Language(Struct, frozen=True, kw_only=True):
    """One language as offered: its tools were found in the image and its version was asked inside a sandbox."""

    name: str
    title: str
    version: str
    image: str
    source_name: str
    """Name of the main file; a single `source` is stored under it."""
    compile: Stage | None = None
    run: Stage
    self_test: SelfTest


class PolicyInfo(Struct, frozen=True, kw_only=True):
    """A policy as clients see it."""

    name: str
    description: str
    digest: str
    network: str
    image: str = "host"
    """Used when a job names none."""
    output_kill_factor: int
    """The job is ended when a stream reaches this many times `output_bytes`."""
    report_denied: bool = False
    """Whether `denied_syscalls` of a result is told."""
    defaults: Limits
    ceilings: Limits


class ImageInfo(Struct, frozen=True, kw_only=True):
    name: str
    digest: str


class Catalogue(Struct, frozen=True, kw_only=True):
    """Everything one launcher offers."""

    languages: tuple[Language, ...]
    policies: tuple[PolicyInfo, ...]
    images: tuple[ImageInfo, ...]
    isolation: Isolation
    """The walls of policy `default` on this host."""
    cpus: int

    def language(self, name: str) -> Language:
        return _find("language", self.languages, name)

    def policy(self, name: str) -> PolicyInfo:
        return _find("policy", self.policies, name)

    def image(self, name: str) -> ImageInfo:
        return _find("image", self.images, name)


_Named = TypeVar("_Named", Language, PolicyInfo, ImageInfo)


def _find(field: str, offered: tuple[_Named, ...], name: str) -> _Named:
    for item in offered:
        if item.name == name:
            return item
    known = ", ".join(sorted(item.name for item in offered)) or "none"
    raise InputError(field, f"unknown {field} {name[:64]!r}; offered: {known}")
