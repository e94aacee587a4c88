"""The exceptions of sandboxd. Three kinds of failure are never mixed.

A program's outcome is a value (`sandboxd.result`), never an exception. What remains are two kinds::

    SandboxdError
    ├── InputError              the caller's mistake: a field, what is wrong with it, the bound
    │   └── PolicyError         a policy, language or seccomp file is wrong: file and key
    └── InternalError           our failure: the job may be retried
        ├── StepError           a step of a sandbox's plan failed: step, subject, errno
        ├── HostError           the host lacks something sandboxd must have: name and remedy
        ├── LauncherUnavailable no launcher answers, or it went away in the middle of a job
        ├── StoreUnavailable    Redis does not answer
        │   └── StoreFull       Redis has no room
        └── ProtocolError       a peer sent something that the protocol does not allow
"""

from __future__ import annotations

import errno as errno_names
import os


class SandboxdError(Exception):
    """Base of every exception raised on purpose by sandboxd."""


class InputError(SandboxdError):
    """The caller's mistake. `field` is written as in `files[0].path`; `message` names the bound."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


class PolicyError(InputError):
    """A policy, language or seccomp file is wrong. `field` is `FILE: KEY`."""


class InternalError(SandboxdError):
    """Our failure, never the program's: the job is retried once, then ends as `internal_error`."""


class StepError(InternalError):
    """A step of a sandbox's plan failed.

    `step` is the step's name (`Mount`), `subject` what it acted on (`/proc`), `errno` the kernel's answer,
    `hint` what an operator can do about it.
    """

    def __init__(self, step: str, subject: str, errno: int, hint: str = "") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        text = f"{f'{step} {subject}'.rstrip()}: {os.strerror(errno)} ({name})"
        super().__init__(f"{text}. {hint}" if hint else text)
        self.step = step
        self.subject = subject
        self.errno = errno
        self.hint = hint


class HostError(InternalError):
    """The host lacks something that sandboxd must have; `remedy` is the command that mends it."""

    def __init__(self, name: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{name}: {message}" + (f". To mend it: {remedy}" if remedy else ""))
        self.name = name
        self.remedy = remedy


class LauncherUnavailable(InternalError):
    """No launcher listens on the instance's socket, or it went away in the middle of a job."""


class StoreUnavailable(InternalError):
    """Redis does not answer, or is still loading: a client may try again later."""


class StoreFull(StoreUnavailable):
    """Redis has no room, or only what the results of accepted jobs need."""


class ProtocolError(InternalError):
    """A peer sent a message that is malformed, over its bound or out of order."""
