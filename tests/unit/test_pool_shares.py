"""How many prepared sandboxes of each policy are kept: it follows what jobs ask for. Pure."""

from __future__ import annotations

import pytest

from sandboxd.jail.pool import Shares

POLICIES = ("base", "compile", "default", "report")
BUILD_MS = 4


def test_each_policy_has_one_as_far_as_there_is_room() -> None:
    assert Shares(POLICIES, 8).targets == {"base": 1, "compile": 1, "default": 1, "report": 1}
    assert sum(Shares(POLICIES, 2).targets.values()) == 2


def test_a_policy_without_jobs_keeps_its_one() -> None:
    shares = Shares(POLICIES, 8)
    for _ in range(3):
        shares.review()
    assert set(shares.targets.values()) == {1}


def test_each_job_that_finds_none_doubles_its_share_and_then_takes_from_who_needs_none() -> None:
    shares = Shares(POLICIES, 10)
    seen = []
    for _ in range(6):
        shares.missed("default")
        shares.taken("default", 0)
        seen.append(shares.targets["default"])
    assert seen == [2, 4, 7, 8, 9, 10]
    assert sum(shares.targets.values()) == 10


@pytest.mark.parametrize("bound", [1, 2, 3])
def test_with_few_places_the_policy_that_jobs_ask_for_gets_one_at_its_first_job(bound: int) -> None:
    shares = Shares(POLICIES, bound)
    shares.missed("default")
    assert shares.targets["default"] >= 1
    assert sum(shares.targets.values()) == bound


def test_two_that_share_one_place_do_not_take_it_from_each_other_at_every_job() -> None:
    shares = Shares(POLICIES, 1)
    changes = 0
    for number in range(100):
        before = dict(shares.targets)
        for policy in ("compile", "default"):
            if shares.targets[policy] == 0:
                shares.missed(policy)
            shares.taken(policy, 0)
        changes += shares.targets != before
        if number % 25 == 24:
            shares.review()
    assert changes <= 5


def test_who_misses_takes_from_who_has_far_more() -> None:
    shares = Shares(("busy", "other"), 16)
    shares.taken("other", 0)
    for _ in range(8):
        shares.missed("busy")
        shares.taken("busy", 0)
    assert shares.targets == {"busy": 15, "other": 1}
    for _ in range(20):
        shares.missed("other")
        shares.taken("other", 0)
    assert shares.targets == {"busy": 8, "other": 8}


def test_what_lay_unused_since_the_last_review_is_halved_down_to_one() -> None:
    shares = Shares(("only",), 100)
    for _ in range(3):
        shares.missed("only")
        shares.taken("only", 0)
    shares.review()
    assert shares.targets["only"] == 8, "it was just missed"
    for left in (7, 5, 6):
        shares.taken("only", left)
    shares.review()
    assert shares.targets["only"] == 5, "three were needed at once, five never: half of these go"
    seen = []
    for _ in range(4):
        shares.review()
        seen.append(shares.targets["only"])
    assert seen == [2, 1, 1, 1]


def test_a_policy_whose_place_was_taken_has_one_again_when_there_is_room() -> None:
    shares = Shares(("busy", "idle"), 4)
    for _ in range(4):
        shares.missed("busy")
        shares.taken("busy", 0)
    assert shares.targets == {"busy": 4, "idle": 0}
    for _ in range(3):
        shares.review()
    assert shares.targets["idle"] == 1


@pytest.mark.parametrize(("bound", "busy_ms", "missed_max"), [(16, 4, 0.1), (8, 4, 0.1), (8, 10, 0.02)])
def test_beside_a_busy_policy_another_ones_jobs_find_theirs(bound: int, busy_ms: int, missed_max: float) -> None:
    """One is built at a time; `default` gets a job each `busy_ms`, `compile` one each 50 ms."""
    shares, kept = Shares(POLICIES, bound), dict.fromkeys(POLICIES, 0)
    missed = asked = 0
    building: str | None = None
    for now_ms in range(20_000):
        for policy, each_ms in (("default", busy_ms), ("compile", 50)):
            if now_ms % each_ms:
                continue
            is_missed = kept[policy] == 0
            if is_missed:
                shares.missed(policy)
            else:
                kept[policy] -= 1
            shares.taken(policy, kept[policy])
            if policy == "compile":
                asked, missed = asked + 1, missed + is_missed
            kept = {name: min(number, shares.targets[name]) for name, number in kept.items()}
        if now_ms % BUILD_MS == 0:
            if building is not None:
                kept[building] += 1
            building = shares.wanted(kept)
    assert missed / asked <= missed_max
