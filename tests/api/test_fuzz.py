"""Bodies like a true job's with something odd in them: accepted or refused with a problem, never a 500."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from fuzzrig import TIMEOUT_S, rounds
from rig import mutated

from sandboxd.spec import (
    ARG_MAX_BYTES,
    ARGS_MAX,
    ENV_MAX,
    FILES_MAX,
    PATH_MAX_BYTES,
    PATH_MAX_LEVELS,
    SOURCE_MAX_BYTES,
    STDIN_MAX_BYTES,
)

ROUNDS = 800
SCALARS = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    1.5,
    1e308,
    "",
    "a",
    "x" * 5000,
    "\0",
    "\ud800",
    "../..",
    [],
    {},
]


def odd_jobs(chance: random.Random) -> Any:
    """A job like a true one, with something odd in some place."""
    job: dict[str, Any] = {
        "language": "python", "source": "print(1)", "stdin": "", "args": ["a"], "env": {"A": "b"}, "policy": "default",
        "limits": {"cpu_time_s": 1.0, "memory_bytes": 1 << 26}, "compile_limits": None,
        "files": [{"path": "a.py", "content": "", "encoding": "utf8", "executable": False}],
    }  # fmt: skip
    for key in list(job):
        if chance.random() < 0.4:
            del job[key]
    for _ in range(chance.randint(0, 3)):
        target: Any = job
        while isinstance(target, dict | list) and target:
            key = chance.choice(list(target) if isinstance(target, dict) else list(range(len(target))))
            if not isinstance(target[key], dict | list) or chance.random() < 0.4:
                target[key] = chance.choice(SCALARS)
                break
            target = target[key]
    if chance.random() < 0.1:
        job[chance.choice(["", "unknown", "\0", "x" * 1000])] = chance.choice(SCALARS)
    return job


@pytest.mark.timeout(TIMEOUT_S)
def test_the_api_answers_every_body(api: Any) -> None:
    seed = os.urandom(8).hex()
    chance = random.Random(seed)
    statuses: dict[int, int] = {}
    for number in rounds(ROUNDS):
        job = odd_jobs(chance)
        content = (
            json.dumps(job).encode()
            if chance.random() < 0.5
            else json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogatepass")
        )
        if chance.random() < 0.3:
            content = mutated(content, chance)
        answer = api.post(content)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        where = f"seed {seed}, round {number}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code in (202, 400, 422), where
        if answer.status_code != 202:
            assert answer.content_type == "application/problem+json", where
            assert answer.json["detail"], where
    assert len(statuses) == 3, statuses


def a_file(path: str) -> dict[str, str]:
    return {"path": path, "content": ""}


BOUNDS: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
    "source": (SOURCE_MAX_BYTES, lambda n: {"source": "x" * n}),
    "stdin": (STDIN_MAX_BYTES, lambda n: {"stdin": "x" * n}),
    "args": (ARGS_MAX, lambda n: {"args": ["a"] * n}),
    "args[0]": (ARG_MAX_BYTES, lambda n: {"args": ["a" * n]}),
    "env": (ENV_MAX, lambda n: {"env": {f"A{number}": "b" for number in range(n)}}),
    "env.A": (ARG_MAX_BYTES, lambda n: {"env": {"A": "b" * (n - len("A="))}}),
    "files": (FILES_MAX, lambda n: {"files": [a_file(f"f{number}") for number in range(n)]}),
    "files[0].path": (PATH_MAX_BYTES, lambda n: {"files": [a_file("p" * n)]}),
    "files[0].path, in levels": (PATH_MAX_LEVELS, lambda n: {"files": [a_file("/".join("p" * n))]}),
}
"""By the field that is named: its bound, and a body that has so much of it."""


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_at_a_bound_is_taken_and_one_more_is_refused(api: Any, name: str) -> None:
    bound, made = BOUNDS[name]
    for size, status in ((bound - 1, 202), (bound, 202), (bound + 1, 422)):
        body = made(size)
        answer = api.post(
            json.dumps({"language": "python"} | ({} if "files" in body else {"source": "1"}) | body).encode()
        )
        assert answer.status_code == status, f"{size}: {answer.text[:300]}"
    assert answer.json["errors"][0]["field"] == name.partition(",")[0]
