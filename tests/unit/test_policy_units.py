"""Limits at the edges are checked numbers in seconds and bytes; inside they are nanoseconds and bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import InputError
from sandboxd.policy import units
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.spec import LIMIT_NAMES, Limits

CEILINGS = load_policies(policy_folder())["base"].ceilings
NUMBERS = [name for name in units.EDGE_NAMES if not name.endswith("_s")]


def test_edge_names_are_those_of_the_http_contract() -> None:
    assert units.EDGE_NAMES == (
        "cpu_time_s", "wall_time_s", "memory_bytes", "processes", "output_bytes", "file_size_bytes", "disk_bytes",
        "open_files", "stack_bytes",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("edge", "internal"),
    [
        ({"cpu_time_s": 2}, {"cpu_time_ns": 2_000_000_000}),
        ({"cpu_time_s": 0.25}, {"cpu_time_ns": 250_000_000}),
        ({"wall_time_s": 0.01}, {"wall_time_ns": 10_000_000}),
        ({"cpu_time_s": 0.1 + 0.2}, {"cpu_time_ns": 300_000_000}),
        ({"memory_bytes": 4194304, "processes": 1}, {"memory_bytes": 4194304, "processes": 1}),
        ({}, {}),
    ],
)
def test_edge_values_become_internal_ones(edge: dict[str, object], internal: dict[str, int]) -> None:
    assert units.from_edge(edge) == internal


HUGE = 10**400
WRONG: list[tuple[str, object, str]] = [
    ("cpu_time_s", True, "number"),
    ("cpu_time_s", "2", "number"),
    ("cpu_time_s", None, "number"),
    ("cpu_time_s", float("nan"), "finite"),
    ("cpu_time_s", float("inf"), "finite"),
    ("cpu_time_s", float("-inf"), "finite"),
    ("cpu_time_s", -HUGE, "at least 0.01"),
    ("cpu_time_s", -1, "at least 0.01"),
    ("cpu_time_s", 0, "at least 0.01"),
    ("wall_time_s", 0.009, "at least 0.01"),
    ("memory_bytes", False, "integer"),
    ("memory_bytes", 8388608.0, "integer"),
    ("memory_bytes", float("nan"), "finite"),
    ("memory_bytes", [1], "integer"),
    ("memory_bytes", 4194303, "at least 4194304 (4 MiB)"),
    ("memory_bytes", -1, "at least 4194304 (4 MiB)"),
    ("disk_bytes", 0, "at least 262144 (256 KiB)"),
    ("processes", 0, "at least 1"),
    ("open_files", 7, "at least 8"),
    ("output_bytes", -1, "at least 0"),
    ("stack_bytes", 131071, "at least 131072 (128 KiB)"),
    ("cpu_time_ns", 1, "unknown limit"),
    ("no_such_limit", 1, "unknown limit"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=lambda value: str(value)[:24])
def test_a_wrong_limit_names_its_field_and_the_bound(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        units.from_edge({name: value}, "compile_limits")
    assert caught.value.field == f"compile_limits.{name}"
    assert message in caught.value.message


@pytest.mark.parametrize("value", [HUGE, 1e300])
@pytest.mark.parametrize("name", ["cpu_time_s", "wall_time_s"])
def test_a_huge_time_is_just_above_what_fits_so_that_the_ceiling_is_named(name: str, value: float) -> None:
    [(_, internal)] = units.from_edge({name: value}).items()
    assert internal == 86_401 * 10**9


@pytest.mark.parametrize(("name", "largest"), [("memory_bytes", 1 << 48), ("processes", 1 << 20)])
def test_a_huge_number_is_just_above_what_fits_so_that_the_ceiling_is_named(name: str, largest: int) -> None:
    assert units.from_edge({name: HUGE}) == {name: largest + 1}


@settings(deadline=None)
@given(
    st.fixed_dictionaries({name: st.integers(units.SMALLEST[name], getattr(CEILINGS, name)) for name in LIMIT_NAMES})
)
def test_limits_survive_the_way_out_and_back(values: dict[str, int]) -> None:
    assert units.from_edge(units.to_edge(Limits(**values))) == values


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=20) | st.sampled_from(units.EDGE_NAMES),
        st.floats() | st.integers() | st.booleans() | st.text(),
    )
)
def test_whatever_is_sent_becomes_limits_or_an_input_error(values: dict[str, object]) -> None:
    try:
        internal = units.from_edge(values)
    except InputError as error:
        assert error.field.startswith("limits.")  # noqa: PT017  # refusing is one of two right answers
    else:
        assert all(type(value) is int and value >= units.SMALLEST[name] for name, value in internal.items())


@pytest.mark.parametrize(
    ("texts", "internal"),
    [
        (["cpu_time_s=2"], {"cpu_time_ns": 2_000_000_000}),
        (["cpu_time_s=0.5", "processes=3"], {"cpu_time_ns": 500_000_000, "processes": 3}),
        (["memory_bytes=64M"], {"memory_bytes": 64 << 20}),
        (["memory_bytes=64MiB", "disk_bytes=512K"], {"memory_bytes": 64 << 20, "disk_bytes": 1 << 19}),
        (["stack_bytes=1G"], {"stack_bytes": 1 << 30}),
    ],
)  # fmt: skip
def test_assignments_of_the_command_line_are_read(texts: list[str], internal: dict[str, int]) -> None:
    assert units.parse_assignments(texts) == internal


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        (["memory_bytes"], "limits"),
        (["memory_bytes=lots"], "limits.memory_bytes"),
        (["memory_bytes=1.5M"], "limits.memory_bytes"),
        (["processes=2K"], "limits.processes"),
        (["cpu_time_s=nan"], "limits.cpu_time_s"),
        (["cpu_time_s=1", "cpu_time_s=2"], "limits.cpu_time_s"),
        (["nonsense=1"], "limits.nonsense"),
    ],
)
def test_a_wrong_assignment_names_its_field(texts: list[str], field: str) -> None:
    with pytest.raises(InputError) as caught:
        units.parse_assignments(texts)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("cpu_time_ns", 2_000_000_000, "2 s"),
        ("cpu_time_ns", 10_000_000, "0.01 s"),
        ("memory_bytes", 64 << 20, "64 MiB"),
        ("memory_bytes", 1536, "1.5 KiB"),
        ("memory_bytes", 1 << 30, "1 GiB"),
        ("output_bytes", 1, "1 byte"),
        ("output_bytes", 1023, "1023 bytes"),
        ("processes", 64, "64"),
    ],
)
def test_a_limit_is_described_as_a_person_reads_it(name: str, value: int, text: str) -> None:
    assert units.describe(name, value) == text
