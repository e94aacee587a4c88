"""Logging, set up once by each entry point: structlog on standard error, for people or as one JSON object a line.

A payload's bytes are never logged: what a program prints is its own, may be secret and may contain escape sequences.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys

import structlog

_STDERR_FD = 2


class _Component:
    """Adds the component's name: a processor, not a context variable, so that every thread's lines carry it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(
        self, _logger: structlog.types.WrappedLogger, _method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        event["component"] = self._name
        return event


class _Stderr(io.TextIOBase):
    """Standard error, unbuffered. Where it takes nothing (its reader is gone, its disk is full) a line is lost, and
    nothing else: who logs has more important things to do next."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(_STDERR_FD, text.encode(errors="backslashreplace"))
        return len(text)


def configure(component: str, *, level: str = "info", json: bool = False) -> None:
    """Set up structlog for this process; `component` (`api`, `worker`, ...) is part of each line."""
    # Plain tracebacks: the default one prints local variables, and with them what a client sent.
    renderers: list[structlog.types.Processor] = [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
    ]
    if json:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _Component(component),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(_Stderr()),  # type: ignore[arg-type]  # all of a TextIO that is used
        cache_logger_on_first_use=True,
    )
