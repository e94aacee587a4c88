"""Logging, set up once by each entry point: structlog on standard error, for people or as one JSON object a line.

A payload's bytes are never logged: what a program prints is its own, may be secret and may contain escape sequences.
"""

from __future__ import annotations

import io
import logging
import os
import select

import structlog

_STDERR_FD = 2
_PATIENCE_MS = 50
"""A reader may need so long, once."""


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
    """Standard error, unbuffered. Where it takes nothing (its reader is gone or does not read, its disk is full) lines
    are lost, and nothing else: who logs has more important things to do next. How many is said when it takes some
    again."""

    def __init__(self) -> None:
        try:
            os.fstat(_STDERR_FD)
        except OSError:  # closed: what is opened next would get its number, and the log
            os.dup2(os.open(os.devnull, os.O_WRONLY), _STDERR_FD)
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(_STDERR_FD, select.POLLOUT)

    def write(self, text: str) -> int:
        said = f"{self._lost} lines of the log were lost\n" if self._lost else ""
        if self._written((said + text).encode(errors="backslashreplace")):
            self._lost = 0
        else:
            self._lost += 1
        return len(text)

    def _written(self, data: bytes) -> bool:
        while data:
            # A pipe that is writable takes so much without waiting (pipe(7)).
            if not self._poll.poll(0 if self._lost else _PATIENCE_MS):
                return False
            try:
                data = data[os.write(_STDERR_FD, data[: select.PIPE_BUF]) :]
            except OSError:
                return False
        return True


def configure(component: str, *, level: str = "info", json: bool = False) -> None:
    """Set up structlog for this process; `component` (`api`, `worker`, ...) is part of each line."""
    # Plain tracebacks: the default one prints local variables, and with them what a client sent.
    renderers: list[structlog.types.Processor] = [
        structlog.dev.ConsoleRenderer(colors=os.isatty(_STDERR_FD), exception_formatter=structlog.dev.plain_traceback)
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
