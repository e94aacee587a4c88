"""The API over a real Redis. Each test has a prefix of its own, so none sees what another left."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from rig import TOKEN, TOKEN_HASH, RedisProcess, publish, running_redis, shipped_catalogue

from sandboxd.api import create_app
from sandboxd.catalogue import Catalogue
from sandboxd.config import Settings, load_settings
from sandboxd.store import Store, connect


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def settings(redis_server: RedisProcess) -> Settings:
    return load_settings(redis_url=redis_server.url, key_prefix=f"t-{uuid.uuid4().hex}")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store(connect(settings.redis), settings.prefix, settings.result_ttl_s)
    yield store
    store.client.close()


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return shipped_catalogue()


@pytest.fixture
def offering(store: Store, catalogue: Catalogue) -> Store:
    """A token is known, and a worker said what its launcher offers."""
    store.set_token_hash(TOKEN_HASH)
    publish(store, catalogue)
    return store


@pytest.fixture
def api(settings: Settings, offering: Store) -> Iterator[Api]:
    app = create_app(settings)
    yield Api(app.test_client())
    app.extensions["sandboxd"].close()


class Api:
    """A client with a token."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.headers = {"Authorization": f"Bearer {TOKEN}"}

    def post(self, body: object, **options: Any) -> Any:
        """A job, as JSON, or the body itself when it is bytes."""
        if isinstance(body, bytes):
            return self.client.post("/v1/jobs", data=body, content_type="application/json", headers=self.headers)
        return self.client.post("/v1/jobs", json=body, headers=self.headers, query_string=options)

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, headers=self.headers, query_string=options)

    def delete(self, path: str) -> Any:
        return self.client.delete(path, headers=self.headers)


@pytest.fixture
def make_api(settings: Settings, offering: Store) -> Iterator[Callable[..., Api]]:
    """An API with some settings changed."""
    apps = []

    def make(**changes: object) -> Api:
        app = create_app(load_settings(redis_url=settings.redis_url, key_prefix=settings.key_prefix, **changes))
        apps.append(app)
        return Api(app.test_client())

    yield make
    for app in apps:
        app.extensions["sandboxd"].close()
