"""Who may ask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from rig import TOKEN, claim

from sandboxd.config import load_settings
from sandboxd.errors import InputError
from sandboxd.store import Store

PYTHON = {"language": "python", "source": "print(1)"}
CLOSED = ["/v1/jobs/" + "0" * 32, "/v1/languages", "/v1/policies", "/v1/images", "/v1/nothing"]
OPEN = ["/v1/health", "/v1/ready", "/v1/openapi.json", "/v1/docs"]


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \xff\xfe"},
        {"X-API-Key": "wrong"},
        {"X-API-Key": hashlib.sha256(TOKEN.encode()).hexdigest()},
    ],
    ids=["none", "wrong", "longer", "shorter", "empty", "basic", "no scheme", "bytes", "wrong key", "the hash"],
)
def test_no_or_a_wrong_token_is_401(api: Any, path: str, headers: dict[str, str]) -> None:
    answer = api.client.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json["type"] == "/v1/docs#unauthorized"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_body_is_not_looked_at_before_the_token(api: Any) -> None:
    assert api.client.post("/v1/jobs", data=b"[" * 100, content_type="application/json").status_code == 401


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"bearer  {TOKEN} "}, {"X-API-Key": TOKEN}]
)
def test_the_token_is_taken_from_either_header(api: Any, headers: dict[str, str]) -> None:
    assert api.client.get("/v1/languages", headers=headers).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_health_and_documentation_need_no_token(api: Any, path: str) -> None:
    assert api.client.get(path).status_code == 200


def test_the_token_itself_is_nowhere_in_redis(api: Any, store: Store) -> None:
    api.post(PYTHON)
    for key in store.client.scan_iter("*"):
        assert TOKEN.encode() not in key
        assert TOKEN.encode() not in store.client.dump(key)


def test_a_new_token_counts_at_once(api: Any, store: Store) -> None:
    assert api.get("/v1/languages").status_code == 200
    store.set_token_hash(hashlib.sha256(b"new").hexdigest())
    assert api.client.get("/v1/languages", headers={"X-API-Key": "new"}).status_code == 200


def test_another_tokens_job_is_404(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    claim(store, job_id)
    store.set_token_hash(hashlib.sha256(b"other").hexdigest())
    unknown = api.client.get("/v1/jobs/" + "0" * 32, headers={"X-API-Key": "other"})
    for call in (api.client.get, api.client.delete):
        answer = call(f"/v1/jobs/{job_id}", headers={"X-API-Key": "other"})
        assert (answer.status_code, answer.json) == (404, unknown.json)
    record = store.job(job_id)
    assert record is not None
    assert not record.cancel


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1",
     "[2001:db8::1]", "localhost:x", "127.0.0.1@evil.example", "[::1]evil"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/health", "/v1/languages", "/v1/docs"])
def test_a_foreign_host_on_loopback_is_403(api: Any, host: str, path: str) -> None:
    answer = api.client.get(path, headers=api.headers | {"Host": host})
    assert answer.status_code == 403
    assert answer.json["type"] == "/v1/docs#foreign-host"


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1", "127.0.0.1:8080", "127.1.2.3", "[::1]", "[::1]:80"],
)
def test_a_loopback_host_is_let_in(api: Any, host: str) -> None:
    assert api.client.get("/v1/languages", headers=api.headers | {"Host": host}).status_code == 200


def test_elsewhere_any_host_is_let_in(make_api: Callable[..., Any]) -> None:
    api = make_api(host="10.1.2.3")
    assert api.client.get("/v1/languages", headers=api.headers | {"Host": "judge.example"}).status_code == 200


def test_without_authentication_no_token_is_asked_for(make_api: Callable[..., Any]) -> None:
    client = make_api(no_auth=True).client
    answer = client.post("/v1/jobs", json=PYTHON)
    assert answer.status_code == 202
    assert client.get(answer.headers["Location"]).status_code == 200


def test_without_authentication_a_web_page_is_still_kept_out(make_api: Callable[..., Any]) -> None:
    client = make_api(no_auth=True).client
    assert client.post("/v1/jobs", json=PYTHON, headers={"Host": "evil.example"}).status_code == 403
    assert client.post("/v1/jobs", data="{}", content_type="text/plain").status_code == 415


def test_without_authentication_only_loopback_is_served() -> None:
    assert load_settings(no_auth=True, host="127.0.0.1").no_auth
    for host in ("0.0.0.0", "10.0.0.1", "::", "example.org"):  # noqa: S104  # refused
        with pytest.raises(InputError, match="loopback"):
            load_settings(no_auth=True, host=host)
