"""Threads that are there from the start. One that is made when it is needed cannot always be made (pids.max, the
kernel's threads-max), and whoever waits for it would wait in vain.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

_START_S = 30.0


def started(count: int, name: str) -> ThreadPoolExecutor:
    """A pool all of whose `count` threads run. Raises RuntimeError when one cannot be made."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
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
