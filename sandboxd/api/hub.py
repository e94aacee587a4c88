"""Wakes requests that wait for a job: one thread and one Redis subscription for each API process, however many wait.

A request registers first and reads the job's state afterwards, so an end between the two wakes it; nobody polls. When
the connection to Redis was lost, messages may have been too: everybody is woken and looks for himself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import structlog

from sandboxd.errors import StoreUnavailable
from sandboxd.store import Store, redis_errors

log = structlog.get_logger()

_KEEPALIVE_S = 15.0
_RETRY_S = 0.5
_SUBSCRIBE_TIMEOUT_S = 2.0


class Hub:
    """The waiting requests of one process. Its thread starts with the first of them, so after gunicorn's fork."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._waiting: dict[str, list[threading.Event]] = {}
        self._listening = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """The thread ends when its connection does."""
        self._closed.set()

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[threading.Event]:
        """An event that is set at the job's end (and now and then without reason: look at the job).

        Raises StoreUnavailable when the subscription cannot be made.
        """
        event = threading.Event()
        with self._lock:
            self._waiting.setdefault(job_id, []).append(event)
        try:
            self._start()
            if not self._listening.wait(_SUBSCRIBE_TIMEOUT_S):
                raise StoreUnavailable("Redis does not answer: no subscription to the ends of jobs")
            yield event
        finally:
            with self._lock:
                self._waiting[job_id].remove(event)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._listen, name="hub", daemon=True)
                thread.start()  # may fail, and is tried again by the next
                self._thread = thread

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with redis_errors():
                    self._follow()
            except StoreUnavailable as error:
                if not self._closed.is_set():
                    log.warning("subscription lost", error=str(error))
            except Exception:  # the thread's edge: a hub without its thread would let every request wait in vain
                if not self._closed.is_set():
                    log.exception("subscription failed")
            self._listening.clear()
            self._closed.wait(_RETRY_S)

    def _follow(self) -> None:
        """Deliver messages until the connection breaks or is silent for two keepalives."""
        silent = False
        with contextlib.closing(self._store.subscribe_ended()) as listener:
            while True:
                message = listener.get_message(timeout=_KEEPALIVE_S)
                if message is None:
                    if silent:
                        raise StoreUnavailable("Redis does not answer: the subscription is dead")
                    silent = True
                    listener.ping()
                    continue
                silent = False
                if message["type"] == "subscribe":
                    self._wake_all()
                    self._listening.set()
                elif message["type"] == "message":
                    self._wake(message["data"].decode())

    def _wake(self, job_id: str) -> None:
        with self._lock:
            for event in self._waiting.get(job_id, ()):
                event.set()

    def _wake_all(self) -> None:
        with self._lock:
            for events in self._waiting.values():
                for event in events:
                    event.set()
