"""The API under gunicorn: threads, since nearly all of a request's time is waiting for a job.

A request that waits holds a thread and no connection to Redis; 500 of them cost 15 MB. A connection without a request
holds no thread: `connections`.
"""

from __future__ import annotations

import resource
from typing import Any

import structlog
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]  # it has no types

from sandboxd import log as logging
from sandboxd.api import create_app
from sandboxd.config import Settings
from sandboxd.errors import HostError

log = structlog.get_logger()

KEEP_ALIVE_S = 15
GRACEFUL_S = 15
_OWN_FILES_MAX = 64
_LINE_MAX_BYTES = 4094
_HEADERS_MAX = 50
_HEADER_MAX_BYTES = 8190


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn, configured from the settings alone: no file, no environment, no command line of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        logging.configure("api", level=settings.log_level, json=settings.log_json)
        super().__init__()

    def init(self, _parser: object, _options: object, _arguments: object) -> None:
        """Nothing is read from gunicorn's own command line."""

    def load_config(self) -> None:
        """Set every option that matters."""
        for name, value in gunicorn_options(self._settings).items():
            self.cfg.set(name, value)

    def load(self) -> Any:  # noqa: ANN401  # a WSGI application
        """The application of one process: called in each of them, after the fork."""
        return create_app(self._settings)


def _connections_max(threads: int) -> int:
    """Four for each thread, as far as the limit on open files goes: a thread may hold one to Redis beside its client's.

    Raises HostError when there would not be one for each thread.
    """
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    connections_max = min(4 * threads, files_max - threads - _OWN_FILES_MAX)
    if connections_max <= threads:
        raise HostError(
            "open files",
            f"the hard limit of {files_max} is too low for {threads} threads",
            "raise it (LimitNOFILE= of the unit, or ulimit -Hn), or set api_threads lower",
        )
    return connections_max


def gunicorn_options(settings: Settings) -> dict[str, object]:
    """The whole configuration."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {
        "bind": [f"unix:{settings.socket}" if settings.socket else f"{host}:{settings.port}"],
        "worker_class": "sandboxd.api.connections.Worker",
        "workers": settings.api_processes,
        "threads": settings.api_threads,
        "worker_connections": _connections_max(settings.api_threads),
        "backlog": 1024,
        "keepalive": KEEP_ALIVE_S,
        "timeout": 60,
        "graceful_timeout": GRACEFUL_S,
        "max_requests": 0,
        "limit_request_line": _LINE_MAX_BYTES,
        "limit_request_fields": _HEADERS_MAX,
        "limit_request_field_size": _HEADER_MAX_BYTES,
        "control_socket_disable": True,
        "forwarded_allow_ips": "",
        "proc_name": "sandboxd-api",
        "loglevel": "warning",
        "umask": 0o007,
    }
