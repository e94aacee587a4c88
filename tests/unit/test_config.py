"""Settings: environment over one TOML file over defaults; what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.config import load_settings
from sandboxd.errors import InputError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "sandboxd.toml"
    monkeypatch.setenv("SANDBOXD_CONFIG", str(path))
    return path


def test_the_command_line_wins_over_the_environment_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 1\nqueue_max = 2\nresult_ttl_s = 3\n")
    monkeypatch.setenv("SANDBOXD_PORT", "10")
    monkeypatch.setenv("SANDBOXD_QUEUE_MAX", "20")
    settings = load_settings(port=100, host=None)
    assert (settings.port, settings.queue_max, settings.result_ttl_s) == (100, 20, 3)
    assert settings.host == "127.0.0.1"


def test_a_misspelt_key_in_the_file_is_an_error(file: Path) -> None:
    file.write_text("que_max = 2\n")
    with pytest.raises(InputError, match="que_max"):
        load_settings()


def test_a_file_that_is_named_and_not_there_is_an_error(file: Path) -> None:
    with pytest.raises(InputError, match="SANDBOXD_CONFIG"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "0"), ("port", "x"), ("wait_max_s", "61"), ("body_max_bytes", str(1 << 30)), ("instance", "a/b"),
     ("instance", "run-3"),
     ("instance", "audit-3-0"),
     ("key_prefix", "a b"), ("log_level", "loud")],
)  # fmt: skip
def test_a_setting_out_of_its_bound_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SANDBOXD_{name.upper()}", value)
    with pytest.raises(InputError, match=name):
        load_settings()


def test_an_instances_redis_and_prefix_are_its_own() -> None:
    settings = load_settings(instance="judge")
    assert settings.redis == "unix:///run/sandboxd/judge/service/redis.sock"
    assert settings.prefix == "sandboxd:judge"
    assert load_settings(redis_url="redis://h", key_prefix="p").prefix == "p"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("::", False)],
)
def test_loopback_is_told_from_the_address(host: str, loopback: bool) -> None:
    assert load_settings(host=host).is_loopback == loopback


def test_a_unix_socket_is_local_and_has_no_host() -> None:
    settings = load_settings(socket="/run/x.sock", host="10.0.0.1", no_auth=True)
    assert (settings.is_local, settings.is_loopback) == (True, False)
