"""Threads that are there from the start. One that is made when it is needed cannot always be made (pids.max, the
kernel's threads-max), and whoever waits for it would wait in vain.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_START_S = 30.0


class _LastInFirstOut:
    """What a pool gives its threads, in the order in which it came; of the threads that wait, the last to come is the
    first to go. `queue.SimpleQueue` takes them in turn: each of 512 threads then has pages and caches of its own, of
    which the first few would do.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: deque[Any] = deque()
        self._waiting: list[tuple[threading.Lock, list[Any]]] = []

    def put(self, item: Any) -> None:  # noqa: ANN401  # whatever the pool gives
        with self._lock:
            if not self._waiting:
                self._items.append(item)
                return
            wake, hand = self._waiting.pop()
        hand.append(item)
        wake.release()

    def get(self, block: bool = True) -> Any:  # noqa: ANN401
        """Raises queue.Empty without `block`."""
        with self._lock:
            if self._items:
                return self._items.popleft()
            if not block:
                raise queue.Empty
            wake = threading.Lock()
            hand: list[Any] = []
            wake.acquire()
            self._waiting.append((wake, hand))
        wake.acquire()
        return hand[0]

    def get_nowait(self) -> Any:  # noqa: ANN401
        return self.get(block=False)


def started(count: int, name: str) -> ThreadPoolExecutor:
    """A pool all of whose `count` threads run. Raises RuntimeError when one cannot be made."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    pool._work_queue = _LastInFirstOut()  # type: ignore[assignment]  # no thread has been made yet
    together = threading.Barrier(count + 1)
    try:
        for _ in range(count):  # each is busy until all are there, so that none gets two
            pool.submit(together.wait)
        together.wait(_START_S)
    except BaseException:
        together.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return pool
