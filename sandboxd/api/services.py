"""What the routes work with; built once by `create_app` and passed on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from sandboxd.api.hub import Hub
from sandboxd.api.problems import problem
from sandboxd.catalogue import Catalogue
from sandboxd.config import Settings
from sandboxd.queue import JobQueue
from sandboxd.store import Store, connect

_T = TypeVar("_T")

REFRESH_S = 1.0
"""How old the tokens and the catalogue that a process knows may be."""


class Remembered(Generic[_T]):
    """A value read from Redis, remembered for a short time: it is needed by every request and hardly ever changes."""

    def __init__(self, read: Callable[[], _T], for_s: float) -> None:
        self._read = read
        self._for_s = for_s
        self._lock = threading.Lock()
        self._value: tuple[float, _T] | None = None

    def get(self, *, fresh: bool = False) -> _T:
        """The value; `fresh` reads it again."""
        now = time.monotonic()
        with self._lock:
            known = self._value
        if known is not None and not fresh and now - known[0] < self._for_s:
            return known[1]
        value = self._read()
        with self._lock:
            self._value = (now, value)
        return value


class Services:
    """Settings, store, queue and hub of one API process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(connect(settings.redis), settings.prefix, settings.result_ttl_s)
        self.queue = JobQueue(self.store)
        self.hub = Hub(self.store)
        self.token_hashes = Remembered(self.store.token_hashes, REFRESH_S)
        self._catalogue = Remembered(self.store.catalogue, REFRESH_S)
        self.waiting = threading.BoundedSemaphore(max(1, settings.api_threads * 3 // 4))
        """Held by each request that waits for a job's end, so that others find a thread."""

    def close(self) -> None:
        """Let go of Redis."""
        self.hub.close()
        self.store.client.close()

    def catalogue(self) -> Catalogue:
        """What is offered now. Raises Problem 503 while no worker offers anything."""
        # "Nothing" is not remembered: the first worker's offer counts at once.
        catalogue = self._catalogue.get() or self._catalogue.get(fresh=True)
        if catalogue is None:
            raise problem("no-worker", retry_after_s=2)
        return catalogue
