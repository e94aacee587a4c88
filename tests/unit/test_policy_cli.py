"""`sandboxd policy` prints each effective value and the file it came from, as a table and as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sandboxd.cli.policy import command
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.units import EDGE_NAMES, to_edge


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_explain_prints_each_value_and_its_file() -> None:
    result = call("explain", "compile")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line}
    assert rows["cpu_time_s"] == ["cpu_time_s", "15", "s", "compile.toml", "30", "s", "compile.toml"]
    assert rows["processes"] == ["processes", "64", "compile.toml", "256", "base.toml"]
    assert rows["network"] == ["network", "loopback", "base.toml"]
    assert all(name in rows for name in EDGE_NAMES)


def test_explain_prints_the_bounds_of_a_request() -> None:
    rows = {line.split()[0]: line.split()[1:3] for line in call("explain", "default").output.splitlines() if line}
    assert rows["body_max_bytes"] == ["16", "MiB"]
    assert rows["source_max_bytes"] == ["1", "MiB"]
    assert rows["stdin_max_bytes"] == ["8", "MiB"]
    assert rows["path_max_bytes"] == ["255", "bytes"]
    assert rows["wait_max_s"] == ["60", "s"]
    assert {rows[key][0] for key in ("files_max", "args_max")} == {"256"}


def test_explain_prints_a_bound_as_the_operator_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXD_FILES_MAX", "10")
    rows = {line.split()[0]: line.split() for line in call("explain", "default").output.splitlines() if line}
    assert rows["files_max"][1] == "10"


def test_explain_as_json_has_the_names_and_values_of_the_api() -> None:
    told = json.loads(call("explain", "default", "--json").output)
    policy = load_policies(policy_folder())["default"]
    assert told["ceilings"] == to_edge(policy.ceilings)
    assert told["defaults"] == to_edge(policy.defaults)
    assert told["digest"] == policy.digest
    assert told["provenance"]["ceilings.cpu_time_s"] == "base.toml"
    assert told["bounds"]["arg_max_bytes"] == 4096
    assert told["smallest"]["memory_bytes"] == 4194304


def test_an_unknown_policy_is_answered_with_the_known_ones() -> None:
    result = call("explain", "nope")
    assert result.exit_code == 2
    assert "unknown policy 'nope'; there are: base, compile, default" in result.output


def test_list_names_every_policy() -> None:
    assert [line.split()[0] for line in call("list").output.splitlines()] == sorted(load_policies(policy_folder()))
    assert {entry["name"] for entry in json.loads(call("list", "--json").output)} == set(load_policies(policy_folder()))


def test_lint_ends_with_status_1_when_it_finds_something(tmp_path: Path) -> None:
    assert call("lint").exit_code == 0
    folder = Path(shutil.copytree(policy_folder(), tmp_path / "policies"))
    profile = folder / "seccomp" / "init.json"
    profile.write_text(profile.read_text().replace('"getppid"', '"getppid", "getpppid"'))
    result = call("lint", "--folder", str(folder))
    assert result.exit_code == 1
    assert "unknown syscall 'getpppid'" in result.output


def test_a_broken_policy_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("nonsense")
    result = call("list", "--folder", str(tmp_path))
    assert result.exit_code == 1
    assert result.output.startswith("Error: base.toml: not valid TOML")


@pytest.mark.parametrize("arguments", [(), ("explain",), ("list",), ("lint",)])
def test_help_has_an_example(arguments: tuple[str, ...]) -> None:
    assert "Example:  sandboxd policy" in call(*arguments, "--help").output
