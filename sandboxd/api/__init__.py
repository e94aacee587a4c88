"""The HTTP interface: JSON in and out, version 1 of the contract in `docs/http.md`. It talks to Redis alone.

It never touches a sandbox: `sandboxd.jail` is not imported here, and the process has no privilege.
"""

from __future__ import annotations

from flask import Response, request
from flask_openapi.models.info import Info
from flask_openapi.openapi import OpenAPI

import sandboxd
from sandboxd.api import answers, auth, docs, jobs, problems, system
from sandboxd.api.body import BoundedRequest
from sandboxd.api.services import Services
from sandboxd.config import Settings
from sandboxd.errors import InputError

__all__ = ["create_app"]


class _App(OpenAPI):
    request_class = BoundedRequest


def create_app(settings: Settings) -> OpenAPI:
    """The WSGI application of one process."""
    services = Services(settings)
    app = _App(
        "sandboxd.api",
        info=Info(
            title="sandboxd",
            version=sandboxd.__version__,
            description="Runs code nobody trusts, in a fresh container that leaves nothing behind.",
        ),
        security_schemes={
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        },
        validation_error_model=answers.ProblemDocument,
        validation_error_callback=lambda error: problems.from_validation(error).response(),
        doc_ui=False,
        static_folder=None,
    )
    app.openapi_version = "3.1.0"
    app.config["MAX_CONTENT_LENGTH"] = settings.body_max_bytes + 1
    app.extensions["sandboxd"] = services
    problems.register(app)
    auth.register(app, services)
    app.before_request(_refuse_repeated)
    app.register_api(jobs.blueprint(services))
    app.register_api(system.blueprint(services))
    docs.register(app)
    app.after_request(_harden)
    return app


def _refuse_repeated() -> None:
    """Of two values nobody knows which is meant; the library would take the first."""
    for name, values in request.args.lists():
        if len(values) > 1:
            raise InputError(name, "must be given once")


def _harden(response: Response) -> Response:
    """Answers are data: never to be guessed at by a browser, nor kept by a cache."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")
    return response
