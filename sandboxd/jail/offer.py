"""What this launcher offers: a language whose tools are in the image, with the version that it gave inside a
sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import structlog

from sandboxd.catalogue import Catalogue, ImageInfo, Language
from sandboxd.jail import plan
from sandboxd.jail.images import packages_key, write_cache
from sandboxd.jail.workshop import Workshop
from sandboxd.languages import LanguageDefinition, offered
from sandboxd.result import Facts
from sandboxd.spec import StageSpec

log = structlog.get_logger()

PROBE_POLICY = "default"
NO_VERSION = "-"
Probe = Callable[[StageSpec], Awaitable[tuple[Facts, bytes]]]
"""Runs a stage in a sandbox; facts, and stdout followed by stderr."""


async def make_catalogue(
    workshop: Workshop, definitions: dict[str, LanguageDefinition], cache_dir: Path, probe: Probe
) -> Catalogue:
    """Probes every language whose tools exist. Versions are kept until a package or a definition changes."""
    known = _Versions(cache_dir / "versions.json", definitions)
    languages: list[Language] = []
    for definition in definitions.values():
        missing = [tool for tool in definition.tools if not Path(tool).exists()]
        if missing:
            log.info("language not offered", language=definition.name, missing=missing)
            continue
        version = known.get(definition.name) or await _ask(workshop, definition, probe)
        if version is not None:
            known.put(definition.name, version)
            languages.append(offered(definition, version, workshop.image.name))
    known.save()
    return Catalogue(
        languages=tuple(languages),
        policies=tuple(policy.info() for policy in workshop.policies.values()),
        images=(ImageInfo(name=workshop.image.name, digest=workshop.image.digest),),
        isolation=plan.isolation(workshop.policies[PROBE_POLICY], workshop.host, workshop.without),
        cpus=workshop.host.cpus,
    )


async def _ask(workshop: Workshop, definition: LanguageDefinition, probe: Probe) -> str | None:
    """None, and said so, when the tool does not run in the sandbox or names no version."""
    if definition.version is None:
        return NO_VERSION
    policy = workshop.policies[PROBE_POLICY]
    stage = StageSpec(
        name="version",
        policy=policy.name,
        image=workshop.image.name,
        argv=definition.version.command,
        env={},
        limits=policy.defaults,
    )
    facts, printed = await probe(stage)
    version = definition.version.find(printed.decode("utf-8", "replace"))
    if facts.exit_code != 0 or version is None:
        log.error("language not offered", language=definition.name, facts=msgspec.to_builtins(facts))
        return None
    return version


class _Versions:
    """Versions by language, valid for one state of the packages and definitions."""

    def __init__(self, path: Path, definitions: dict[str, LanguageDefinition]) -> None:
        described = msgspec.json.encode(definitions, order="sorted")
        self._key = hashlib.sha256(packages_key().encode() + described).hexdigest()
        self._path = path
        self._changed = False
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            stored = {}
        self._known = stored if stored.get("key") == self._key else {"key": self._key}

    def get(self, name: str) -> str | None:
        return self._known.get(f"language:{name}")

    def put(self, name: str, version: str) -> None:
        self._changed |= self.get(name) != version
        self._known[f"language:{name}"] = version

    def save(self) -> None:
        if self._changed:
            write_cache(self._path, msgspec.json.encode(self._known))
