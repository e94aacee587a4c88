"""Seccomp profiles as values: OCI JSON in, checked; what they mean stands in `seccomp`.

https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp
"""

from __future__ import annotations

import enum
import hashlib
import socket
from pathlib import Path
from typing import Any

import msgspec

from sandboxd.errors import PolicyError
from sandboxd.policy.model import Network

ERRNO_MAX = 4095
"""The kernel's MAX_ERRNO."""
_EPERM = 1
_INT_MASK = 2**32 - 1


class Action(enum.StrEnum):
    """What the kernel does; the rest of OCI's actions would log, trace or leave a half-dead process behind."""

    ALLOW = "SCMP_ACT_ALLOW"
    ERRNO = "SCMP_ACT_ERRNO"
    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"


class Operator(enum.StrEnum):
    """`EQ`: arg == value. `MASKED_EQ`: arg & value == valueTwo. 64 bits count: an `int` needs the mask 0xffffffff."""

    EQ = "SCMP_CMP_EQ"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """OCI's spelling of names; unknown keys are refused rather than overlooked."""


class Argument(_Frozen, frozen=True, kw_only=True):
    """A condition on one argument of a syscall."""

    index: int
    value: int
    value_two: int = 0
    op: Operator

    def mask_and_value(self) -> tuple[int, int]:
        """The condition as `arg & mask == value`, over 64 bits."""
        return (2**64 - 1, self.value) if self.op is Operator.EQ else (self.value, self.value_two)


class Rule(_Frozen, frozen=True, kw_only=True):
    """`args` are all true together. `comment` says why the rule is there."""

    names: tuple[str, ...]
    action: Action
    errno_ret: int | None = None
    args: tuple[Argument, ...] = ()
    comment: str = ""

    @property
    def verdict(self) -> tuple[Action, int]:
        """Action and errno (0 when the action gives none)."""
        return self.action, (_EPERM if self.errno_ret is None else self.errno_ret) if self.action is Action.ERRNO else 0


class _Document(_Frozen, frozen=True, kw_only=True):
    """The JSON file. `architectures` and `archMap` are read over: the native one alone is served."""

    default_action: Action
    default_errno_ret: int = _EPERM
    syscalls: tuple[Rule, ...] = ()
    architectures: Any = None
    arch_map: Any = None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A checked profile. `name` is the file's, `sha256` the hash of its bytes."""

    name: str
    sha256: str
    default_action: Action
    default_errno: int
    rules: tuple[Rule, ...]


def load_profile(path: Path) -> Profile:
    """Reads and checks an OCI seccomp profile.

    Raises:
        PolicyError: `FILE: KEY` and what is wrong: not JSON, an unknown key or action, a range, a rule without a
            comment, two conditions on one argument, a default that allows, two answers without conditions.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(path.name, f"cannot be read: {error.strerror}") from error
    try:
        document = msgspec.json.decode(content, type=_Document)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        key = where.rstrip("`").lstrip(".")
        raise PolicyError(f"{path.name}: {key}" if key else path.name, text) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PolicyError(path.name, f"not valid JSON in UTF-8: {error}") from error
    _check(path.name, document)
    return Profile(
        name=path.stem,
        sha256=hashlib.sha256(content).hexdigest(),
        default_action=document.default_action,
        default_errno=document.default_errno_ret if document.default_action is Action.ERRNO else 0,
        rules=document.syscalls,
    )


def policy_profile(path: Path, network: Network) -> Profile:
    """The profile at `path` as a policy of that network uses it. Raises PolicyError."""
    profile = load_profile(path)
    return profile if network != "none" else unix_alone(profile)


def unix_alone(profile: Profile) -> Profile:
    """The profile without sockets of another family than AF_UNIX: what is left of a network where there is none.

    Their allowances go; the profile's own refusal for families that it does not know then answers.
    """
    return msgspec.structs.replace(
        profile,
        name=f"{profile.name}-unix",
        sha256=hashlib.sha256(f"{profile.sha256} AF_UNIX alone".encode()).hexdigest(),
        rules=tuple(
            rule
            for rule in profile.rules
            if not (rule.action is Action.ALLOW and "socket" in rule.names and not _is_of_unix(rule))
        ),
    )


def _is_of_unix(rule: Rule) -> bool:
    domain = next((argument for argument in rule.args if argument.index == 0), None)
    return domain is not None and domain.mask_and_value() == (_INT_MASK, socket.AF_UNIX)


def _check(file: str, document: _Document) -> None:
    if document.default_action is Action.ALLOW:
        raise PolicyError(f"{file}: defaultAction", "must deny: a syscall that the next kernel adds would be allowed")
    if not 0 <= document.default_errno_ret <= ERRNO_MAX:
        raise PolicyError(f"{file}: defaultErrnoRet", f"must be between 0 and {ERRNO_MAX}")
    plain: dict[str, tuple[Action, int]] = {}
    for number, rule in enumerate(document.syscalls):
        where = f"{file}: syscalls[{number}]"
        if not rule.names or not all(rule.names):
            raise PolicyError(f"{where}.names", "names no syscall")
        if not rule.comment.strip():
            raise PolicyError(f"{where}.comment", f"missing: say why {rule.names[0]} has a rule")
        if rule.errno_ret is not None and (rule.action is not Action.ERRNO or not 0 <= rule.errno_ret <= ERRNO_MAX):
            raise PolicyError(
                f"{where}.errnoRet", f"goes with {Action.ERRNO} alone and must be between 0 and {ERRNO_MAX}"
            )
        _check_arguments(where, rule.args)
        for name in rule.names if not rule.args else ():
            if plain.setdefault(name, rule.verdict) != rule.verdict:
                raise PolicyError(f"{where}.names", f"{name} has two different answers without conditions")


def _check_arguments(where: str, arguments: tuple[Argument, ...]) -> None:
    if len({argument.index for argument in arguments}) != len(arguments):
        raise PolicyError(f"{where}.args", "two conditions on one argument: write two rules, or one mask")
    for number, argument in enumerate(arguments):
        at = f"{where}.args[{number}]"
        if not 0 <= argument.index <= 5:
            raise PolicyError(f"{at}.index", "must be between 0 and 5")
        if not (0 <= argument.value < 2**64 and 0 <= argument.value_two < 2**64):
            raise PolicyError(f"{at}.value", "must be between 0 and 2^64 - 1")
        if argument.op is Operator.EQ and argument.value_two:
            raise PolicyError(f"{at}.valueTwo", f"has no meaning with {Operator.EQ}")
        if argument.op is Operator.MASKED_EQ and argument.value_two & ~argument.value:
            raise PolicyError(f"{at}.valueTwo", "can never match: it has bits outside of the mask in `value`")


def wider_than(profile: Profile, base: Profile) -> tuple[str, ...]:
    """Syscalls that `profile` allows and `base` does not, as far as rules can tell: empty means proved not wider.

    Each allowance needs one of `base` with the same conditions or fewer, and each of `base`'s conditional denials for
    it must be in `profile` too.
    """
    allowed: dict[str, list[frozenset[Argument]]] = {}
    for rule in base.rules:
        if rule.action is Action.ALLOW:
            for name in rule.names:
                allowed.setdefault(name, []).append(frozenset(rule.args))
    denied = {
        (name, frozenset(rule.args)) for rule in profile.rules if rule.action is not Action.ALLOW for name in rule.names
    }
    base_denied = [
        (name, frozenset(rule.args))
        for rule in base.rules
        if rule.action is not Action.ALLOW and rule.args
        for name in rule.names
    ]
    wider: set[str] = set()
    for rule in profile.rules:
        for name in rule.names if rule.action is Action.ALLOW else ():
            covered = any(conditions <= frozenset(rule.args) for conditions in allowed.get(name, ()))
            guarded = all(entry in denied for entry in base_denied if entry[0] == name)
            if not (covered and guarded):
                wider.add(name)
    return tuple(sorted(wider))
