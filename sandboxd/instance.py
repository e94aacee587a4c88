"""Instances: everything a launcher owns hangs on its instance's name.

Two instances on one host (a service and a test run, say) never touch each other. Paths only; nothing here opens them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sandboxd.errors import InputError
from sandboxd.spec import Struct

DEFAULT_INSTANCE = "default"
RUN_ROOT = Path("/run/sandboxd")
STATE_ROOT = Path("/var/lib/sandboxd")
SERVICE_USER = "sandboxd"
PRIVATE_PREFIX = "run-"
AUDIT_PREFIX = "audit-"
"""Instances of one `sandboxd run` and of one audit: whoever finds one without its launcher may sweep it."""
SWEPT_PREFIXES = (PRIVATE_PREFIX, AUDIT_PREFIX)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class Instance(Struct, frozen=True, kw_only=True):
    """Names and paths of one instance. `state_root` may be moved (tests, demo); `/run/sandboxd` may not, it is
    host-wide."""

    name: str = DEFAULT_INSTANCE
    state_root: str = str(STATE_ROOT)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in ("slots", "cache"):
            raise InputError(
                "instance",
                f"{self.name!r} is not a name of 1 to 32 of a-z, 0-9 and '-' (and neither 'slots' nor 'cache')",
            )

    @classmethod
    def from_environment(cls, name: str | None = None) -> Instance:
        """The instance a command works on: `name`, else SANDBOXD_INSTANCE, else `default`; state below
        SANDBOXD_STATE_ROOT."""
        return cls(
            name=name or os.environ.get("SANDBOXD_INSTANCE", DEFAULT_INSTANCE),
            state_root=os.environ.get("SANDBOXD_STATE_ROOT", str(STATE_ROOT)),
        )

    @property
    def run_dir(self) -> Path:
        """Sockets, lock, the base layer; gone with the launcher."""
        return RUN_ROOT / self.name

    @property
    def lock_path(self) -> Path:
        """Held with an exclusive flock for the launcher's life."""
        return self.run_dir / "lock"

    @property
    def launcher_socket(self) -> Path:
        return self.run_dir / "launcher.sock"

    @property
    def redis_socket(self) -> Path:
        """The embedded Redis of `sandboxd serve`; in a folder of the service user's own."""
        return self.run_dir / "service" / "redis.sock"

    @property
    def notify_socket(self) -> Path:
        """Where the children of `serve` send their signs of life to."""
        return self.run_dir / "notify.sock"

    @property
    def state_dir(self) -> Path:
        """The append-only file and the token; kept."""
        return Path(self.state_root) / self.name

    @property
    def token_path(self) -> Path:
        """The instance's API token, mode 0600."""
        return self.state_dir / "token"

    @property
    def cache_dir(self) -> Path:
        """Digests, versions and compiled filters that every instance may reuse."""
        return Path(self.state_root) / "cache"
