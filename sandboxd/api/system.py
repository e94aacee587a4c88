"""What is offered, and whether the service lives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from flask import Response
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag

from sandboxd.api import answers
from sandboxd.api.jobs import operation_id, problems
from sandboxd.api.schemas import NoQuery
from sandboxd.api.services import Services
from sandboxd.catalogue import Language, PolicyInfo
from sandboxd.policy.units import edge_name, edge_value, to_edge
from sandboxd.store import ACCEPT_BELOW


def blueprint(services: Services) -> APIBlueprint:
    """The routes beside /v1/jobs."""
    secured: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]
    api = APIBlueprint("system", __name__, url_prefix="/v1", operation_id_callback=operation_id)
    offer: list[Tag | dict[str, Any]] = [Tag(name="what is offered")]
    state: list[Tag | dict[str, Any]] = [Tag(name="state")]

    @api.get("/languages", tags=offer, security=secured, summary="Languages", responses={
        200: answers.Languages, **problems(401, 403, 422, 503),
    })  # fmt: skip
    def get_languages(query: NoQuery) -> Response:
        """The languages that some worker's image has the tools of, with their true versions."""
        return _json({"languages": [_language(each) for each in services.catalogue().languages]})

    @api.get("/policies", tags=offer, security=secured, summary="Policies", responses={
        200: answers.Policies, **problems(401, 403, 422, 503),
    })  # fmt: skip
    def get_policies(query: NoQuery) -> Response:
        """The policies, each with the default and the ceiling of every limit."""
        return _json({"policies": [_policy(each) for each in services.catalogue().policies]})

    @api.get("/images", tags=offer, security=secured, summary="Images", responses={
        200: answers.Images, **problems(401, 403, 422, 503),
    })  # fmt: skip
    def get_images(query: NoQuery) -> Response:
        """The images programs run in."""
        return _json({"images": services.catalogue().images})

    @api.get("/health", tags=state, summary="Alive", responses={200: answers.Health, **problems(403)})
    def get_health() -> Response:
        """This process answers; nothing else is looked at."""
        return _json({"status": "ok"})

    @api.get("/ready", tags=state, summary="Ready", responses={200: answers.Health, **problems(403, 503)})
    def get_ready() -> Response:
        """Redis answers and has room, and a worker said within the last half minute what its launcher offers."""
        services.store.ping()
        services.store.check_room(ACCEPT_BELOW)
        services.catalogue()
        return _json({"status": "ok"})

    return api


def _language(language: Language) -> dict[str, object]:
    return {
        "name": language.name,
        "title": language.title,
        "version": language.version,
        "image": language.image,
        "source_name": language.source_name,
        "compiled": language.compile is not None,
        "limits": _edge(language.run.limits),
        "compile_limits": _edge(language.compile.limits) if language.compile else {},
    }


def _policy(policy: PolicyInfo) -> dict[str, object]:
    return {
        "name": policy.name,
        "description": policy.description,
        "digest": policy.digest,
        "image": policy.image,
        "network": policy.network,
        "output_kill_factor": policy.output_kill_factor,
        "report_denied": policy.report_denied,
        "defaults": to_edge(policy.defaults),
        "ceilings": to_edge(policy.ceilings),
    }


def _edge(limits: Mapping[str, int]) -> dict[str, float | int]:
    return {edge_name(name): edge_value(name, value) for name, value in limits.items()}


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), content_type="application/json")
