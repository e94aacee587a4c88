"""Samples and what is said of them. Pure, standard library alone; no unit is assumed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """What is reported of a series of samples, in their own unit."""

    samples: int
    min: float
    median: float
    mean: float
    p95: float
    p99: float
    max: float


def summarize(samples: Sequence[float]) -> Summary:
    """The summary of at least one sample. Raises ValueError for none, and for one that is not a finite number."""
    if not samples:
        raise ValueError("no samples")
    if not all(math.isfinite(sample) for sample in samples):
        raise ValueError("a sample is not a finite number")
    return Summary(
        samples=len(samples),
        min=min(samples),
        median=statistics.median(samples),
        mean=statistics.fmean(samples),
        p95=percentile(samples, 95),
        p99=percentile(samples, 99),
        max=max(samples),
    )


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all samples do not exceed (nearest rank): never a value that was
    not measured, and the largest one when there are too few samples to tell."""
    if not samples:
        raise ValueError("no samples")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be above 0 and at most 100, not {percent}")
    # The product first: 0.07 * 100 is 7.000000000000001, and its ceiling would be the rank after the right one.
    return sorted(samples)[math.ceil(percent * len(samples) / 100) - 1]


def ratio(ours: float, theirs: float) -> float:
    """How many times theirs ours is. Raises ValueError when theirs is not above 0: there is no such ratio."""
    if theirs <= 0:
        raise ValueError(f"a ratio to {theirs} says nothing")
    return ours / theirs


def growth_percent(before: float, after: float) -> float:
    """By how much `after` differs from `before`, in percent of `before`; negative when it is less."""
    return (ratio(after, before) - 1) * 100
