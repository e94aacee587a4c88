"""Errors of the API: `application/problem+json` (RFC 9457), one stable `type` for each kind, never an echo of what
was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
import structlog
from flask import Flask, Response
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from sandboxd.bounds import printable
from sandboxd.errors import InputError, InternalError, StoreFull, StoreUnavailable

log = structlog.get_logger()

CONTENT_TYPE = "application/problem+json"
_FIELD_ERRORS_MAX = 20


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field, written as in `files[0].path`."""

    field: str
    message: str


class Problem(Exception):  # it is an answer, not a failure
    """An answer that is not a success. `kind` is the stable name, the fragment of `type`."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """As HTTP."""
        body: dict[str, object] = {
            "type": f"/v1/docs#{self.kind}",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = self.errors
        return Response(msgspec.json.encode(body), self.status.value, self.headers, content_type=CONTENT_TYPE)


KINDS: dict[str, tuple[HTTPStatus, str]] = {
    "malformed-body": (
        HTTPStatus.BAD_REQUEST,
        "The body is not JSON in UTF-8, holds NaN or a key twice, or nests too deep.",
    ),
    "bad-request": (HTTPStatus.BAD_REQUEST, "The request is not valid HTTP."),
    "unauthorized": (HTTPStatus.UNAUTHORIZED, "No token was sent, or a wrong one."),
    "foreign-host": (HTTPStatus.FORBIDDEN, "The server listens on loopback and the Host header names another machine."),
    "unknown-job": (HTTPStatus.NOT_FOUND, "There is no such job, or no longer, or it was made with another token."),
    "not-found": (HTTPStatus.NOT_FOUND, "There is nothing at this path."),
    "method-not-allowed": (HTTPStatus.METHOD_NOT_ALLOWED, "The path does not know this method."),
    "request-timeout": (HTTPStatus.REQUEST_TIMEOUT, "The request's head or body did not arrive in time."),
    "job-ended": (HTTPStatus.CONFLICT, "The job has ended already and cannot be cancelled."),
    "body-too-large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is over the bound."),
    "uri-too-long": (HTTPStatus.REQUEST_URI_TOO_LONG, "The request's first line is over 4094 bytes."),
    "unsupported-media-type": (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is not sent as application/json."),
    "invalid-input": (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "A field is unknown, missing, of a wrong type or over its bound.",
    ),
    "expectation-failed": (HTTPStatus.EXPECTATION_FAILED, "The Expect header asks for something but 100-continue."),
    "headers-too-large": (
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "More than 50 header fields, a field over 8190 bytes, or more than 32 KiB of them.",
    ),
    "queue-full": (HTTPStatus.SERVICE_UNAVAILABLE, "Too many jobs wait. Retry-After says when to try again."),
    "no-worker": (HTTPStatus.SERVICE_UNAVAILABLE, "No worker offers anything now. Retry-After says when to try again."),
    "store-unavailable": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Redis does not answer. Retry-After says when to try again.",
    ),
    "store-full": (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "There is no room for more results until old ones expire. Retry-After says when to try again.",
    ),
    "internal-error": (HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; its log says why."),
}
"""Every kind of problem: its status and what it means. Printed by /v1/docs."""


def problem(
    kind: str, detail: str = "", *, errors: Sequence[FieldError] = (), retry_after_s: int | None = None
) -> Problem:
    """The problem of that kind, with the kind's own text when `detail` is empty."""
    status, meaning = KINDS[kind]
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Problem(status, kind, detail or meaning, errors=errors, headers=headers)


def invalid(field: str, message: str) -> Problem:
    """One field is wrong."""
    detail = f"{field}: {message}" if field else message
    return problem("invalid-input", detail, errors=[FieldError(field, message)])


def field_path(location: Sequence[int | str]) -> str:
    """`("files", 0, "path")` -> `files[0].path`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            path += ("." if path else "") + printable(part)
    return path


def from_validation(error: ValidationError) -> Problem:
    """What pydantic found, in our words; all of it up to a bound."""
    found = error.errors(include_url=False, include_input=False)
    errors = [
        FieldError(field_path(each["loc"]), _message(each["type"], each.get("ctx", {}), each["msg"])) for each in found
    ]
    first = errors[0]
    detail = f"{first.field}: {first.message}" if first.field else first.message
    return problem("invalid-input", detail, errors=errors[:_FIELD_ERRORS_MAX])


_TYPES = {
    "string_type": "must be a string",
    "string_unicode": "must not hold a lone surrogate",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "missing": "is required",
    "extra_forbidden": "unknown field",
}


def _message(kind: str, context: Mapping[str, object], default: str) -> str:
    if kind in _TYPES:
        return _TYPES[kind]
    match kind:
        case "too_long":
            return f"must have at most {context['max_length']} entries"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "literal_error":
            return f"must be {context['expected']}"
        case _:
            return default


def register(app: Flask) -> None:
    """Let every error of every route leave as a problem."""

    @app.errorhandler(Problem)
    def _(error: Problem) -> Response:
        return error.response()

    @app.errorhandler(InputError)
    def _(error: InputError) -> Response:
        return invalid(error.field, error.message).response()

    @app.errorhandler(StoreUnavailable)
    def _(error: StoreUnavailable) -> Response:
        log.warning("store unavailable", error=str(error))
        return problem("store-unavailable", retry_after_s=2).response()

    @app.errorhandler(StoreFull)
    def _(error: StoreFull) -> Response:
        log.warning("store full", error=str(error))
        return problem("store-full", str(error), retry_after_s=30).response()

    @app.errorhandler(InternalError)
    def _(error: InternalError) -> Response:
        log.error("internal error", error=str(error), exc_info=error)
        return problem("internal-error").response()

    @app.errorhandler(HTTPException)
    def _(error: HTTPException) -> Response:
        return _from_http(error).response()

    @app.errorhandler(Exception)
    def _(error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return problem("internal-error").response()


def _from_http(error: HTTPException) -> Problem:
    if isinstance(error, RequestEntityTooLarge):
        return problem("body-too-large")
    if isinstance(error, MethodNotAllowed):
        found = problem("method-not-allowed")
        found.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return found
    if error.code == HTTPStatus.NOT_FOUND:
        return problem("not-found")
    if error.code is not None and error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return problem("bad-request")
    log.error("unexpected HTTP error", exc_info=error)
    return problem("internal-error")
