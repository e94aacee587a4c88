"""docs/http.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sandboxd.api.body import STRUCTURE_MAX
from sandboxd.api.problems import KINDS
from sandboxd.api.schemas import JobIn, LimitsIn
from sandboxd.config import Settings
from sandboxd.result import Verdict

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()


def test_every_kind_of_problem_is_listed_with_its_status() -> None:
    rows = {kind: int(status) for status, kind in re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", TEXT, re.MULTILINE)}
    assert rows == {kind: status.value for kind, (status, _) in KINDS.items()}


def test_every_field_of_a_job_is_shown() -> None:
    example = TEXT.split("## A job")[1].split("\n- ")[0]
    for name in (*JobIn.model_fields, *LimitsIn.model_fields):
        assert f'"{name}"' in example


def test_every_verdict_is_named() -> None:
    for verdict in Verdict:
        assert f"`{verdict.value}`" in TEXT


def test_every_setting_named_exists() -> None:
    named = re.findall(r"^\| .* \| `([a-z_]+)` \|$", TEXT.split("## Bounds")[1], re.MULTILINE)
    assert len(named) >= 7
    assert set(named) <= set(Settings.model_fields)
    assert f"{STRUCTURE_MAX:,} parts" in TEXT


def test_every_route_is_listed(api: Any) -> None:
    for rule in api.client.application.url_map.iter_rules():
        assert rule.rule.replace("<job_id>", "ID") in TEXT
