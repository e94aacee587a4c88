"""The embedded Redis: private, persistent, never evicting."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from servicerig import service_folder, supervising

from sandboxd import redis_server, service_files
from sandboxd.instance import Instance
from sandboxd.serve import redis_spec
from sandboxd.service_files import own_service
from sandboxd.supervisor import Supervisor


@pytest.fixture
def instance() -> Iterator[Instance]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        instance = Instance(name=f"redis-{os.getpid()}", state_root=folder)
        with own_service(instance):
            yield instance
    assert not instance.run_dir.exists(), "something is left below /run"


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with supervising() as supervisor:
        yield supervisor


def start(supervisor: Supervisor, instance: Instance) -> redis.Redis:
    child = supervisor.start(redis_spec(instance))
    assert supervisor.wait_until(lambda: redis_server.answers(instance), child, 20) is None
    return redis.Redis.from_url(redis_server.redis_url(instance))


def test_it_listens_on_a_socket_of_the_service_user_alone_and_on_no_port(
    instance: Instance, supervisor: Supervisor
) -> None:
    with start(supervisor, instance) as client:
        assert client.config_get("port") == {"port": "0"}
        assert stat.S_IMODE(instance.redis_socket.stat().st_mode) == 0o700
        assert stat.S_IMODE(instance.redis_socket.parent.stat().st_mode) == 0o700
        assert instance.redis_socket.parent.owner() == "sandboxd"


def test_it_never_throws_accepted_jobs_away(instance: Instance, supervisor: Supervisor) -> None:
    with start(supervisor, instance) as client:
        settings = client.config_get("maxmemory*", "append*")
        assert settings["maxmemory-policy"] == "noeviction"
        assert 0 < int(settings["maxmemory"]) <= redis_server.MEMORY_MAX_BYTES
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "everysec"


def test_what_was_stored_is_there_after_a_restart(instance: Instance, supervisor: Supervisor) -> None:
    with start(supervisor, instance) as client:
        client.set("kept", "yes")
    supervisor.stop()
    with start(supervisor, instance) as client:
        assert client.get("kept") == b"yes"


def test_an_instance_is_served_once(instance: Instance) -> None:
    with pytest.raises(service_files.CannotServe, match="is served already"), own_service(instance):
        pytest.fail("two services of one instance")


def test_its_log_is_not_followed_through_a_link(instance: Instance, tmp_path: Path) -> None:
    """The folder is the service user's: a link put there must not make root print another's file."""
    (tmp_path / "secret").write_text("secret")
    redis_server.log_path(instance).symlink_to(tmp_path / "secret")
    assert redis_server.last_words(instance) == ""


def test_a_token_is_made_once_and_is_its_owners_alone(instance: Instance) -> None:
    token = service_files.load_or_make_token(instance)
    assert len(token) >= 40
    assert service_files.load_or_make_token(instance) == token
    assert stat.S_IMODE(instance.token_path.stat().st_mode) == 0o600


def test_a_spoiled_token_file_is_refused(instance: Instance) -> None:
    instance.token_path.write_text("short\n")
    with pytest.raises(service_files.CannotServe, match="holds no token"):
        service_files.load_or_make_token(instance)


def test_a_state_folder_that_the_service_user_cannot_reach_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    instance = Instance(name=f"closed-{os.getpid()}", state_root=str(closed))
    with pytest.raises(service_files.CannotServe, match=str(closed)), own_service(instance):
        pytest.fail("started")
    assert not instance.run_dir.exists()


def test_a_state_root_that_takes_nothing_is_said_and_leaves_no_half_a_token(tmp_path: Path) -> None:
    """A full disk, or a file where a folder should be."""
    with service_folder() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "full", str(folder)], check=True)
        try:
            instance = Instance(name=f"full-{os.getpid()}", state_root=str(folder))
            with own_service(instance):
                with contextlib.suppress(OSError), (folder / "ballast").open("wb", 0) as ballast:
                    while True:
                        ballast.write(bytes(4096))
                with pytest.raises(service_files.CannotServe, match="token cannot be written: No space left"):
                    service_files.load_or_make_token(instance)
                assert not instance.token_path.exists()
                (folder / "ballast").unlink()
                assert service_files.load_or_make_token(instance)
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        (folder / "file").touch()
        instance = Instance(name=f"full-{os.getpid()}", state_root=str(folder / "file"))
        with pytest.raises(service_files.CannotServe, match="Not a directory"), own_service(instance):
            pytest.fail("it cannot be")
