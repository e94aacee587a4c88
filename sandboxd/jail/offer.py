"""What this launcher offers: a language whose tools are in the image, with the version that it gave inside a
sandbox."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
import structlog

from sandboxd.catalogue import Catalogue, ImageInfo, Language
from sandboxd.errors import InternalError
from sandboxd.jail import plan
from sandboxd.jail.admission import Admission
from sandboxd.jail.collect import Collected
from sandboxd.jail.images import packages_key, write_cache
from sandboxd.jail.inputs import Inputs
from sandboxd.jail.sandbox import Sandbox
from sandboxd.jail.streams import Stream
from sandboxd.languages import LanguageDefinition, offered
from sandboxd.result import Facts
from sandboxd.spec import InputSizes, StageSpec

log = structlog.get_logger()

PROBE_POLICY = "default"
NO_VERSION = "-"


async def make_catalogue(
    admission: Admission, definitions: dict[str, LanguageDefinition], cache_dir: Path
) -> Catalogue:
    """Probes every language whose tools exist. Versions are kept until a package or a definition changes."""
    workshop = admission.workshop
    known = _Versions(cache_dir / "versions.json", definitions)
    languages: list[Language] = []
    for definition in definitions.values():
        missing = [tool for tool in definition.tools if not Path(tool).exists()]
        if missing:
            log.info("language not offered", language=definition.name, missing=missing)
            continue
        version = known.get(definition.name) or await _ask(admission, definition)
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


async def _ask(admission: Admission, definition: LanguageDefinition) -> str | None:
    """None, and said so, when the tool does not run in the sandbox or names no version."""
    if definition.version is None:
        return NO_VERSION
    policy = admission.workshop.policies[PROBE_POLICY]
    stage = StageSpec(
        name="version",
        policy=policy.name,
        image=admission.workshop.image.name,
        argv=definition.version.command,
        env={},
        limits=policy.defaults,
    )
    admission.check(stage, InputSizes())
    capture = _Capture(stage)
    admission.admit(capture, stage)
    facts, printed = await capture.over
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


class _Capture:
    """Owner of a sandbox that the launcher runs for itself: keeps what it printed."""

    def __init__(self, stage: StageSpec) -> None:
        self._stage = stage
        self._printed: dict[Stream, bytearray] = {stream: bytearray() for stream in Stream}
        self.over: asyncio.Future[tuple[Facts, bytes]] = asyncio.get_running_loop().create_future()

    def on_admitted(self, sandbox: Sandbox) -> None:
        sandbox.run(self, self._stage, Inputs(InputSizes()))

    def on_output(self, stream: Stream, chunk: bytes) -> None:
        self._printed[stream] += chunk[: max(0, self._stage.limits.output_bytes - len(self._printed[stream]))]

    def on_stdin_taken(self, count: int) -> None:
        """Its stages have stdin in full."""

    def on_over(self, facts: Facts, collected: Collected) -> None:
        collected.close()
        self.over.set_result((facts, b"\n".join(bytes(self._printed[stream]) for stream in Stream)))

    def on_failed(self, error: InternalError) -> None:
        self.over.set_exception(error)
