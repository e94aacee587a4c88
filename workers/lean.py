"""RQ's worker without what it does too often, and without the ways in which an order or the worker itself gets lost.

Sources: rq 3 `rq/worker/base.py`; pinned below 4, whose internals may differ.
"""

from __future__ import annotations

import time

import structlog
from redis import Redis
from redis.client import Pipeline
from rq import Queue, Worker
from rq.exceptions import StopRequested
from rq.job import Job, validate_job_id
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from sandboxd import watchdog
from sandboxd.queue import JobQueue

log = structlog.get_logger()

HEARTBEAT_S = 5.0
_WORKER_TTL_S = 20
"""RQ waits for a job for 15 s less; between two waits it looks whether something else is to be done."""
_SUSPENSION_CHECK_S = 1.0
"""`rq suspend` counts after so long: to ask before each job costs a round trip of its own."""


class _UnreadQueue(Queue):
    """A queue whose jobs are taken without what RQ keeps about them: the worker's own claim says what is to be done."""

    @classmethod
    def _fetch_dequeued_job(
        cls, connection: Redis, queue_key: str, job_id: str, *_classes: object, **_more: object
    ) -> tuple[Job, Queue]:
        """In place of RQ's, which reads the job's record: a round trip for an id that is known and a function that is
        always the same. An id that RQ does not take gets the name by which `discard` removes it."""
        queue = cls.from_queue_key(queue_key, connection=connection, serializer=JSONSerializer)
        try:
            validate_job_id(job_id)
        except ValueError as error:
            error.job_id = job_id  # type: ignore[attr-defined]  # as RQ does
            raise
        job = Job(job_id, connection=connection, serializer=JSONSerializer)
        job.origin = queue.name
        return job, queue


class LeanWorker(Worker):
    """A worker of one queue, whose jobs are named by JSON."""

    queue_class = _UnreadQueue
    log_result_lifespan = False
    max_connection_wait_time = 2.0

    def __init__(self, jobs: JobQueue, *, name: str) -> None:
        super().__init__(
            [_UnreadQueue(jobs.rq.name, connection=jobs.store.client, serializer=JSONSerializer)],
            name=name,
            connection=jobs.store.client,
            serializer=JSONSerializer,
            worker_ttl=_WORKER_TTL_S,
            job_monitoring_interval=int(HEARTBEAT_S),
            maintenance_interval=int(HEARTBEAT_S),
            log_job_description=False,
        )
        self._jobs = jobs
        self._next_heartbeat = 0.0
        self._next_suspension_check = 0.0

    def await_readiness(self) -> None:
        """Called before a job is waited for; it may wait itself, and raise StopRequested."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """RQ gives one before and after each job: one in five seconds is enough, in one round trip."""
        watchdog.beat()
        if pipeline is not None:
            super().heartbeat(timeout, pipeline=pipeline)
            return
        if time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + HEARTBEAT_S
        with self.connection.pipeline() as own:
            super().heartbeat(timeout, pipeline=own)
            own.execute()

    def check_for_suspension(self, burst: bool) -> None:
        """Asked by RQ's loop before each job; it waits there for as long as `rq suspend` says."""
        if time.monotonic() >= self._next_suspension_check:
            super().check_for_suspension(burst)
            self._next_suspension_check = time.monotonic() + _SUSPENSION_CHECK_S

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """Only what changes is written."""
        if pipeline is not None or state != self._state:
            super().set_state(state, pipeline=pipeline)

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Asked by RQ's loops before each wait. Here a stop is noticed whose exception got lost (see `_shutdown`)."""
        watchdog.beat()
        if self._stop_requested:
            raise StopRequested
        return bool(super().should_run_maintenance_tasks)

    def _shutdown(self) -> None:
        """The first SIGTERM or Ctrl-C: at once when idle, else after the job.

        RQ raises StopRequested out of the signal handler alone, wherever it interrupts. In a destructor that exception
        is ignored, and the order would be lost; so it is written down too. And it tells Redis, which a handler must
        not.
        """
        self._stop_requested = True
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """As RQ's, but an entry that cannot even be decoded is thrown away: it would end every worker that meets it."""
        while True:
            self.await_readiness()
            try:
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except UnicodeDecodeError as error:
                self._jobs.drop(error.object)
            except Exception as error:
                job_id = getattr(error, "job_id", None)
                if job_id is None:
                    raise
                log.error("refused: a job that cannot be decoded", rq_job=job_id)
                self.discard(job_id)

    def discard(self, job_id: str) -> None:
        """Remove an entry of the queue that is no job of ours. Raises StoreUnavailable."""
        with self._jobs.transaction() as pipeline:
            self._jobs.forget(pipeline, job_id)
            pipeline.execute()
