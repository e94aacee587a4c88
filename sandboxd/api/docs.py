"""The OpenAPI document, and the same as a page to read: rendered here, without a script and without another server."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from flask import Response, render_template
from flask_openapi.openapi import OpenAPI

from sandboxd.api import answers
from sandboxd.api.problems import CONTENT_TYPE, KINDS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


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
    """The document as the library generates it from the routes and models."""
    document: dict[str, Any] = app.api_doc
    schemas = document["components"]["schemas"]
    if "ProblemDocument" not in schemas:
        schemas["ProblemDocument"] = answers.ProblemDocument.model_json_schema(
            ref_template="#/components/schemas/{model}", mode="serialization"
        )
    # The library hangs a copy of each definition on the schemas that use it, beside the shared one they refer to.
    for schema in schemas.values():
        for name, definition in schema.pop("$defs", {}).items():
            schemas.setdefault(name, definition)
    # It also gives a 422 of its own form to each route that says none: those are the routes without input.
    for methods in document["paths"].values():
        for operation in methods.values():
            if CONTENT_TYPE not in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"].pop("422", None)
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
    if "anyOf" in schema:
        return " or ".join(describe_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(each) for each in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    text = str(schema.get("type", "any"))
    if text == "array" and "items" in schema:
        text = f"array of {describe_type(schema['items'])}"
    if text == "object" and isinstance(schema.get("additionalProperties"), dict):
        text = f"object of {describe_type(schema['additionalProperties'])}"
    bounds = {"maxLength": "at most {} characters", "maxItems": "at most {}", "minimum": "from {}", "maximum": "to {}"}
    return ", ".join([text, *(words.format(schema[key]) for key, words in bounds.items() if key in schema)])
