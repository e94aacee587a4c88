"""Reads `policies/*.toml`: `base` is the widest, each other policy extends it and may only tighten."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import sandboxd
from sandboxd.errors import InputError, PolicyError
from sandboxd.policy.merge import check_ceilings
from sandboxd.policy.model import NETWORKS, Network, Policy
from sandboxd.policy.profile import load_profile, policy_profile, wider_than
from sandboxd.policy.units import EDGE_NAMES, at_most, check_range, describe, edge_name, from_edge
from sandboxd.spec import LIMIT_NAMES, Limits, Struct

BASE = "base"
OUTPUT_KILL_FACTOR_MAX = 1024
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_SCALARS = ("image", "network", "seccomp", "output_kill_factor", "report_denied")


class _File(Struct, frozen=True, kw_only=True):
    """A policy as written; what is absent comes from `base`."""

    description: str
    extends: str | None = None
    image: str | None = None
    network: Network | None = None
    seccomp: str | None = None
    output_kill_factor: int | None = None
    report_denied: bool | None = None
    defaults: dict[str, Any] = msgspec.field(default_factory=dict)
    ceilings: dict[str, Any] = msgspec.field(default_factory=dict)


def policy_folder() -> Path:
    """The folder of policies, languages and profiles: SANDBOXD_POLICIES, else the installed one, else the checkout's.

    Raises:
        PolicyError: there is none.
    """
    named = os.environ.get("SANDBOXD_POLICIES")
    if named:
        if not (Path(named) / f"{BASE}.toml").is_file():
            raise PolicyError("SANDBOXD_POLICIES", f"there is no {BASE}.toml in {named!r}")
        return Path(named)
    # The build puts `policies/` into the package as `_policies`; a checkout has it beside the package.
    installed = Path(str(importlib.resources.files(sandboxd))) / "_policies"
    checkout = Path(sandboxd.__file__).parent.parent / "policies"
    for folder in (installed, checkout):
        if (folder / f"{BASE}.toml").is_file():
            return folder
    raise PolicyError("policies", f"no {BASE}.toml in {installed} or {checkout}; set SANDBOXD_POLICIES to the folder")


def load_policies(folder: Path) -> dict[str, Policy]:
    """Every policy of the folder by name, effective, `base` among them.

    Raises:
        PolicyError: `FILE: KEY` and what is wrong with it, a value wider than that of `base` among others.
    """
    files = {path.stem: read_toml(path, _File) for path in sorted(folder.glob("*.toml"))}
    if BASE not in files:
        raise PolicyError(f"{BASE}.toml", f"not found in {folder}; every policy extends it")
    base = _build(folder, BASE, files[BASE], None)
    policies = {BASE: base}
    for name, file in files.items():
        if name != BASE:
            policies[name] = _build(folder, name, file, base)
            _check_tighter(folder, policies[name], base)
    return policies


def profile_path(folder: Path, name: str) -> Path:
    """Where the seccomp profile `name` lies."""
    return folder / "seccomp" / f"{name}.json"


T = TypeVar("T")


def read_toml(path: Path, type_: type[T]) -> T:
    """The file as a value of `type_`.

    Raises:
        PolicyError: unreadable, no TOML, an unknown or missing key, a wrong type.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=type_)
    except OSError as error:
        raise PolicyError(path.name, f"cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.ceilings`" -> key `ceilings`
        text, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        raise PolicyError(f"{path.name}: {key}" if key else path.name, text) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PolicyError(path.name, f"not valid TOML: {error}") from error


def _build(folder: Path, name: str, file: _File, base: Policy | None) -> Policy:
    """One effective policy: the file's values over those of `base`, with the file that each came from."""
    source = f"{name}.toml"
    if not _NAME.fullmatch(name):
        raise PolicyError(source, "a policy's name is 1 to 32 of a-z, 0-9 and '-', and starts with a letter")
    expected = None if base is None else BASE
    if file.extends != expected:
        raise PolicyError(f"{source}: extends", f'must be "{BASE}"' if base is not None else "base extends nothing")
    provenance = dict(base.provenance) if base is not None else {}
    scalars: dict[str, Any] = {}
    for key in _SCALARS:
        value = getattr(file, key)
        if value is None:
            if base is None:
                raise PolicyError(f"{source}: {key}", "missing: base sets every key")
            value = getattr(base, key)
        else:
            provenance[key] = source
        scalars[key] = value
    if not 1 <= scalars["output_kill_factor"] <= OUTPUT_KILL_FACTOR_MAX:
        raise PolicyError(f"{source}: output_kill_factor", f"must be between 1 and {OUTPUT_KILL_FACTOR_MAX}")
    ceilings = _limits(source, "ceilings", file.ceilings, None if base is None else base.ceilings, provenance)
    defaults = _limits(source, "defaults", file.defaults, None if base is None else base.defaults, provenance)
    policy = Policy(
        name=name,
        description=file.description,
        digest="",
        **scalars,
        ceilings=ceilings,
        defaults=defaults,
        provenance=provenance,
    )
    try:
        check_ceilings(policy.defaults, policy, "defaults")
    except InputError as error:
        raise PolicyError(f"{source}: {error.field}", error.message) from error
    return msgspec.structs.replace(policy, digest=_digest(folder, policy))


def _limits(
    source: str, part: str, written: Mapping[str, Any], inherited: Limits | None, provenance: dict[str, str]
) -> Limits:
    """One table of limits, complete; notes in `provenance` what this file said."""
    try:
        values = from_edge(written, part)
        for name, value in values.items():
            check_range(name, value, f"{part}.{edge_name(name)}")
    except InputError as error:
        raise PolicyError(f"{source}: {error.field}", error.message) from error
    for edge in written:
        provenance[f"{part}.{edge}"] = source
    if inherited is None:
        missing = [edge for edge in EDGE_NAMES if edge not in written]
        if missing:
            raise PolicyError(f"{source}: {part}.{missing[0]}", "missing: base sets every limit")
        return Limits(**values)
    return msgspec.structs.replace(inherited, **values)


def _check_tighter(folder: Path, policy: Policy, base: Policy) -> None:
    """Raises PolicyError naming the key, its value and that of base where the policy is wider than base."""
    source = f"{policy.name}.toml"
    for name in LIMIT_NAMES:
        value, widest = getattr(policy.ceilings, name), getattr(base.ceilings, name)
        if value > widest:
            raise PolicyError(
                f"{source}: ceilings.{edge_name(name)}",
                f"{describe(name, value)} is wider than the {describe(name, widest)} of base; {at_most(name, widest)}",
            )
    if policy.output_kill_factor > base.output_kill_factor:
        raise PolicyError(
            f"{source}: output_kill_factor",
            f"{policy.output_kill_factor} is wider than the {base.output_kill_factor} of base",
        )
    if NETWORKS.index(policy.network) > NETWORKS.index(base.network):
        raise PolicyError(f"{source}: network", f"{policy.network!r} is wider than the {base.network!r} of base")
    if policy.seccomp != base.seccomp:
        wider = wider_than(
            load_profile(profile_path(folder, policy.seccomp)),
            load_profile(profile_path(folder, base.seccomp)),
        )
        if wider:
            raise PolicyError(
                f"{source}: seccomp",
                f"{policy.seccomp!r} allows what {base.seccomp!r} of base does not: {', '.join(wider[:5])}",
            )


def _digest(folder: Path, policy: Policy) -> str:
    """Two policies with one digest let the same job do the same; the files that values came from do not count."""
    effective = msgspec.to_builtins(policy)
    del effective["provenance"], effective["digest"]
    profile = policy_profile(profile_path(folder, policy.seccomp), policy.network)
    effective["seccomp_sha256"] = profile.sha256
    return "sha256:" + hashlib.sha256(msgspec.json.encode(effective, order="sorted")).hexdigest()
