"""The request's limit, else the language's default, else the policy's default; never above the policy's ceiling."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.errors import InputError
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.merge import check_ceilings, effective_limits
from sandboxd.policy.units import SMALLEST, from_edge
from sandboxd.spec import LIMIT_NAMES, MIB, NANOSECONDS

POLICIES = load_policies(policy_folder())
DEFAULT = POLICIES["default"]


def test_without_a_request_the_policy_decides() -> None:
    assert effective_limits(DEFAULT, {}, {}) == DEFAULT.defaults


def test_the_language_is_asked_before_the_policy_and_the_request_before_both() -> None:
    language = {"processes": 33, "memory_bytes": 300 * MIB}
    limits = effective_limits(DEFAULT, language, {"memory_bytes": 200 * MIB})
    assert (limits.processes, limits.memory_bytes, limits.open_files) == (33, 200 * MIB, DEFAULT.defaults.open_files)


def test_a_language_default_above_the_ceiling_is_lowered_to_it() -> None:
    limits = effective_limits(DEFAULT, {"processes": 100_000}, {})
    assert limits.processes == DEFAULT.ceilings.processes


def test_a_request_above_the_ceiling_names_field_bound_and_policy() -> None:
    for value in (61 * NANOSECONDS, *from_edge({"cpu_time_s": 1e300}).values()):
        with pytest.raises(InputError) as caught:
            effective_limits(DEFAULT, {}, {"cpu_time_ns": value})
    assert caught.value.field == "limits.cpu_time_s"
    assert caught.value.message == "must be at most 60, the ceiling of policy 'default'"


def test_the_field_of_an_error_is_the_one_that_the_client_wrote() -> None:
    with pytest.raises(InputError) as caught:
        effective_limits(POLICIES["compile"], {}, {"memory_bytes": 2048 * MIB}, field="compile_limits")
    assert caught.value.field == "compile_limits.memory_bytes"
    assert caught.value.message == "must be at most 1073741824 (1 GiB), the ceiling of policy 'compile'"


def test_an_unknown_limit_is_refused() -> None:
    with pytest.raises(InputError, match=r"limits\.nonsense"):
        effective_limits(DEFAULT, {}, {"nonsense": 1})


def test_the_default_disk_shrinks_with_the_memory() -> None:
    limits = effective_limits(DEFAULT, {}, {"memory_bytes": 16 * MIB})
    assert limits.disk_bytes == 8 * MIB


def test_a_language_s_disk_shrinks_with_the_memory_too() -> None:
    assert effective_limits(DEFAULT, {"disk_bytes": 100 * MIB}, {"memory_bytes": 16 * MIB}).disk_bytes == 8 * MIB


def test_an_explicit_disk_above_half_of_the_memory_names_both() -> None:
    with pytest.raises(InputError) as caught:
        effective_limits(DEFAULT, {}, {"memory_bytes": 16 * MIB, "disk_bytes": 8 * MIB + 1})
    assert caught.value.field == "limits.disk_bytes"
    assert "half of memory_bytes" in caught.value.message
    assert str(8 * MIB) in caught.value.message
    assert effective_limits(DEFAULT, {}, {"memory_bytes": 16 * MIB, "disk_bytes": 8 * MIB}).disk_bytes == 8 * MIB


def test_what_clients_see_of_a_policy_is_enough_to_merge() -> None:
    requested = {"memory_bytes": 32 * MIB, "processes": 2}
    assert effective_limits(DEFAULT.info(), {}, requested) == effective_limits(DEFAULT, {}, requested)


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_complete_limits_are_refused_just_above_the_ceiling_and_just_below_the_least(name: str) -> None:
    ceiling = getattr(DEFAULT.ceilings, name)
    roomy = msgspec.structs.replace(DEFAULT.defaults, memory_bytes=DEFAULT.ceilings.memory_bytes)
    check_ceilings(msgspec.structs.replace(roomy, **{name: ceiling}), DEFAULT)
    for value in (ceiling + 1, SMALLEST[name] - 1):
        with pytest.raises(InputError, match=name.removesuffix("_ns")):
            check_ceilings(msgspec.structs.replace(roomy, **{name: value}), DEFAULT)


values = st.dictionaries(st.sampled_from(LIMIT_NAMES), st.integers(-1, 1 << 31) | st.integers(0, 200 * NANOSECONDS))


@settings(deadline=None)
@given(st.sampled_from(sorted(POLICIES)), values, values)
def test_a_merge_never_exceeds_a_ceiling_nor_changes_a_request(
    policy_name: str, language: dict[str, int], requested: dict[str, int]
) -> None:
    policy = POLICIES[policy_name]
    try:
        limits = effective_limits(policy, language, requested)
    except InputError as error:
        assert error.field.startswith("limits.")  # noqa: PT017  # refusing is one of two right answers
        return
    for name in LIMIT_NAMES:
        assert SMALLEST[name] <= getattr(limits, name) <= getattr(policy.ceilings, name)
        assert getattr(limits, name) == requested.get(name, getattr(limits, name))
    assert limits.disk_bytes * 2 <= limits.memory_bytes
