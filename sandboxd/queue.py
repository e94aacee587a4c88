"""The queue between API and workers: RQ, with JSON for its data and one function that may be called.

Nothing a client sent is in the queue: RQ's job carries an id, and the worker asks the store for the rest. The queue's
name holds the instance's prefix, and everything RQ keeps about waiting and running jobs hangs on that name, so two
instances on one Redis never mix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog
from redis.client import Pipeline
from rq import Queue
from rq.command import send_command
from rq.executions import ExecutionRegistry
from rq.job import Job
from rq.serializers import JSONSerializer

from sandboxd.spec import JobRequest
from sandboxd.store import JobRecord, Store, redis_errors

log = structlog.get_logger()

ALLOWED_FUNCTION = "workers.tasks.run_job"
"""The only function that is named in the queue. A worker runs no other whatever is named there: it looks at no more
than the id, and refuses and logs what is no job of ours."""
JOB_TIMEOUT_S = 600
"""Told to RQ for its own bookkeeping. The limits of a job are the launcher's to enforce."""


class JobQueue:
    """The jobs of one instance that wait for a worker."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rq = Queue(f"{store.prefix}:jobs", connection=store.client, serializer=JSONSerializer)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Pipeline]:
        """A pipeline that is applied whole or not at all, for the store's commands and RQ's together."""
        with redis_errors(), self.store.client.pipeline() as pipeline:
            pipeline.multi()  # RQ would do so itself, but refuses when a command of ours came first
            yield pipeline

    def submit(self, record: JobRecord, request: JobRequest) -> None:
        """Store a new job and enqueue it: one round trip, both or neither. Raises StoreUnavailable."""
        with self.transaction() as pipeline:
            self.store.put_job(pipeline, record, request)
            self.push(pipeline, record.id)
            pipeline.execute()

    def push(self, pipeline: Pipeline, job_id: str, *, at_front: bool = False) -> None:
        """Add the enqueueing of a stored job to `pipeline`. Pushing one twice is harmless: only one claim succeeds."""
        self.rq.enqueue_call(
            ALLOWED_FUNCTION,
            args=(job_id,),
            timeout=JOB_TIMEOUT_S,
            # RQ's own record is deleted with the job's end: what is kept is ours alone.
            result_ttl=0,
            failure_ttl=self.store.result_ttl_s,
            description=job_id,
            job_id=job_id,
            at_front=at_front,
            pipeline=pipeline,
        )

    def depth(self) -> int:
        """How many jobs wait. Raises StoreUnavailable."""
        with redis_errors():
            return self.rq.count

    def cancel(self, job_id: str, owner: str, now: str) -> str:
        """Ask for a job's end and return the state it was in; "" when the owner has no such job.

        `queued`: it is cancelled and will never run. `running`: its worker was told; the end is published when it
        comes.
        """
        found, worker_name = self.store.cancel(job_id, owner, now)
        with redis_errors():
            if found == "queued":
                with self.transaction() as pipeline:
                    self.forget(pipeline, job_id)
                    pipeline.execute()
            elif found == "running" and worker_name:
                send_command(self.store.client, worker_name, "stop-job", job_id=job_id)
        return found

    def forget(self, pipeline: Pipeline, job_id: str) -> None:
        """Remove RQ's own records of a job, those of lost executions among them, and the job from the queue."""
        pipeline.lrem(self.rq.key, 0, job_id)
        pipeline.lrem(self.rq.intermediate_queue_key, 0, job_id)
        pipeline.delete(Job.key_for(job_id), ExecutionRegistry(job_id, pipeline).key)

    def drop(self, entry: bytes) -> None:
        """Remove what is in the queue and is not even the id of a job. Raises StoreUnavailable."""
        log.error("refused: no id of a job", entry=entry[:64])
        with self.transaction() as pipeline:
            for key in (self.rq.key, self.rq.intermediate_queue_key):
                pipeline.lrem(key, 0, entry)  # type: ignore[arg-type]  # bytes are what Redis holds
            pipeline.execute()
