"""The states of a job, whoever disturbs: only one worker owns it, and no end is ever taken back."""

from __future__ import annotations

import msgspec
import pytest
from rig import NOW, claim, finish, publish, queue_of, release, shipped_catalogue, withdraw

from sandboxd.catalogue import Catalogue
from sandboxd.config import Settings
from sandboxd.spec import InputFile, JobRequest
from sandboxd.store import CATALOGUE_TTL_S, JobRecord, Store, connect

REQUEST = JobRequest(language="python", files=(InputFile(path="main.py", content=b"\0\xff"),))


@pytest.fixture
def job(store: Store) -> str:
    """A queued job."""
    record = JobRecord(id="0" * 32, state="queued", owner="me", policy="default", image="host", created_at=NOW)
    queue_of(store).submit(record, REQUEST)
    return record.id


def state(store: Store, job: str) -> tuple[str, int]:
    record = store.job(job)
    assert record is not None
    return record.state, record.attempt


def test_a_job_and_its_place_in_the_queue_are_made_together(store: Store, job: str) -> None:
    assert state(store, job) == ("queued", 0)
    assert queue_of(store).rq.get_job_ids() == [job]


def test_a_submission_is_one_round_trip(store: Store) -> None:
    queue = queue_of(store)
    queue.depth()
    record = JobRecord(id="1" * 32, state="queued", owner="me", policy="default", image="host", created_at=NOW)
    queue.submit(record, REQUEST)
    before = store.client.info("commandstats")["cmdstat_exec"]["calls"]
    queue.submit(msgspec.structs.replace(record, id="2" * 32), REQUEST)
    assert store.client.info("commandstats")["cmdstat_exec"]["calls"] - before == 1


def test_one_claim_succeeds_and_gets_the_input(store: Store, job: str) -> None:
    first, second = claim(store, job), claim(store, job)
    assert (first.state, first.attempt, first.request) == ("queued", 1, REQUEST)
    assert (first.policy, first.image) == ("default", "host")
    assert (second.state, second.request) == ("running", None)


def test_a_job_that_does_not_exist_cannot_be_claimed(store: Store) -> None:
    assert claim(store, "f" * 32).state == ""


def test_a_job_whose_input_is_gone_is_claimed_without_one(store: Store, job: str) -> None:
    store.client.delete(f"{store.prefix}:input:{job}")
    assert (claim(store, job).state, claim(store, job).request) == ("queued", None)


def test_a_finished_job_stays_finished(store: Store, job: str) -> None:
    claim(store, job)
    assert finish(store, job)
    assert not finish(store, job, state="failed")
    assert release(store, job, lost=True) == "finished"
    assert store.cancel(job, "me", NOW)[0] == "finished"
    assert claim(store, job).state == "finished"
    assert state(store, job) == ("finished", 1)


def test_a_queued_job_cannot_be_finished(store: Store, job: str) -> None:
    assert not finish(store, job, attempt=0)
    assert state(store, job) == ("queued", 0)


def test_a_lost_job_runs_once_more_and_then_has_failed(store: Store, job: str) -> None:
    claim(store, job)
    assert release(store, job, lost=True) == "queued"
    record = store.job(job)
    assert record is not None
    assert (record.worker, record.started_at) == ("", "")
    assert claim(store, job).attempt == 2
    assert release(store, job, lost=True) == "failed"
    assert state(store, job) == ("failed", 2)


def test_a_worker_that_comes_back_cannot_overwrite_its_successors_result(store: Store, job: str) -> None:
    claim(store, job)
    release(store, job, lost=True)
    claim(store, job)
    assert not finish(store, job, attempt=1, state="failed")
    assert release(store, job, lost=True, attempt=1) == "running"
    assert finish(store, job, attempt=2)


def test_a_job_given_back_costs_no_attempt(store: Store, job: str) -> None:
    for _ in range(3):
        assert claim(store, job).attempt == 1
        assert release(store, job, lost=False, attempt=1) == "queued"


def test_a_second_attempt_by_the_same_worker_is_the_last(store: Store, job: str) -> None:
    claim(store, job)
    assert store.again(job, 1) == 2
    assert store.again(job, 1) == 0
    assert store.again(job, 2) == 0
    assert release(store, job, lost=True) == "failed"


def test_a_job_to_be_cancelled_is_not_run_once_more(store: Store, job: str) -> None:
    claim(store, job, worker_name="w7")
    assert store.cancel(job, "me", NOW) == ("running", "w7")
    assert release(store, job, lost=True) == "cancelled"


def test_only_its_owner_can_cancel_a_job(store: Store, job: str) -> None:
    assert store.cancel(job, "you", NOW) == ("", "")
    assert state(store, job) == ("queued", 0)


def test_two_instances_on_one_redis_never_meet(store: Store, settings: Settings, job: str) -> None:
    other = Store(connect(settings.redis), f"{store.prefix}-b")
    assert other.job(job) is None
    assert claim(other, job).state == ""
    assert other.cancel(job, "me", NOW) == ("", "")
    assert queue_of(other).depth() == 0
    publish(store, shipped_catalogue())
    store.set_token_hash("00")
    assert other.catalogue() is None
    assert other.token_hashes() == ()
    other.client.close()


def test_what_is_offered_is_the_union_of_the_workers(store: Store) -> None:
    whole = shipped_catalogue()
    publish(store, msgspec.structs.replace(whole, languages=whole.languages[:2]), "w1")
    publish(store, msgspec.structs.replace(whole, languages=whole.languages[1:]), "w2")
    assert names(store.catalogue()) == {each.name for each in whole.languages}
    withdraw(store, "w2")
    assert names(store.catalogue()) == {each.name for each in whole.languages[:2]}
    withdraw(store, "w1")
    assert store.catalogue() is None


def test_an_offer_that_is_not_renewed_expires(store: Store) -> None:
    publish(store, shipped_catalogue())
    key = f"{store.prefix}:catalogue:w1"
    assert 0 < store.client.ttl(key) <= CATALOGUE_TTL_S
    store.client.delete(key)
    assert store.catalogue() is None
    assert store.client.scard(f"{store.prefix}:catalogues") == 0


def test_a_new_token_replaces_the_old_one(store: Store) -> None:
    store.set_token_hash("aa")
    store.set_token_hash("bb")
    assert store.token_hashes() == ("bb",)


def test_nothing_in_redis_is_a_pickle(store: Store, job: str) -> None:
    for key in store.client.scan_iter(f"*{job}*"):
        assert b"\x80\x04" not in store.client.dump(key)
        assert b"\x80\x05" not in store.client.dump(key)


def names(catalogue: Catalogue | None) -> set[str]:
    assert catalogue is not None
    return {each.name for each in catalogue.languages}
