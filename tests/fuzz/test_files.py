"""Policies, languages and seccomp profiles, changed at random: each is read, or refused with file and key."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from fuzzrig import TIMEOUT_S, rounds

from sandboxd.errors import PolicyError
from sandboxd.languages import load_languages
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.profile import load_profile

ROUNDS = 1000
ODD = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"[[",
    b"]",
    b"=",
    b"\n",
    b'"',
    b"'''",
    b"1e400",
    b"nan",
    b"-1",
    b"9" * 400,
    b"[a.b]",
    b"{}",
]


def changed(content: bytes, chance: random.Random) -> bytes:
    """A few bytes cut out, put in or doubled."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(content) + 1)
        length = chance.choice([0, 1, 2, 8, 40])
        piece = chance.choice([*ODD, content[at : at + 60], os.urandom(3)])
        content = content[:at] + piece + content[at + length :]
    return content


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")  # of a version's expression, spoiled
@pytest.mark.parametrize("name", ["base.toml", "default.toml", "languages/c.toml", "languages/python.toml"])
def test_a_changed_policy_or_language_is_read_or_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "policies"
    shutil.copytree(policy_folder(), folder)
    content = (folder / name).read_bytes()
    seed = os.urandom(8).hex()
    chance = random.Random(seed)
    refusals: set[bool] = set()
    for number in rounds(ROUNDS // 4):
        (folder / name).write_bytes(changed(content, chance))
        try:
            load_policies(folder)
            load_languages(folder)
        except PolicyError as error:
            refusals.add(bool(error.field))
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}: {error!r}") from error
    assert refusals == {True}, "some are refused, each with its place"


@pytest.mark.timeout(TIMEOUT_S)
def test_a_changed_profile_is_read_or_refused(tmp_path: Path) -> None:
    content = (policy_folder() / "seccomp" / "default.json").read_bytes()
    path = tmp_path / "profile.json"
    seed = os.urandom(8).hex()
    chance = random.Random(seed)
    read = refused = 0
    for number in rounds(ROUNDS):
        path.write_bytes(changed(content, chance))
        try:
            load_profile(path)
            read += 1
        except PolicyError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {number}: {error!r}") from error
    assert read
    assert refused


def test_a_profile_of_odd_values_is_read_or_refused(tmp_path: Path) -> None:
    """Well-formed JSON with a value in the wrong place."""
    shipped = json.loads((policy_folder() / "seccomp" / "default.json").read_text())
    path = tmp_path / "profile.json"
    values = [None, True, -1, 2**64, 1.5, "", "x" * 300, [], {}, [[]], {"a": 1}, 10**400]
    for rule in range(0, len(shipped["syscalls"]), 7):
        for key in ("names", "action", "errnoRet", "args", "comment", "unknown"):
            for value in values:
                profile = json.loads(json.dumps(shipped))
                profile["syscalls"][rule][key] = value
                path.write_text(json.dumps(profile))
                with contextlib.suppress(PolicyError):
                    load_profile(path)
