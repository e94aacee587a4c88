"""The questions, one module each: a module has a TITLE, and `measure(bench)` that adds its rows."""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = (
    "cold",
    "prepared",
    "cpu_limit",
    "wall_limit",
    "daemons",
    "memory",
    "http",
    "throughput",
    "inside",
    "density",
    "thousand",
    "long",
)
"""In the order in which they are measured."""


def load(name: str) -> ModuleType:
    """The module of a question, imported when it is asked."""
    if name not in NAMES:
        raise KeyError(name)
    return importlib.import_module(f"benchmarks.questions.{name}")
