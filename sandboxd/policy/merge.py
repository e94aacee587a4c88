"""Limits of one stage: the request's, else the language's, else the policy's default; never above the ceiling."""

from __future__ import annotations

from collections.abc import Mapping

from sandboxd.catalogue import PolicyInfo
from sandboxd.errors import InputError
from sandboxd.policy.model import Policy
from sandboxd.policy.units import at_most, check_smallest, describe_bytes, edge_name, from_edge, to_edge
from sandboxd.spec import LIMIT_NAMES, Limits

__all__ = ["check_ceilings", "effective_limits", "from_edge", "to_edge"]


def effective_limits(
    policy: Policy | PolicyInfo,
    language_defaults: Mapping[str, int],
    requested: Mapping[str, int],
    *,
    field: str = "limits",
) -> Limits:
    """The complete limits of a stage. Names and values are internal; errors speak of `field` in edge names and units.

    A language's default above the ceiling is lowered to it (a language cannot know the policy); a request above it is
    an error. The default of `disk_bytes` shrinks to half of the effective `memory_bytes`, since the write layer lives
    in memory.

    Raises:
        InputError: an unknown limit, one above the policy's ceiling, one below `units.SMALLEST`, or `disk_bytes` asked
            for above half of `memory_bytes`.
    """
    for name in requested:
        if name not in LIMIT_NAMES:
            raise InputError(f"{field}.{name[:64]}", "unknown limit")
    values: dict[str, int] = {}
    for name in LIMIT_NAMES:
        ceiling: int = getattr(policy.ceilings, name)
        if name in requested:
            values[name] = requested[name]
        else:
            values[name] = min(language_defaults.get(name, getattr(policy.defaults, name)), ceiling)
    if "disk_bytes" not in requested:
        values["disk_bytes"] = min(values["disk_bytes"], values["memory_bytes"] // 2)
    limits = Limits(**values)
    check_ceilings(limits, policy, field)
    return limits


def check_ceilings(limits: Limits, policy: Policy | PolicyInfo, field: str = "limits") -> None:
    """Whether the policy allows these complete limits: what a launcher asks of every request, whoever sent it.

    Raises:
        InputError: names the first limit that is below its least value, above the ceiling or, for `disk_bytes`, above
            half of `memory_bytes`, and the bound.
    """
    for name in LIMIT_NAMES:
        value: int = getattr(limits, name)
        ceiling: int = getattr(policy.ceilings, name)
        where = f"{field}.{edge_name(name)}"
        check_smallest(name, value, where)
        if value > ceiling:
            raise InputError(where, f"{at_most(name, ceiling)}, the ceiling of policy {policy.name!r}")
    if limits.disk_bytes > limits.memory_bytes // 2:
        raise InputError(
            f"{field}.disk_bytes",
            f"must be at most half of memory_bytes, since the disk lives in memory: {limits.disk_bytes} is above "
            f"{limits.memory_bytes // 2} ({describe_bytes(limits.memory_bytes // 2)})",
        )
