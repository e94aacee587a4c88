"""What becomes of the job of a worker that died: it is run once more, and then it has failed.

A worker that is started in its place has its name, and buries it first of all. One on a machine that is gone is found
by the others: its execution is not renewed any more, and `recover`, which each worker calls every few seconds, takes
it up.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import structlog
from redis.client import Pipeline
from redis.exceptions import ResponseError
from rq import Worker
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE, Execution
from rq.serializers import JSONSerializer

from sandboxd import document
from sandboxd.config import Settings
from sandboxd.document import Digested, JobResult, now_rfc3339
from sandboxd.queue import JobQueue
from sandboxd.result import Verdict
from sandboxd.store import ATTEMPTS_MAX, Store, redis_errors

log = structlog.get_logger()

STUCK_S = 5.0
"""So long after it was first seen between queue and worker, a job is taken for lost on the way."""


def worker_name(settings: Settings, pid: int) -> str:
    """RQ's name of the worker with that process id on this host."""
    return f"{settings.prefix}.{socket.gethostname()}.{pid}".replace(":", ".")


def bury_worker(jobs: JobQueue, name: str) -> None:
    """Give back the job of the dead worker of that name, and forget the worker. Raises StoreUnavailable."""
    key = Worker.redis_worker_namespace_prefix + name
    with redis_errors():
        try:
            worker = Worker.find_by_key(key, connection=jobs.store.client, serializer=JSONSerializer)
            executions = worker.get_current_executions() if worker is not None else []
        except (ValueError, LookupError, TypeError, ResponseError) as error:  # UnicodeDecodeError is a ValueError
            log.error("refused: no record of a worker", worker=name, error=str(error))
            jobs.store.client.delete(key, WORKER_EXECUTIONS_KEY_TEMPLATE.format(name))
            worker, executions = None, []
        for execution in executions:
            _release(jobs, execution.job_id, execution.id)
        if worker is not None:
            worker.register_death()  # type: ignore[no-untyped-call]  # RQ leaves it untyped
        with jobs.store.client.pipeline() as pipeline:
            jobs.store.withdraw_catalogue(pipeline, name)
            pipeline.execute()
        _take_back_stuck(jobs, after_s=0.0)


def recover(jobs: JobQueue) -> None:
    """Take up the jobs of workers that are gone without a trace. Any number of workers may do so at once."""
    with redis_errors():
        expired: Any = jobs.store.client.zrangebyscore(jobs.rq.started_job_registry.key, 0, time.time())
        for entry in expired:
            try:
                job_id, _, execution_id = entry.decode().rpartition(":")
                _release(jobs, job_id, execution_id)
            except ValueError:  # no text, or no id that RQ takes
                log.error("refused: no execution", entry=entry[:64])
                jobs.store.client.zrem(jobs.rq.started_job_registry.key, entry)
        _take_back_stuck(jobs, after_s=STUCK_S)


def _release(jobs: JobQueue, job_id: str, execution_id: str) -> None:
    """End one execution; its job goes back to the front of the queue, or has failed."""
    with jobs.transaction() as pipeline:
        jobs.store.release(
            pipeline, job_id, attempt=None, lost=True, result=_lost_result(jobs.store, job_id), now=now_rfc3339()
        )
        # Together with the release, so that the job is never `queued` without being in the queue.
        jobs.push(pipeline, job_id, at_front=True)
        _forget(jobs, pipeline, job_id, execution_id)
        state = pipeline.execute()[0].decode()
    if state != "queued":
        with jobs.transaction() as pipeline:
            jobs.forget(pipeline, job_id)
            pipeline.execute()
    log.warning("a worker died in the middle of a job", job=job_id, state=state)


def _forget(jobs: JobQueue, pipeline: Pipeline, job_id: str, execution_id: str) -> None:
    execution = Execution(id=execution_id, job_id=job_id, connection=jobs.store.client)
    pipeline.delete(execution.key)
    pipeline.zrem(jobs.rq.started_job_registry.key, execution.composite_key)


def _lost_result(store: Store, job_id: str) -> bytes:
    record = store.job(job_id)
    result = JobResult(
        verdict=Verdict.INTERNAL_ERROR,
        reason=f"the worker died while it ran the job, {ATTEMPTS_MAX} times",
        stages=(),
        policy=Digested(name=record.policy if record else ""),
        image=Digested(name=record.image if record else ""),
        isolation=None,
    )
    return document.pack_result(result)


def _take_back_stuck(jobs: JobQueue, *, after_s: float) -> None:
    """Jobs that a worker took out of the queue and never claimed: it died in between. Back they go."""
    between = jobs.rq.intermediate_queue
    entries: Any = jobs.store.client.lrange(between.key, 0, -1)
    for entry in entries:
        try:
            job_id = entry.decode()
        except UnicodeDecodeError:
            jobs.drop(entry)
            continue
        record = jobs.store.job(job_id)
        if record is None or record.state != "queued":
            between.remove(job_id)
            continue
        if after_s > 0:
            between.set_first_seen(job_id)
            first_seen = between.get_first_seen(job_id)
            if first_seen is None or time.time() - first_seen.timestamp() < after_s:
                continue
        with jobs.transaction() as pipeline:
            pipeline.lrem(between.key, 1, job_id)
            # A worker that had it in hand all the same loses nothing: only one of the two can claim it.
            jobs.push(pipeline, job_id, at_front=True)
            pipeline.delete(between.get_first_seen_key(job_id))
            pipeline.execute()
        log.warning("a job was lost between queue and worker", job=job_id)
