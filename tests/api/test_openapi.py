"""The description of the API, for programs and for people, is complete and needs no network."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from sandboxd.api.problems import KINDS
from sandboxd.api.schemas import JobIn
from sandboxd.bounds import check_args, check_argv, check_env, check_path
from sandboxd.errors import InputError
from sandboxd.policy.units import EDGE_NAMES, check_range, from_edge
from sandboxd.spec import ARG_MAX_BYTES


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


def test_what_is_told_of_a_path_is_what_is_checked(described: dict[str, Any]) -> None:
    told = described["components"]["schemas"]["FileIn"]["properties"]["path"]
    paths = ["".join(parts) for length in range(7) for parts in itertools.product("a./\0", repeat=length)]
    for path in [*paths, *("/".join("a" * levels) for levels in range(1, 20)), "a\nb", "\n", "a\n"]:
        assert is_told(told, path) == is_taken(check_path, path, ""), repr(path)


def test_what_is_told_of_arguments_and_variables_is_what_is_checked(described: dict[str, Any]) -> None:
    job = described["components"]["schemas"]["JobIn"]["properties"]
    (program,), argument = job["command"]["anyOf"][0]["prefixItems"], job["command"]["anyOf"][0]["items"]
    assert job["args"]["items"] == argument == job["env"]["additionalProperties"]
    for text in ("", "a", "=", "a=b", "a\0", "\0", "a\n", "\n", "a b"):
        assert is_told(argument, text) == is_taken(check_args, [text]), repr(text)
        assert is_told(program, text) == is_taken(check_argv, [text]), repr(text)
        assert is_told(job["env"]["propertyNames"], text) == is_taken(check_env, {text: ""}), repr(text)
    for length, fits in ((ARG_MAX_BYTES - 1, True), (ARG_MAX_BYTES, False)):
        assert is_told(job["env"]["propertyNames"], "a" * length) == is_taken(check_env, {"a" * length: ""}) == fits
        assert is_told(argument, "a" * (length + 1)) == is_taken(check_args, ["a" * (length + 1)]) == fits


def test_what_is_told_of_limits_is_what_is_checked(described: dict[str, Any]) -> None:
    limits = described["components"]["schemas"]["LimitsIn"]["properties"]
    assert tuple(limits) == EDGE_NAMES
    for name, limit in limits.items():
        number = limit["anyOf"][0]
        for value, fits in ((number["minimum"], True), (number["minimum"] / 2 - 1, False)):
            assert is_taken(from_edge, {name: value if name.endswith("_s") else int(value)}) == fits
        for value, fits in ((number["maximum"], True), (number["maximum"] * 2, False)):
            (internal,) = from_edge({name: value}).items()
            assert is_taken(check_range, *internal, name) == fits


def test_limits_of_a_compile_stage_that_is_not_there_may_be_named_and_left_out(
    api: Any, described: dict[str, Any]
) -> None:
    shapes = {each["title"]: each["properties"] for each in described["components"]["schemas"]["JobIn"]["oneOf"]}
    for limits in (None, {}, {"processes": None}):
        assert api.post({"command": ["true"], "compile_limits": limits}).status_code == 202
    assert "compile_limits" not in shapes["command"]


def test_bounds_are_told_as_they_are_set(make_api: Callable[..., Any]) -> None:
    lowered = make_api(source_max_bytes=11, stdin_max_bytes=10, files_max=3, body_max_bytes=2000, wait_max_s=0.5)
    document = lowered.client.get("/v1/openapi.json").json
    job, file = (document["components"]["schemas"][name]["properties"] for name in ("JobIn", "FileIn"))
    assert (job["source"]["maxLength"], job["stdin"]["maxLength"], job["files"]["maxItems"]) == (11, 16, 3)
    assert file["content"]["maxLength"] == 2000
    for method, path in (("post", "/v1/jobs"), ("get", "/v1/jobs/{job_id}")):
        (wait,) = (each for each in document["paths"][path][method]["parameters"] if each["name"] == "wait")
        assert wait["schema"]["maximum"] == 0.5


def test_every_operation_says_how_it_fails(described: dict[str, Any]) -> None:
    for methods in described["paths"].values():
        for operation in methods.values():
            failures = {code: answer for code, answer in operation["responses"].items() if not code.startswith("2")}
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


def is_told(schema: dict[str, Any], text: str) -> bool:
    fits = schema.get("minLength", 0) <= len(text) <= schema["maxLength"]
    # In JSON Schema `$` is the end alone, in Python also the place before a last newline.
    return fits and re.search(schema["pattern"].replace("$", r"\Z"), text) is not None


def is_taken(check: Callable[..., object], *values: object) -> bool:
    try:
        check(*values)
    except InputError:
        return False
    return True


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
