"""The description of the API, for programs and for people, is complete and needs no network."""

from __future__ import annotations

import html.parser
import json
import re
from typing import Any

import pytest

from sandboxd.api.problems import KINDS
from sandboxd.api.schemas import JobIn


@pytest.fixture
def described(api: Any) -> dict[str, Any]:
    answer = api.client.get("/v1/openapi.json")
    assert answer.content_type == "application/json"
    document: dict[str, Any] = answer.json
    return document


def test_it_is_openapi_3_1(described: dict[str, Any]) -> None:
    assert described["openapi"] == "3.1.0"
    assert described["info"]["title"] == "sandboxd"


def test_every_route_is_described(api: Any, described: dict[str, Any]) -> None:
    routes = {
        re.sub(r"<(\w+)>", r"{\1}", rule.rule)
        for rule in api.client.application.url_map.iter_rules()
        if rule.rule not in ("/v1/openapi.json", "/v1/docs")
    }
    assert set(described["paths"]) == routes


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)))
    assert "JobIn" in names
    assert names <= set(described["components"]["schemas"])
    assert '"#/$defs' not in json.dumps(described)


def test_every_field_of_a_job_is_described(described: dict[str, Any]) -> None:
    schema = described["components"]["schemas"]["JobIn"]
    assert set(schema["properties"]) == set(JobIn.model_fields)
    assert schema["additionalProperties"] is False


def test_every_operation_says_how_it_fails(described: dict[str, Any]) -> None:
    for methods in described["paths"].values():
        for operation in methods.values():
            failures = {code: answer for code, answer in operation["responses"].items() if int(code) >= 400}
            assert failures
            for answer in failures.values():
                assert list(answer["content"]) == ["application/problem+json"]


def test_every_operation_but_health_asks_for_a_token(described: dict[str, Any]) -> None:
    assert set(described["components"]["securitySchemes"]) == {"bearer", "key"}
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert bool(operation.get("security")) == (path not in ("/v1/health", "/v1/ready"))


def test_the_page_loads_nothing_and_runs_no_script(api: Any) -> None:
    answer = api.client.get("/v1/docs")
    assert answer.content_type == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script" not in answer.text
    assert not re.findall(r"""(?:src|href)=["'](?!#|openapi\.json)""", answer.text)


def test_the_page_explains_every_kind_of_problem_and_every_link_on_it_works(api: Any) -> None:
    page = Page()
    page.feed(api.client.get("/v1/docs").text)
    assert set(KINDS) <= page.anchors
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= page.anchors


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if name == "href" and value:
                self.links.add(value)
