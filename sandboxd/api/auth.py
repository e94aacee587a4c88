"""Who may ask: a token, and on loopback a Host header that names this machine.

A web page in a browser on this machine can send requests to 127.0.0.1, through a name of its own that it lets resolve
to it (DNS rebinding); such a request carries that name as its Host. And it cannot send `application/json` to another
origin unasked.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from flask import Flask, Response, g, request

from sandboxd.api.problems import problem
from sandboxd.api.services import Services

OPEN_PATHS = frozenset({"/v1/health", "/v1/ready", "/v1/openapi.json", "/v1/docs"})
"""Answered without a token: they tell nothing about anybody's job."""
NOBODY = "-"
"""Owner of the jobs of a server without authentication."""
_OWNER_LENGTH = 32


def register(app: Flask, services: Services) -> None:
    """Check every request before its body is read."""

    @app.before_request
    def _() -> Response | None:
        if services.settings.is_loopback and not is_loopback_name(request.headers.get("Host", "")):
            raise problem("foreign-host")
        if request.path in OPEN_PATHS:
            return None
        g.owner = NOBODY if services.settings.no_auth else _owner(services)
        return None


def is_loopback_name(host: str) -> bool:
    """Whether a Host header (`name`, `name:port`, `[v6]:port`) names this machine itself."""
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not name:
        name = host
    elif not port.isdecimal() and port:
        return False
    if name.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def token_hash(token: str) -> str:
    """sha256 of a token, hexadecimal: what the server's side keeps."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _owner(services: Services) -> str:
    """The owner that the request's token stands for. Raises Problem 401."""
    given = token_hash(_token())
    # A token just made is accepted at once: what was remembered is read again before anybody is turned away.
    if not _is_known(given, services.token_hashes.get()) and not _is_known(
        given, services.token_hashes.get(fresh=True)
    ):
        raise problem("unauthorized")
    return given[:_OWNER_LENGTH]


def _is_known(given: str, known: tuple[str, ...]) -> bool:
    """Compares with all of them, in constant time."""
    return any([hmac.compare_digest(given, each) for each in known])


def _token() -> str:
    header = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    key = request.headers.get("X-API-Key", "")
    if not key:
        raise problem("unauthorized")
    return key
