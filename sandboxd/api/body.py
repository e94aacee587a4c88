"""From the bytes of a request to plain JSON values, with every bound checked before anything is built from them.

A parser asked to build what a client describes can be made to recurse, to allocate a hundred times the body, or to work
for minutes. So one linear scan comes first: it counts the structure, stops at the first excess, and what follows is
bounded.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flask import Request
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]  # gunicorn has no types
from werkzeug.exceptions import ClientDisconnected

from sandboxd.api.problems import field_path, invalid, problem
from sandboxd.spec import JSON_MAX_DEPTH

STRUCTURE_MAX = 250_000
"""Strings, brackets and commas in a body. The largest job has about 3,000."""
_DIGITS_MAX = 40
_HUGE: int = 10**_DIGITS_MAX
_EXACT_BELOW = 2**53

# A string is one token, also one that never ends: trying again at each quote inside of it would take quadratic time.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")
# Only a body with such an escape can hold a lone surrogate: UTF-8 itself cannot.
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class BoundedRequest(Request):
    """A request whose `get_json` is ours: the OpenAPI library calls it to get the body, and would ignore an error."""

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:  # noqa: ANN401  # Flask's signature
        """The body as an object. Raises Problem: 408, 413, 415, 400 or 422."""
        # `create_app` lets one byte more through: werkzeug cuts a chunked body at its limit, and says nothing.
        bound = (self.max_content_length or 1) - 1
        if self.mimetype != "application/json":
            raise problem("unsupported-media-type")
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise problem("unsupported-media-type", "Content-Encoding must be identity.")
        if self.content_length is not None and self.content_length > bound:
            raise problem("body-too-large", f"The body may have at most {bound} bytes.")
        try:
            body = self.get_data(cache=False)
        except ClientDisconnected as error:
            # werkzeug's word for every failure of the connection; a client that is too slow still hears the answer.
            raise problem("request-timeout" if isinstance(error.__context__, TimeoutError) else "bad-request") from None
        except ParseException:  # a chunk that is none
            raise problem("bad-request") from None
        if self.content_length is not None and len(body) < self.content_length:
            raise problem("bad-request", "The body ended before its Content-Length.")
        if len(body) > bound:
            raise problem("body-too-large", f"The body may have at most {bound} bytes.")
        return parse(body)


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object from bytes. Raises Problem 400 (malformed, not UTF-8, NaN, a key twice, too deep) or 422 (not an
    object).
    """
    check_structure(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise problem("malformed-body", f"The body is not UTF-8: byte {error.start}.") from None
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_number,
            object_pairs_hook=_object,
        )
    except ValueError as error:
        position = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise problem("malformed-body", f"The body is not JSON: {_reason(error)}{position}.") from None
    if not isinstance(value, dict):
        raise invalid("", "the body must be an object")
    if _SURROGATE_ESCAPE.search(body):
        _refuse_surrogates(value, [])
    return value


def check_structure(body: bytes) -> None:
    """Raises Problem 400 when the body nests deeper, or has more parts, than any job may."""
    depth = count = 0
    for match in _TOKEN.finditer(body):
        count += 1
        if count > STRUCTURE_MAX:
            raise problem("malformed-body", f"The body has more than {STRUCTURE_MAX} parts.")
        token = match[0]
        if token in _OPENING:
            depth += 1
            if depth > JSON_MAX_DEPTH:
                raise problem("malformed-body", f"The body nests deeper than {JSON_MAX_DEPTH}.")
        elif token in _CLOSING:
            depth -= 1


class _RefusedError(ValueError):
    """Valid for the parser, refused by us; the text is ours."""


def _reason(error: ValueError) -> str:
    if isinstance(error, _RefusedError):
        return str(error)
    # The parser's own texts are constant: they quote nothing of the body.
    return error.msg[:1].lower() + error.msg[1:] if isinstance(error, json.JSONDecodeError) else "a number is malformed"


def _refuse_constant(_name: str) -> float:
    raise _RefusedError("NaN and Infinity are no JSON")


def _bounded_int(digits: str) -> int:
    """Converting a million digits takes seconds; a number of more than 40 is out of every bound in any case."""
    if len(digits) <= _DIGITS_MAX:
        return int(digits)
    return -_HUGE if digits.startswith("-") else _HUGE


def _number(digits: str) -> float | int:
    """JSON, and JSON Schema, know one kind of number: 64.0 and 6.4e1 are the integer 64, as far as floats are exact."""
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) < _EXACT_BELOW else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _RefusedError("a key stands twice in one object")
    return value


def _refuse_surrogates(value: object, location: list[int | str]) -> None:
    """Raises Problem 422 naming the field: a lone surrogate is no character and cannot be written as UTF-8."""
    if isinstance(value, str):
        if not _is_text(value):
            raise invalid(field_path(location), "must not hold a lone surrogate")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not _is_text(key):
                raise invalid(field_path([*location, key]), "a name must not hold a lone surrogate")
            _refuse_surrogates(item, [*location, key])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, [*location, index])


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
