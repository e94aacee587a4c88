"""How long fuzzing goes on: for a bounded number of examples in a test run, for FUZZ_SECONDS by hand (`make fuzz`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import hypothesis
from jailrig import SCALE

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
TIMEOUT_S = (SECONDS + 180) * SCALE


def rounds(number: int) -> Iterator[int]:
    """`number` of them, and on until FUZZ_SECONDS are over."""
    end, count = time.monotonic() + SECONDS, 0
    while count < number or time.monotonic() < end:
        yield count
        count += 1


def explore(check: Callable[[], None], examples: int) -> None:
    """Runs a check with `examples` of hypothesis, other ones each time, until FUZZ_SECONDS are over. What is found is
    told at its smallest, with the seed."""
    bounded = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )(check)
    end = time.monotonic() + SECONDS
    while True:
        seed = int.from_bytes(os.urandom(4), "little")
        try:
            hypothesis.seed(seed)(bounded)()
        except BaseException as error:
            error.add_note(f"hypothesis.seed({seed})")
            raise
        if time.monotonic() >= end:
            return
