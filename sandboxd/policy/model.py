"""A policy as a value: what a job may do, complete, with the file that each value came from."""

from __future__ import annotations

from typing import Literal

from sandboxd.catalogue import PolicyInfo
from sandboxd.spec import Limits, Struct

Network = Literal["none", "loopback"]
"""`none`: not even `lo` is up. `loopback`: an empty network with 127.0.0.1. Ordered from tight to wide."""

NETWORKS: tuple[Network, ...] = ("none", "loopback")


class Policy(Struct, frozen=True, kw_only=True):
    """One policy, effective: nothing is left to look up in `base`.

    What is not here cannot be chosen: namespaces, the dropped capabilities, Landlock, `no_new_privs` and the absence
    of core dumps hold for every job.
    """

    name: str
    description: str
    digest: str
    """`sha256:` over all effective values and the content of the seccomp profile."""
    image: str
    """Used when a job names none."""
    network: Network
    seccomp: str
    """Name of the profile: `seccomp/NAME.json` of the policies' folder."""
    output_kill_factor: int
    """The job is ended when a stream reaches this many times `output_bytes`."""
    report_denied: bool
    """Calls that the filter refuses are told in the result (seccomp user notification), the first 64 of a stage."""
    defaults: Limits
    ceilings: Limits
    provenance: dict[str, str]
    """Dotted key (`ceilings.memory_bytes`, as written in TOML) -> name of the file that said it."""

    def info(self) -> PolicyInfo:
        """The part that clients see."""
        return PolicyInfo(
            name=self.name,
            description=self.description,
            digest=self.digest,
            image=self.image,
            network=self.network,
            output_kill_factor=self.output_kill_factor,
            report_denied=self.report_denied,
            defaults=self.defaults,
            ceilings=self.ceilings,
        )
