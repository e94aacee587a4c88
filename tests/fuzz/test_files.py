"""Policies, languages and seccomp profiles, changed at random: each is read, or refused with file and key."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from fuzzrig import TIMEOUT_S, explore, rounds
from hypothesis import given
from hypothesis import strategies as st

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


WORDS = st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_CMP_MASKED_EQ", "SCMP_ARCH_X86_64", "read", "clone"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=300), WORDS)
KEYS = st.one_of(st.sampled_from(["index", "value", "valueTwo", "op", "names", "caps", "arches"]), st.text(max_size=5))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


@pytest.mark.timeout(TIMEOUT_S)
def test_a_profile_of_odd_values_is_read_or_refused(tmp_path: Path) -> None:
    """Well-formed JSON with a value in the wrong place, in a rule or beside the rules."""
    shipped = json.loads((policy_folder() / "seccomp" / "default.json").read_text())
    path = tmp_path / "profile.json"
    in_rule = st.sampled_from(["names", "action", "errnoRet", "args", "comment", "includes", "excludes", "unknown"])
    beside = st.sampled_from([*shipped, "unknown"])

    @given(st.integers(0, len(shipped["syscalls"]) - 1), in_rule | beside, VALUES)
    def is_read_or_refused(rule: int, key: str, value: object) -> None:
        profile = copy.deepcopy(shipped)
        (profile if key in shipped else profile["syscalls"][rule])[key] = value
        path.write_text(json.dumps(profile))
        with contextlib.suppress(PolicyError):
            load_profile(path)

    explore(is_read_or_refused, 300)
