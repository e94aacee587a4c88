"""What the benchmarks say of their samples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import stats

SAMPLES = st.lists(st.floats(min_value=-1e9, max_value=1e9), min_size=1, max_size=200)


def test_a_summary_names_smallest_middle_and_largest() -> None:
    summary = stats.summarize([3.0, 1.0, 2.0])
    assert summary == stats.Summary(samples=3, min=1.0, median=2.0, mean=2.0, p95=3.0, p99=3.0, max=3.0)


def test_the_median_of_an_even_number_lies_between_the_middle_two() -> None:
    assert stats.summarize([1.0, 2.0, 4.0, 100.0]).median == 3.0


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1.0), (50, 50.0), (95, 95.0), (99, 99.0), (99.5, 100.0), (100, 100.0)]
)
def test_a_percentile_of_a_hundred_samples_is_the_sample_of_that_rank(percent: float, expected: float) -> None:
    assert stats.percentile([float(number) for number in range(100, 0, -1)], percent) == expected


def test_a_percentile_whose_product_is_whole_is_not_rounded_up() -> None:
    assert stats.percentile([float(number) for number in range(1, 101)], 7) == 7.0


def test_few_samples_make_the_99th_percentile_the_largest() -> None:
    assert stats.percentile([5.0, 1.0], 99) == 5.0


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_a_percentile_outside_0_to_100_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        stats.percentile([1.0], percent)


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_nothing_is_said_of_no_samples_or_of_what_is_no_number(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="sample"):
        stats.summarize(samples)


def test_a_ratio_to_nothing_is_refused() -> None:
    assert stats.ratio(6.0, 4.0) == 1.5
    with pytest.raises(ValueError, match="ratio"):
        stats.ratio(1.0, 0.0)


@pytest.mark.parametrize(("before", "after", "percent"), [(100.0, 105.0, 5.0), (200.0, 150.0, -25.0), (3.0, 3.0, 0.0)])
def test_growth_is_in_percent_of_what_was_before(before: float, after: float, percent: float) -> None:
    assert stats.growth_percent(before, after) == pytest.approx(percent)


@given(samples=SAMPLES)
def test_a_summary_is_ordered_and_its_percentiles_were_measured(samples: list[float]) -> None:
    summary = stats.summarize(samples)
    assert summary.min <= summary.median <= summary.max
    assert summary.min <= summary.p95 <= summary.p99 <= summary.max
    assert {summary.p95, summary.p99} <= set(samples)


@given(samples=SAMPLES, percent=st.floats(min_value=0.1, max_value=100))
def test_a_percentile_is_the_smallest_sample_that_enough_do_not_exceed(samples: list[float], percent: float) -> None:
    found = stats.percentile(samples, percent)
    needed = percent * len(samples) / 100
    assert sum(sample <= found for sample in samples) >= needed
    assert sum(sample < found for sample in samples) < needed
