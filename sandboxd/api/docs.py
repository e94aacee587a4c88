"""The OpenAPI document, and the same as a page to read: rendered here, without a script and without another server."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from flask import Response, render_template
from flask_openapi.openapi import OpenAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sandboxd.api import answers
from sandboxd.api.problems import CONTENT_TYPE, KINDS
from sandboxd.api.schemas import JobIn
from sandboxd.config import Settings

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


_ANSWERS: list[type[BaseModel]] = [
    answers.Job, answers.Languages, answers.Policies, answers.Images, answers.Health, answers.ProblemDocument
]  # fmt: skip
_OTHER_PROBLEM = {
    "description": "Any other problem, such as one of HTTP itself: /v1/docs lists them.",
    "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
}


def register(app: OpenAPI) -> None:
    """/v1/openapi.json and /v1/docs. Both are made once: anybody may ask for them, and making them takes 20 ms."""

    @functools.cache
    def document() -> bytes:
        return msgspec.json.encode(openapi(app))

    @functools.cache
    def page() -> str:
        described = openapi(app)
        return render_template(
            "docs.html",
            info=described["info"],
            operations=_operations(described),
            schemas=sorted(described["components"]["schemas"].items()),
            kinds=KINDS,
            describe=describe_type,
        )

    @app.route("/v1/openapi.json")
    def _openapi() -> Response:
        return Response(document(), content_type="application/json")

    @app.route("/v1/docs")
    def _docs() -> Response:
        return Response(page(), content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _POLICY})


def openapi(app: OpenAPI) -> dict[str, Any]:
    """The document as the library generates it from the routes, with the models as pydantic describes them.

    The library knows but a part of JSON Schema, and leaves out what it does not know (`propertyNames`). Bounds that are
    settings are told as they are set.
    """
    settings: Settings = app.extensions["sandboxd"].settings
    document: dict[str, Any] = app.api_doc
    _, models = models_json_schema(
        [(JobIn, "validation"), *((answer, "serialization") for answer in _ANSWERS)],
        ref_template="#/components/schemas/{model}",
    )
    document["components"]["schemas"] = models["$defs"]
    job, file = (models["$defs"][name]["properties"] for name in ("JobIn", "FileIn"))
    job["source"]["maxLength"] = settings.source_max_bytes
    job["stdin"]["maxLength"] = -(-settings.stdin_max_bytes // 3) * 4  # as base64
    job["files"]["maxItems"] = settings.files_max
    file["content"]["maxLength"] = settings.body_max_bytes
    for methods in document["paths"].values():
        for operation in methods.values():
            # The library gives a 422 of its own form to each route that says none: those are the routes without input.
            if CONTENT_TYPE not in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"].pop("422", None)
            operation["responses"]["default"] = _OTHER_PROBLEM
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "wait":
                    parameter["schema"]["maximum"] = settings.wait_max_s
    return document


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            found.append({"path": path, "method": method.upper(), "operation": operation, "body": body})
    return found


def describe_type(schema: dict[str, Any]) -> str:
    """A schema in a few words: `string, at most 64 characters`, `array of FileIn`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "enum" in schema:
        return " | ".join(str(each) for each in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    text = str(schema.get("type", "any"))
    if "anyOf" in schema:
        text = " or ".join(describe_type(each) for each in schema["anyOf"])
    elif text == "array" and "items" in schema:
        text = f"array of {describe_type(schema['items'])}"
    elif text == "object" and isinstance(schema.get("additionalProperties"), dict):
        text = f"object of {describe_type(schema['additionalProperties'])}"
    bounds = {"maxLength": "at most {} characters", "maxItems": "at most {}", "minimum": "from {}", "maximum": "to {}"}
    return ", ".join([text, *(words.format(schema[key]) for key, words in bounds.items() if key in schema)])
