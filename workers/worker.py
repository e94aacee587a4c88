"""The RQ worker: takes one job after the other, and shares with RQ everything but the running of it.

RQ's own worker forks for each job and tells Redis of each step: 58 commands and 20 round trips. The job's program runs
in the launcher's sandbox in any case, so this one overrides `execute_job`, RQ's place for it, and needs two
transactions for a job:

    claim  (our record, RQ's execution, the worker's state)  ->  launcher  ->  finish (our result, RQ's records deleted)

Two threads: this one, and RQ's listener for commands, which does no more than poke an eventfd. Nothing forks, no
alarm is used: the
launcher keeps the limits. Sources: rq 3 `rq/worker/base.py`; pinned below 4, whose internals may differ.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
from collections.abc import Callable
from types import FrameType

import structlog
from redis.client import Pipeline
from rq import Queue, worker_registration
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.utils import now
from rq.worker import WorkerStatus

from sandboxd import document, watchdog
from sandboxd.document import now_rfc3339
from sandboxd.errors import InternalError, StoreFull, StoreUnavailable
from sandboxd.execution import Ended, no_result
from sandboxd.queue import JobQueue
from sandboxd.result import Verdict
from sandboxd.store import RUN_BELOW, Claim, redis_errors
from workers.bury import recover
from workers.launcher import Launcher
from workers.lean import HEARTBEAT_S, LeanWorker
from workers.tasks import run_job

log = structlog.get_logger()

LOST_AFTER_S = 20
"""An execution that was not renewed for so long is given to another worker."""
LAUNCHER_TIMEOUT_S = 15.0
"""How long a job waits for a launcher that went away; it is started anew by the supervisor."""
STORE_TIMEOUT_S = 20.0
"""How long a result waits for Redis to come back."""
ROOM_TIMEOUT_S = 5.0
"""How long a result waits for room in a full Redis: others that are just being stored take twice their size."""
_RETRY_S = 0.2


class SandboxWorker(LeanWorker):
    """Runs jobs of one instance, one at a time."""

    def __init__(self, jobs: JobQueue, launcher: Launcher, *, name: str) -> None:
        super().__init__(jobs, name=name)
        self._launcher = launcher
        self._cancel_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._running: str | None = None
        """The job a command may cancel; written under the lock, so that a late command never hits the next job."""
        self._cold = False

    # One job

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Claim, run, finish. What goes wrong with a job is its result; SystemExit when told to stop at once, and when
        Redis takes nothing: the job is then given back by who is started in this worker's place."""
        try:
            self._execute(job, queue)
        except StoreFull:
            raise
        except StoreUnavailable as error:
            log.error("this worker ends: its job is given back", job=job.id, error=str(error))
            raise SystemExit(os.EX_TEMPFAIL) from error

    def _execute(self, job: Job, queue: Queue) -> None:
        execution, claim = self._begin(job, queue)
        try:
            if claim.state != "queued":
                if not claim.state:
                    # Somebody else wrote to the queue, or it expired. What he wants to be called is never looked up.
                    log.error("refused: not a job of this service", rq_job=job.id)
                self._drop(job, execution, claim.state)
                return
            attempt, ended = self._run(job, execution, claim)
            if ended.judgement is None and self._cold and not self._is_cancelled(job):
                self._give_back(job, execution, attempt)
                raise SystemExit
            self._finish(job, execution, attempt, ended)
        finally:
            self._set_running(None)
            self._launcher.forget()

    def _set_running(self, job_id: str | None) -> None:
        """From here on commands mean this job; a poke that was meant for the one before is forgotten."""
        with self._lock, contextlib.suppress(BlockingIOError):
            self._running = job_id
            os.eventfd_read(self._cancel_fd)

    def _begin(self, job: Job, queue: Queue) -> tuple[Execution, Claim]:
        """One transaction: our claim, and what RQ's `prepare_execution` and `prepare_job_execution` record."""
        self._set_running(job.id)
        if self._cold:
            os.eventfd_write(self._cancel_fd, 1)
        with self._jobs.transaction() as pipeline:
            self._jobs.store.claim(
                pipeline,
                job.id,
                worker=f"{self.hostname}:{self.pid}",
                worker_name=self.name,
                now=now_rfc3339(),
            )
            execution = Execution.create(job, LOST_AFTER_S, pipeline=pipeline, worker_name=self.name)
            # Before it is in Redis: a command to cancel is honoured from then on.
            self.executions[execution.id] = execution
            super().heartbeat(LOST_AFTER_S + 60, pipeline=pipeline)
            super().set_state(WorkerStatus.BUSY, pipeline=pipeline)
            job.prepare_for_execution(self.name, pipeline=pipeline)
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            answer = pipeline.execute()[0]
        self._next_heartbeat = time.monotonic() + HEARTBEAT_S
        return execution, self._jobs.store.claimed(answer)

    def _run(self, job: Job, execution: Execution, claim: Claim) -> tuple[int, Ended]:
        """The ending, and the attempt that it belongs to: a fault of ours is tried once more."""
        attempt = claim.attempt

        def tick() -> None:
            self._tick(job, execution)

        while True:
            ended = run_job(job.id, claim, self._launcher, cancel_fd=self._cancel_fd, on_idle=tick)
            if ended.judgement is None or ended.judgement.verdict is not Verdict.INTERNAL_ERROR:
                return attempt, ended
            if claim.request is None or not (following := self._again(job, attempt)):
                return attempt, ended
            log.warning("a job is run once more", job=job.id, reason=ended.judgement.reason)
            attempt = following
            self._await_launcher(tick, LAUNCHER_TIMEOUT_S)

    def _again(self, job: Job, attempt: int) -> int:
        try:
            return self._jobs.store.again(job.id, attempt)
        except StoreUnavailable:
            return 0

    def _await_launcher(self, tick: Callable[[], None], timeout_s: float = math.inf) -> None:
        """Wait until the launcher answers; a poke or the deadline ends it too, and the next try says what is wrong."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(InternalError):
                self._launcher.connect()
                return
            if select.select([self._cancel_fd], [], [], _RETRY_S)[0]:
                return
            tick()

    # How it ends

    def _finish(self, job: Job, execution: Execution, attempt: int, ended: Ended) -> None:
        """Store the result, publish the end, and delete all that RQ recorded: one transaction."""
        try:
            stored = self._store_end(job, execution, attempt, ended, ROOM_TIMEOUT_S)
        except StoreFull as error:
            # Run once more it would find no room either. Its input makes some for the word of its end.
            log.error("a result found no room", job=job.id, error=str(error))
            ended = no_result(ended.policy.name, ended.image.name, f"there was no room for the result: {error}")
            self._jobs.store.drop_input(job.id)
            stored = self._store_end(job, execution, attempt, ended, STORE_TIMEOUT_S)
        if not stored:
            log.warning("a result came too late: the job is another worker's", job=job.id)
        judgement = ended.judgement
        log.info("job", job=job.id, state=ended.state, verdict=judgement and judgement.verdict)

    def _store_end(self, job: Job, execution: Execution, attempt: int, ended: Ended, room_timeout_s: float) -> bool:
        """Whether the result was stored. Redis may be away or full for a while: a result is worth waiting for."""
        judgement = ended.judgement
        result = document.pack_result(
            document.job_result(
                verdict=None if judgement is None else judgement.verdict,
                reason="cancelled while it ran" if judgement is None else judgement.reason,
                stages=ended.stages,
                policy=ended.policy,
                image=ended.image,
            )
        )
        begin = time.monotonic()
        while True:
            try:
                with self._jobs.transaction() as pipeline:
                    self._jobs.store.finish(
                        pipeline,
                        job.id,
                        attempt=attempt,
                        state=ended.state,
                        result=result,
                        now=now_rfc3339(),
                        also_delete=(job.key, job.execution_registry.key),
                    )
                    self._end_execution(job, execution, pipeline)
                    return bool(pipeline.execute()[0])
            except StoreUnavailable as error:
                timeout_s = room_timeout_s if isinstance(error, StoreFull) else STORE_TIMEOUT_S
                if time.monotonic() - begin > timeout_s:
                    raise
                watchdog.beat()
                log.warning("the result waits for Redis", job=job.id, result_bytes=len(result), error=str(error))
                time.sleep(_RETRY_S)

    def _drop(self, job: Job, execution: Execution, state: str) -> None:
        """The job is not to be run: it ended while it waited, or is in the queue twice and another worker has it."""
        with self._jobs.transaction() as pipeline:
            if state != "running":
                pipeline.delete(job.key, job.execution_registry.key)
            self._end_execution(job, execution, pipeline)
            pipeline.execute()

    def _give_back(self, job: Job, execution: Execution, attempt: int) -> None:
        """Told to stop at once: the job goes to the front of the queue, and nothing is lost but time."""
        with self._jobs.transaction() as pipeline:
            self._jobs.store.release(pipeline, job.id, attempt=attempt, lost=False, result=b"", now=now_rfc3339())
            self._jobs.push(pipeline, job.id, at_front=True)
            self._end_execution(job, execution, pipeline)
            pipeline.execute()
        log.warning("a job was given back", job=job.id)

    def _end_execution(self, job: Job, execution: Execution, pipeline: Pipeline) -> None:
        self.cleanup_execution(job, pipeline=pipeline, execution=execution)
        super().set_state(WorkerStatus.IDLE, pipeline=pipeline)

    # Signs of life

    def _tick(self, job: Job, execution: Execution) -> None:
        """While a job runs: renew what expires, and look whether its end was asked for, should the command be lost."""
        watchdog.beat()
        if time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + HEARTBEAT_S
        try:
            with self._jobs.transaction() as pipeline:
                self._jobs.store.cancel_asked(pipeline, job.id)
                super().heartbeat(LOST_AFTER_S + 60, pipeline=pipeline)
                execution.heartbeat(job.started_job_registry, LOST_AFTER_S, pipeline=pipeline)
                if self._launcher.published:
                    self._jobs.store.publish_catalogue(pipeline, self.name, self._launcher.published)
                cancel = pipeline.execute()[0]
        except InternalError as error:
            log.warning("no sign of life could be given", job=job.id, error=str(error))
            return
        if cancel:
            os.eventfd_write(self._cancel_fd, 1)

    def run_maintenance_tasks(self) -> None:
        """Every few seconds between jobs, and before the first: renew the offer, take up what other workers lost."""
        self.last_cleaned_at = now()  # type: ignore[assignment]  # RQ leaves it untyped, starting as None
        try:
            if not self._renew_offer():
                self._await_launcher(self._idle)
                self._renew_offer()
            recover(self._jobs)
            with redis_errors():
                worker_registration.clean_worker_registry(self._jobs.rq)
        except InternalError as error:
            log.warning("maintenance failed, and is tried again", error=str(error))

    def await_readiness(self) -> None:
        """A worker without a launcher takes no job: another host's worker could run it. Nor does one whose result might
        find no room.
        """
        self._await_launcher(self._idle)
        self._await_room()

    def _await_room(self) -> None:
        full = False
        while True:
            try:
                self._jobs.store.check_room(RUN_BELOW)
            except StoreFull as error:
                if not full:
                    log.warning("no job is begun", error=str(error))
                full = True
            except StoreUnavailable:
                return  # RQ waits for it
            else:
                return
            if self.should_run_maintenance_tasks:
                self.run_maintenance_tasks()
            with contextlib.suppress(StoreUnavailable), redis_errors():
                self._idle()
            time.sleep(_RETRY_S)

    def _idle(self) -> None:
        """While there is no job: a sign of life, and the end if it was asked for."""
        if self._stop_requested:
            raise StopRequested
        self.heartbeat()

    def _renew_offer(self) -> bool:
        """Publish what the launcher offers now; False and nothing while it is away: no job is taken that cannot run."""
        try:
            self._launcher.refresh()
        except InternalError as error:
            self._launcher.close()
            log.warning("the launcher does not answer", error=str(error))
            self.withdraw_offer()
            return False
        with redis_errors(), self.connection.pipeline() as pipeline:
            self._jobs.store.publish_catalogue(pipeline, self.name, self._launcher.published)
            pipeline.execute()
        return True

    def withdraw_offer(self) -> None:
        """Offer nothing any more."""
        with redis_errors(), self.connection.pipeline() as pipeline:
            self._jobs.store.withdraw_catalogue(pipeline, self.name)
            pipeline.execute()

    # Orders from outside

    def _is_cancelled(self, job: Job) -> bool:
        return self._stopped_job_id == job.id

    def kill_horse(self, sig: object = None) -> None:
        """Cancel the job that a command named. Called in RQ's listener thread."""
        with self._lock:
            if self._running is not None and self._running == self._stopped_job_id:
                os.eventfd_write(self._cancel_fd, 1)

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """A second SIGTERM or Ctrl-C: the sandbox is killed and the job given back."""
        if self._shutdown_requested_date is not None and (now() - self._shutdown_requested_date).total_seconds() < 1:
            # A terminal and a supervisor may both have sent the first one.
            return
        self._cold = True
        os.eventfd_write(self._cancel_fd, 1)
