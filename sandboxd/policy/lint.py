"""Looks for what is legal in a policies' folder and still a mistake: rules without effect, names that nobody knows.

A file that cannot be loaded is reported as the `PolicyError` that loading it gives.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

from sandboxd.errors import PolicyError
from sandboxd.languages import load_languages
from sandboxd.policy.load import load_policies
from sandboxd.policy.profile import Action, Operator, Profile, Rule, load_profile
from sandboxd.policy.seccomp import is_known
from sandboxd.spec import Struct

_INT_MASK = 0xFFFFFFFF
_INIT = "init"
"""The profile of PID 1 itself; every other one is a payload's."""
ARRIVAL = (
    "recvmsg",
    "lseek",
    "mmap",
    "close",
    "mkdir",
    "openat2",
    "write",
    "dup2",
    "prlimit64",
    "sendmsg",
    "execve",
    "exit_group",
)
"""What the payload's process does under its filter when its job comes."""


class Finding(Struct, frozen=True, kw_only=True):
    """One mistake: `file`, `where` in it, and what is wrong."""

    file: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.where}: {self.message}" if self.where else f"{self.file}: {self.message}"


def lint_folder(folder: Path) -> tuple[Finding, ...]:
    """Everything wrong with the policies, languages and seccomp profiles of `folder`; empty when all is well."""
    findings: list[Finding] = []
    used: set[str] = {_INIT}
    try:
        used |= {policy.seccomp for policy in load_policies(folder).values()}
    except PolicyError as error:
        findings.append(_broken(error))
    try:
        load_languages(folder)
    except PolicyError as error:
        findings.append(_broken(error))
    for path in sorted((folder / "seccomp").glob("*.json")):
        try:
            profile = load_profile(path)
            findings += lint_profile(profile)
            findings += [] if profile.name == _INIT else missing_for_arrival(profile)
        except PolicyError as error:
            findings.append(_broken(error))
        if path.stem not in used:
            findings.append(Finding(file=path.name, where="", message="no policy uses it"))
    return tuple(dict.fromkeys(findings))


def _broken(error: PolicyError) -> Finding:
    file, _, where = error.field.partition(": ")
    return Finding(file=file, where=where, message=error.message)


def lint_profile(profile: Profile) -> list[Finding]:
    """Redundant, shadowed and doubtful rules of one profile."""
    findings: list[Finding] = []
    for check in (_unknown, _redundant, _shadowed, _half_compared):
        findings += [Finding(file=f"{profile.name}.json", where=where, message=text) for where, text in check(profile)]
    return findings


def missing_for_arrival(profile: Profile) -> list[Finding]:
    """System calls without which no job starts under this filter."""
    allowed = {name for rule in profile.rules if rule.action is Action.ALLOW for name in rule.names}
    return [
        Finding(file=f"{profile.name}.json", where="syscalls", message=f"{name} is not allowed: no job would start")
        for name in ARRIVAL
        if name not in allowed
    ]


_Found = Iterator[tuple[str, str]]


def _unknown(profile: Profile) -> _Found:
    """Names that no kernel on any of the supported machines has, as far as libseccomp and our table know."""
    for number, rule in enumerate(profile.rules):
        for name in rule.names:
            if not is_known(name):
                yield f"syscalls[{number}].names", f"unknown syscall {name!r}: the rule has no effect on it"


def _redundant(profile: Profile) -> _Found:
    """Rules that say what is said already, or what the default says."""
    seen: dict[tuple[str, Action, frozenset[object]], int] = {}
    ruled_otherwise = collections.Counter(
        name for rule in profile.rules if rule.args or rule.action is Action.ALLOW for name in rule.names
    )
    default = (profile.default_action, profile.default_errno)
    for number, rule in enumerate(profile.rules):
        where = f"syscalls[{number}].names"
        for name, count in collections.Counter(rule.names).items():
            if count > 1:
                yield where, f"{name} is named twice"
            key = (name, rule.action, frozenset(rule.args))
            if key in seen:
                yield where, f"{name} has the rule of syscalls[{seen[key]}] again"
            seen.setdefault(key, number)
            # A denial that spells out its errno may equal the default's: it says why a known call is absent, and
            # still holds when the default changes.
            if not rule.args and rule.verdict == default and rule.errno_ret is None and not ruled_otherwise[name]:
                yield where, f"{name} gets the default's answer: the rule has no effect"


def _shadowed(profile: Profile) -> _Found:
    """Rules that another one, which is asked before them or matches more, always answers for."""
    for number, rule in enumerate(profile.rules):
        for name in rule.names:
            for other in profile.rules:
                if other is not rule and name in other.names and _covers(other, rule):
                    yield (
                        f"syscalls[{number}].names",
                        f"{name} is answered before by the rule {other.comment!r}",
                    )
                    break


def _covers(other: Rule, rule: Rule) -> bool:
    """Whether `rule` never gets to answer because of `other`."""
    if _stage(other) < _stage(rule):
        return set(other.args) <= set(rule.args)
    # Of one group with one answer: fewer conditions match more.
    return _stage(other) == _stage(rule) and other.verdict == rule.verdict and set(other.args) < set(rule.args)


def _stage(rule: Rule) -> int:
    """The order in which a profile's groups are asked: see `seccomp`."""
    if rule.action is Action.ALLOW:
        return 1
    return 0 if rule.args else 2


def _half_compared(profile: Profile) -> _Found:
    """A denial that compares 64 bits of what the kernel reads as an `int` is evaded by setting an upper bit."""
    for number, rule in enumerate(profile.rules):
        if rule.action is Action.ALLOW:
            continue
        for position, argument in enumerate(rule.args):
            mask, value = argument.mask_and_value()
            if mask > _INT_MASK and value <= _INT_MASK:
                yield (
                    f"syscalls[{number}].args[{position}]",
                    f"denies {rule.names[0]} by comparing all 64 bits, which bit 32 evades where it is an int: "
                    f"use {Operator.MASKED_EQ} with a mask of 32 bits",
                )
