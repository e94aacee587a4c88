"""How many prepared sandboxes of a policy are kept: it follows what jobs ask for. Pure."""

from __future__ import annotations

from sandboxd.jail.pool import Share


def test_a_policy_without_jobs_keeps_its_floor() -> None:
    for floor in (0, 1):
        share = Share(floor)
        for _ in range(3):
            share.review()
        assert share.target == floor


def test_each_job_that_finds_none_doubles_the_share_as_far_as_there_is_room() -> None:
    share = Share(1)
    seen = []
    for room in (100, 100, 100, 3, 0):
        share.missed(room)
        seen.append(share.target)
    assert seen == [2, 4, 8, 11, 11]


def test_a_policy_without_a_floor_gets_a_share_at_its_first_job() -> None:
    share = Share(0)
    share.missed(0)
    assert share.target == 0
    share.missed(5)
    assert share.target == 1


def test_what_lay_unused_since_the_last_review_is_halved_down_to_the_floor() -> None:
    share = Share(1)
    for _ in range(3):
        share.missed(100)
    share.review()
    assert share.target == 8, "it was just missed"
    for left in (7, 5, 6):
        share.taken(left)
    share.review()
    assert share.target == 5, "three were needed at once, five never: half of these go"
    targets = []
    for _ in range(4):
        share.review()
        targets.append(share.target)
    assert targets == [2, 1, 1, 1]
