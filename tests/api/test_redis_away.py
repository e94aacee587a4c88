"""Redis goes away, comes back, or is full: the API says so, lives on, and keeps its promises to who waits."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rig import TOKEN, TOKEN_HASH, RedisProcess, claim, finish, publish, running_redis, wait_until

from sandboxd.api import create_app
from sandboxd.catalogue import Catalogue
from sandboxd.config import load_settings
from sandboxd.store import Store, connect

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PYTHON = {"language": "python", "source": "print(1)"}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def app(redis: RedisProcess, catalogue: Catalogue) -> Iterator[Any]:
    app = create_app(load_settings(redis_url=redis.url, key_prefix=f"t-{uuid.uuid4().hex}"))
    app.extensions["sandboxd"].store.set_token_hash(TOKEN_HASH)
    publish(app.extensions["sandboxd"].store, catalogue)
    yield app
    app.extensions["sandboxd"].close()


def test_everything_but_health_is_503_with_retry_after(redis: RedisProcess, app: Any) -> None:
    client = app.test_client()
    job = client.post("/v1/jobs", json=PYTHON, headers=HEADERS).headers["Location"]
    redis.stop()
    for answer in (
        client.post("/v1/jobs", json=PYTHON, headers=HEADERS),
        client.post("/v1/jobs?wait=5", json=PYTHON, headers=HEADERS),
        client.get(job, headers=HEADERS),
        client.get(f"{job}?wait=5", headers=HEADERS),
        client.delete(job, headers=HEADERS),
        client.get("/v1/ready"),
    ):
        assert answer.status_code == 503
        assert answer.json["type"] == "/v1/docs#store-unavailable"
        assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/v1/health").status_code == 200
    redis.start()
    assert client.get(job, headers=HEADERS).json["state"] == "queued"
    assert client.post("/v1/jobs", json=PYTHON, headers=HEADERS).status_code == 202


def test_who_waits_while_redis_restarts_gets_the_result(redis: RedisProcess, app: Any) -> None:
    client, services = app.test_client(), app.extensions["sandboxd"]
    job_id = client.post("/v1/jobs", json=PYTHON, headers=HEADERS).json["id"]
    got: list[Any] = []
    waiter = threading.Thread(
        target=lambda: got.append(app.test_client().get(f"/v1/jobs/{job_id}?wait=30", headers=HEADERS))
    )
    waiter.start()
    wait_until(services.hub._listening.is_set, 5)
    redis.stop()
    wait_until(lambda: not services.hub._listening.is_set(), 5)
    redis.start()
    # Ended before the hub is back: its message is lost, and the state is looked at anew instead.
    store = Store(connect(redis.url), services.store.prefix)
    claim(store, job_id)
    finish(store, job_id)
    store.client.close()
    waiter.join(20)
    if got[0].status_code == 503:  # it looked while Redis was still away, and was told to ask again
        assert "Retry-After" in got[0].headers
        got = [client.get(f"/v1/jobs/{job_id}?wait=30", headers=HEADERS)]
    assert (got[0].status_code, got[0].json["state"]) == (200, "finished")


def test_a_full_redis_is_503_and_no_job_is_half_made(redis: RedisProcess, app: Any) -> None:
    client, services = app.test_client(), app.extensions["sandboxd"]
    services.store.client.config_set("maxmemory", "1")
    answer = client.post("/v1/jobs", json=PYTHON, headers=HEADERS)
    assert (answer.status_code, answer.json["type"]) == (503, "/v1/docs#store-full")
    services.store.client.config_set("maxmemory", "0")
    assert services.queue.depth() == 0
    assert not list(services.store.client.scan_iter("*:job:*"))
    assert not list(services.store.client.scan_iter("*:input:*"))


def test_a_nearly_full_redis_takes_no_job_so_that_results_find_room(redis: RedisProcess, app: Any) -> None:
    client, admin = app.test_client(), app.extensions["sandboxd"].store.client
    used: int = admin.info("memory")["used_memory"]
    admin.config_set("maxmemory", used * 10 // 8)
    answer = client.post("/v1/jobs", json=PYTHON, headers=HEADERS)
    assert (answer.status_code, answer.json["type"]) == (503, "/v1/docs#store-full")
    assert int(answer.headers["Retry-After"]) > 0
    assert "below 60%" in answer.json["detail"]
    assert client.get("/v1/ready").json["type"] == "/v1/docs#store-full"
    admin.config_set("maxmemory", used * 4)
    wait_until(lambda: client.post("/v1/jobs", json=PYTHON, headers=HEADERS).status_code == 202, 5)
    assert client.get("/v1/ready").status_code == 200


def test_a_thread_that_could_not_be_made_is_made_for_the_next_who_waits(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's, or the service's, bound on threads is reached for a moment."""
    hub = app.extensions["sandboxd"].hub

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError), hub.watch("0" * 32):
            pytest.fail("nobody listens")
    with hub.watch("0" * 32):
        assert hub._listening.is_set()
    assert hub._waiting == {}
