"""What is offered, and how the service is."""

from __future__ import annotations

from typing import Any

import pytest
from rig import withdraw

from sandboxd.api import answers
from sandboxd.catalogue import Catalogue
from sandboxd.policy.units import to_edge
from sandboxd.store import Store


def test_languages_are_those_the_workers_publish(api: Any, catalogue: Catalogue) -> None:
    found = answers.Languages.model_validate_json(api.get("/v1/languages").data).languages
    assert [each.name for each in found] == [each.name for each in catalogue.languages]
    assert {each.name: each.compiled for each in found} == {
        each.name: each.compile is not None for each in catalogue.languages
    }


def test_policies_show_defaults_and_ceilings_in_seconds(api: Any, catalogue: Catalogue) -> None:
    found = answers.Policies.model_validate_json(api.get("/v1/policies").data).policies
    default = next(each for each in found if each.name == "default")
    assert default.defaults.model_dump() == to_edge(catalogue.policy("default").defaults)
    assert default.ceilings.model_dump() == to_edge(catalogue.policy("default").ceilings)
    assert default.digest.startswith("sha256:")


def test_images_have_a_digest(api: Any) -> None:
    assert answers.Images.model_validate_json(api.get("/v1/images").data).images[0].name == "host"


@pytest.mark.parametrize("path", ["/v1/languages", "/v1/policies", "/v1/images", "/v1/ready"])
def test_without_a_worker_nothing_is_offered(make_api: Any, store: Store, path: str) -> None:
    withdraw(store)
    answer = make_api().get(path)
    assert (answer.status_code, answer.json["type"]) == (503, "/v1/docs#no-worker")
    assert int(answer.headers["Retry-After"]) > 0


def test_health_says_that_the_process_lives(make_api: Any, store: Store) -> None:
    withdraw(store)
    assert make_api().client.get("/v1/health").json == {"status": "ok"}


def test_ready_says_that_a_worker_answers(api: Any) -> None:
    assert api.client.get("/v1/ready").json == {"status": "ok"}


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/jobs/", "/metrics", "/v1/jobs/x/events", "/static/x"])
def test_an_unknown_path_is_404(api: Any, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 404
    assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/jobs"), ("PUT", "/v1/jobs"), ("POST", "/v1/languages")])
def test_an_unknown_method_is_405_and_the_known_ones_are_named(api: Any, method: str, path: str) -> None:
    answer = api.client.open(path, method=method, headers=api.headers)
    assert answer.status_code == 405
    assert answer.content_type == "application/problem+json"
    assert answer.headers["Allow"]


def test_no_answer_is_to_be_guessed_at_or_kept(api: Any) -> None:
    for path in ("/v1/health", "/v1/languages", "/v1/nothing", "/v1/docs"):
        headers = api.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
