"""Settings of the service: environment variables `SANDBOXD_*` over one optional TOML file over the defaults here.

Built once by an entry point and passed on. The file is `/etc/sandboxd/sandboxd.toml`, or the one that
`SANDBOXD_CONFIG` names;
a key in it that does not exist is an error, so that a misspelt bound is never silently the default.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from sandboxd import spec
from sandboxd.errors import InputError
from sandboxd.instance import DEFAULT_INSTANCE, STATE_ROOT, SWEPT_PREFIXES, Instance

CONFIG_PATH = Path("/etc/sandboxd/sandboxd.toml")
PREPARED_MAX = 1024


def prepared_default() -> int:
    """Sandboxes that a launcher prepares: as many as its cores use up while one is built."""
    return 4 * (os.cpu_count() or 1)


class Settings(BaseSettings):
    """Everything an operator may set. Bounds can be lowered here, never raised above those the launcher enforces."""

    model_config = SettingsConfigDict(env_prefix="SANDBOXD_", extra="forbid", frozen=True, hide_input_in_errors=True)

    instance: str = DEFAULT_INSTANCE
    state_root: str = str(STATE_ROOT)
    redis_url: str = ""
    """`unix:///path`, `redis://` or `rediss://`; empty: the embedded Redis of the instance."""
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{0,64}$")] = ""
    """Before every key in Redis, and in the queue's name; empty: `sandboxd:INSTANCE`."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    socket: Path | None = None
    """Listen on this unix socket instead of `host` and `port`."""
    api_processes: Annotated[int, Field(ge=1, le=64)] = 1
    api_threads: Annotated[int, Field(ge=8, le=4096)] = 512
    """Threads of each API process: every request that waits for a job holds one."""
    no_auth: bool = False
    """Accept requests without a token: on a loopback address alone."""

    result_ttl_s: Annotated[int, Field(ge=1, le=30 * 86_400)] = 86_400
    """How long a finished job is kept."""
    queue_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Queued jobs; a full queue answers 503."""
    wait_max_s: Annotated[float, Field(ge=0, le=spec.WAIT_MAX_S)] = spec.WAIT_MAX_S
    body_max_bytes: Annotated[int, Field(ge=1024, le=spec.BODY_MAX_BYTES)] = spec.BODY_MAX_BYTES
    source_max_bytes: Annotated[int, Field(ge=1, le=spec.SOURCE_MAX_BYTES)] = spec.SOURCE_MAX_BYTES
    stdin_max_bytes: Annotated[int, Field(ge=0, le=spec.STDIN_MAX_BYTES)] = spec.STDIN_MAX_BYTES
    files_max: Annotated[int, Field(ge=1, le=spec.FILES_MAX)] = spec.FILES_MAX

    prepared: Annotated[int, Field(ge=0, le=PREPARED_MAX)] = Field(default_factory=prepared_default)
    """Sandboxes that the embedded launcher keeps ready for jobs to come, at most."""
    favor_dynmods: bool = False
    """On cgroup v1: no wait for the first sandbox after a pause; changes the whole kernel (`launcher --help`)."""

    log_json: bool = False
    log_level: Annotated[str, Field(pattern=r"^(debug|info|warning|error)$")] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over the one file; no `.env` in the working directory, no secrets folder."""
        named = os.environ.get("SANDBOXD_CONFIG")
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, Path(named) if named else CONFIG_PATH),
        )

    @pydantic.model_validator(mode="after")
    def _check(self) -> Settings:
        Instance(name=self.instance)
        if self.instance.startswith(SWEPT_PREFIXES):
            names = " and ".join(map(repr, SWEPT_PREFIXES))
            raise InputError("instance", f"names with {names} belong to `sandboxd run` and the audit, and are swept")
        if self.no_auth and not self.is_local:
            raise InputError("no_auth", f"is allowed on a loopback address alone, and host is {self.host!r}")
        named = os.environ.get("SANDBOXD_CONFIG")
        if named and not Path(named).is_file():
            raise InputError("SANDBOXD_CONFIG", f"there is no file {named!r}")
        return self

    @property
    def paths(self) -> Instance:
        return Instance(name=self.instance, state_root=self.state_root)

    @property
    def redis(self) -> str:
        """Where Redis is."""
        return self.redis_url or f"unix://{self.paths.redis_socket}"

    @property
    def prefix(self) -> str:
        """Before every key: two instances on one Redis never meet."""
        return self.key_prefix or f"sandboxd:{self.instance}"

    @property
    def is_loopback(self) -> bool:
        """The API listens on a loopback address, which any web page in a local browser can reach too."""
        if self.socket is not None:
            return False
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def is_local(self) -> bool:
        """Only this machine can reach the API."""
        return self.socket is not None or self.is_loopback


def load_settings(**overrides: object) -> Settings:
    """The settings, `overrides` (those that are not None) first. Raises InputError naming the setting and its bound."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]  # typed by pydantic
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(".".join(str(part) for part in first["loc"]) or "settings", first["msg"]) from None
