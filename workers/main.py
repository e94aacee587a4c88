"""One worker process: `sandboxd worker`. It has no root, and runs jobs until it is told to stop."""

from __future__ import annotations

import contextlib
import os

import redis
import structlog

from sandboxd.config import Settings
from sandboxd.errors import HostError, InternalError
from sandboxd.queue import JobQueue
from sandboxd.store import Store, connect, redis_errors
from workers.bury import bury_worker, worker_name
from workers.launcher import Launcher
from workers.worker import SandboxWorker

log = structlog.get_logger()


def run_worker(settings: Settings, *, name: str | None = None) -> None:
    """Work until SIGTERM or Ctrl-C: the first lets a running job end, a second gives it back to the queue.

    Raises:
        HostError: this process is root.
        StoreUnavailable: Redis went away for longer than a worker waits.
    """
    refuse_root()
    store = Store(connect(settings.redis), settings.prefix, settings.result_ttl_s)
    jobs = JobQueue(store)
    name = name or worker_name(settings, os.getpid())
    with redis_errors():
        # A predecessor of the same name is dead: it had our process id, or its supervisor started us in its place.
        bury_worker(jobs, name)
        worker = SandboxWorker(jobs, Launcher(settings.paths.launcher_socket), name=name)
        log.info("ready", worker=name, launcher=str(settings.paths.launcher_socket))
        try:
            worker.work(logging_level="WARNING")
        finally:
            with contextlib.suppress(InternalError, redis.RedisError):
                worker.withdraw_offer()


def refuse_root() -> None:
    """Raises HostError for root: whoever breaks a worker would own the machine."""
    if os.geteuid() == 0:
        raise HostError(
            "worker",
            "a worker must not be root; only the launcher is",
            "run it as the service user: sudo -u sandboxd sandboxd worker (sandboxd serve does so by itself)",
        )
