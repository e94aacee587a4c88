"""Jobs: make one, look at it, wait for it, cancel it."""

from __future__ import annotations

import contextlib
import re
import secrets
import select
import threading
import time
from typing import TYPE_CHECKING, Any

import structlog
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from flask_openapi.types import ResponseDict

from sandboxd import document
from sandboxd.api import answers
from sandboxd.api.problems import CONTENT_TYPE, invalid, problem
from sandboxd.api.schemas import JOB_ID, JobIn, JobPath, NoQuery, WaitQuery, to_job
from sandboxd.api.services import Services
from sandboxd.document import Digested, JobResult, now_rfc3339
from sandboxd.languages import plan_stages
from sandboxd.store import ACCEPT_BELOW, JobRecord

if TYPE_CHECKING:
    from sandboxd.api.connections import ClientSocket

log = structlog.get_logger()

_CLIENT_CHECK_S = 1.0
_ID_BYTES = 16
_ID = re.compile(JOB_ID)
CANCEL_WAIT_S = 5.0
"""How long DELETE waits for the worker to end a running job; it takes milliseconds."""

_PROBLEM = {"content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}}


def problems(*statuses: int) -> ResponseDict:
    """The problem answers of a route, for the OpenAPI document."""
    return {status: {**_PROBLEM, "headers": _PROBLEM_HEADERS.get(status, {})} for status in statuses}


def _header(schema: dict[str, object], description: str) -> dict[str, object]:
    return {"schema": schema, "description": description, "required": True}


_PROBLEM_HEADERS: dict[int, dict[str, object]] = {
    401: {"WWW-Authenticate": _header({"type": "string", "const": "Bearer"}, "How to say who asks.")},
    503: {"Retry-After": _header({"type": "integer", "minimum": 1}, "Seconds after which to try again.")},
}
# A program that reads the document learns where a job's id goes.
_TAKEN: dict[str, Any] = {
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}},
    "headers": {
        "Location": _header({"type": "string", "pattern": "^/v1/jobs/[0-9a-f]{32}$"}, "Where the job is looked at.")
    },
    "links": {
        operation: {"operationId": operation, "parameters": {"job_id": "$response.body#/id"}}
        for operation in ("get_job", "cancel_job")
    },
}


def operation_id(name: str, path: str, method: str) -> str:
    """The function's name: a client's generator makes its own out of it."""
    return name


def blueprint(services: Services) -> APIBlueprint:
    """The routes below /v1/jobs."""
    api = APIBlueprint(
        "jobs",
        __name__,
        url_prefix="/v1/jobs",
        abp_tags=[Tag(name="jobs")],
        abp_security=[{"bearer": []}, {"key": []}],
        operation_id_callback=operation_id,
    )

    @api.post("", summary="Run a program", responses={
        200: dict(_TAKEN), 202: dict(_TAKEN), **problems(400, 401, 403, 413, 415, 422, 503),
    })  # fmt: skip
    def create_job(query: WaitQuery, body: JobIn) -> Response:
        """202 with the job, 200 when it ended while the request waited."""
        wait_s = _wait_s(query, services)
        record = _create(body, services, wait_s)
        response = _answer(record, 200 if record.ended else 202)
        response.headers["Location"] = f"/v1/jobs/{record.id}"
        return response

    @api.get("/<job_id>", summary="A job", responses={200: answers.Job, **problems(401, 403, 404, 422, 503)})
    def get_job(path: JobPath, query: WaitQuery) -> Response:
        """The job as it is, or as it is when it has ended or `wait` seconds are over."""
        wait_s = _wait_s(query, services)
        record = _find(path.job_id, services)
        if wait_s > 0 and not record.ended:
            record = _wait(record.id, wait_s, services)
        return _answer(record, 200)

    @api.delete("/<job_id>", summary="Cancel a job", responses={
        200: answers.Job, 202: answers.Job, **problems(401, 403, 404, 409, 422, 503),
    })  # fmt: skip
    def cancel_job(path: JobPath, query: NoQuery) -> Response:
        """A queued job never runs, a running one is killed. 202 when that takes longer than a few seconds."""
        record = _cancel(path.job_id, services)
        return _answer(record, 200 if record.ended else 202)

    return api


def _create(body: JobIn, services: Services, wait_s: float) -> JobRecord:
    catalogue = services.catalogue()
    request = to_job(body, services.settings, catalogue)
    plan = plan_stages(request, catalogue)
    if services.queue.depth() >= services.settings.queue_max:
        raise problem("queue-full", retry_after_s=5)
    services.store.check_room(ACCEPT_BELOW)
    record = JobRecord(
        id=secrets.token_hex(_ID_BYTES),
        state="queued",
        owner=g.owner,
        policy=plan[-1].policy,
        image=plan[-1].image,
        created_at=now_rfc3339(),
    )
    if wait_s <= 0:
        services.queue.submit(record, request)
        return record
    with services.hub.watch(record.id) as woken:
        services.queue.submit(record, request)
        return _wait_woken(record, woken, wait_s, services)


def _wait_s(query: WaitQuery, services: Services) -> float:
    if query.wait > services.settings.wait_max_s:
        raise invalid("wait", f"must be at most {services.settings.wait_max_s:g}")
    return query.wait


def _find(job_id: str, services: Services) -> JobRecord:
    """The caller's own job. One problem for all else, so that nobody learns which ids exist."""
    record = services.store.job(job_id) if _ID.fullmatch(job_id) else None
    if record is None or record.owner != g.owner:
        raise problem("unknown-job")
    return record


def _wait(job_id: str, wait_s: float, services: Services) -> JobRecord:
    with services.hub.watch(job_id) as woken:
        record = _find(job_id, services)
        return _wait_woken(record, woken, wait_s, services)


def _wait_woken(record: JobRecord, woken: threading.Event, wait_s: float, services: Services) -> JobRecord:
    """Look at the job each time its waiter is woken, until it has ended, the time is over, the client is gone, or this
    process was told to stop.

    When too many wait already it is not waited for: a client that finds its job running asks again.
    """
    if not services.waiting.acquire(blocking=False):
        return record
    try:
        deadline = time.monotonic() + wait_s
        while not record.ended and (left_s := deadline - time.monotonic()) > 0 and not _is_over():
            with _idle():
                is_woken = woken.wait(min(left_s, _CLIENT_CHECK_S))
            if is_woken:
                woken.clear()
                record = _find(record.id, services)
        return record if record.ended else _find(record.id, services)
    finally:
        services.waiting.release()


def _connection() -> ClientSocket | None:
    """The client's, under our server."""
    found: ClientSocket | None = request.environ.get("gunicorn.socket")
    return found


def _idle() -> contextlib.AbstractContextManager[None]:
    """While this thread waits, the server may let another one work."""
    connection = _connection()
    return contextlib.nullcontext() if connection is None else connection.idle()


def _is_over() -> bool:
    """Whether the server stops, or the client closed its side of the connection: nobody would read what is waited
    for."""
    connection = _connection()
    if connection is None:
        return False
    if connection.places.stopping.is_set():
        return True
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _cancel(job_id: str, services: Services) -> JobRecord:
    before = _find(job_id, services)
    if before.state in ("finished", "failed"):
        raise problem("job-ended")
    if before.state == "cancelled":
        return before
    with services.hub.watch(job_id) as woken:
        found = services.queue.cancel(job_id, g.owner, now_rfc3339())
        log.info("cancel", job=job_id, state=found)
        record = _wait_woken(_find(job_id, services), woken, CANCEL_WAIT_S, services)
    if record.state in ("finished", "failed"):
        # It ended by itself before the wish arrived.
        raise problem("job-ended")
    return record


def _answer(record: JobRecord, status: int) -> Response:
    result = (
        document.unpack_result(record.result)
        if record.result
        else JobResult(
            verdict=None,
            reason="cancelled before it ran" if record.state == "cancelled" else None,
            stages=(),
            policy=Digested(name=record.policy),
            image=Digested(name=record.image),
            isolation=None,
        )
    )
    whole = document.job_document(
        result,
        job_id=record.id,
        state=record.state,
        created_at=record.created_at,
        started_at=record.started_at or None,
        finished_at=record.finished_at or None,
        worker=record.worker or None,
    )
    return Response(document.encode(whole), status, content_type="application/json")
