"""The service around a real launcher: Redis, workers as the service user, and the API, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from jailrig import SCALE
from rig import TOKEN, TOKEN_HASH, RedisProcess, publish, shipped_catalogue, wait_until

from sandboxd.api import create_app
from sandboxd.config import Settings, load_settings
from sandboxd.instance import SERVICE_USER, Instance
from sandboxd.queue import JobQueue
from sandboxd.store import JobRecord, Store, connect
from sandboxd.supervisor import Supervisor, privilege_prefix

START_S = 30.0 * SCALE
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@contextlib.contextmanager
def service_folder() -> Iterator[Path]:
    """A folder that the service user can pass through, as pytest's own cannot be."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-service-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@contextlib.contextmanager
def supervising() -> Iterator[Supervisor]:
    """A supervisor whose children may be the service user's."""
    with service_folder() as folder, Supervisor(folder / "notify.sock") as supervisor:
        yield supervisor


def command(*arguments: str, user: str | None = SERVICE_USER) -> list[str]:
    """`sandboxd ...` as the service starts it."""
    prefix = privilege_prefix(user) if user else []
    return [*prefix, sys.executable, "-I", "-m", "sandboxd", *arguments]


class Service:
    """Redis, an API in this process and any number of workers, around one launcher."""

    def __init__(self, instance: Instance, folder: Path) -> None:
        self.folder = folder
        self.redis = RedisProcess(folder)
        self.redis.start()
        self.settings: Settings = load_settings(
            redis_url=self.redis.url, instance=instance.name, state_root=instance.state_root, port=free_port()
        )
        self.app = create_app(self.settings)
        self.api = self.app.test_client()
        self.store: Store = Store(connect(self.redis.url), self.settings.prefix)
        self.queue = JobQueue(self.store)
        self.store.set_token_hash(TOKEN_HASH)
        self.workers: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin",
            "SANDBOXD_REDIS_URL": self.settings.redis_url,
            "SANDBOXD_INSTANCE": self.settings.instance,
            "SANDBOXD_STATE_ROOT": self.settings.state_root,
        }

    def start_worker(self, *, ready: bool = True) -> subprocess.Popen[bytes]:
        log = (self.folder / f"worker-{len(self.workers)}.log").open("ab")
        worker = subprocess.Popen(
            command("worker"), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        self.workers.append(worker)
        if ready:
            offers = self.offers()
            wait_until(lambda: worker.poll() is not None or self.offers() > offers, START_S)
            assert worker.poll() is None, self.logs()
        return worker

    def offers(self) -> int:
        return sum(1 for _ in self.store.client.scan_iter(f"{self.settings.prefix}:catalogue:*"))

    def logs(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def post(self, body: dict[str, Any], wait: float = 30) -> dict[str, Any]:
        answer = self.api.post("/v1/jobs", json=body, headers=HEADERS, query_string={"wait": wait})
        assert answer.status_code in (200, 202), answer.text
        job: dict[str, Any] = answer.json
        return job

    def python(self, source: str, wait: float = 30, **more: Any) -> dict[str, Any]:
        return self.post({"language": "python", "source": source, **more}, wait)

    def get(self, job_id: str, wait: float = 30) -> dict[str, Any]:
        job: dict[str, Any] = self.api.get(f"/v1/jobs/{job_id}", headers=HEADERS, query_string={"wait": wait}).json
        return job

    def delete(self, job_id: str) -> Any:
        return self.api.delete(f"/v1/jobs/{job_id}", headers=HEADERS)

    def await_state(self, job_id: str, state: str, timeout_s: float = 20) -> JobRecord:
        def reached() -> bool:
            record = self.store.job(job_id)
            return record is not None and record.state == state

        wait_until(reached, timeout_s * SCALE)
        record = self.store.job(job_id)
        assert record is not None
        return record

    def stop_workers(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(20 * SCALE)
        self.workers.clear()

    def close(self) -> None:
        try:
            self.stop_workers()
        finally:
            self.app.extensions["sandboxd"].close()
            self.store.client.close()
            self.redis.stop()


@contextlib.contextmanager
def offering_service(name: str) -> Iterator[Service]:
    """A service without launcher and workers, for which somebody offers what is shipped."""
    with service_folder() as folder:
        service = Service(Instance(name=f"{name}-{os.getpid()}", state_root=str(folder)), folder)
        publish(service.store, shipped_catalogue())
        yield service
        service.close()


@contextlib.contextmanager
def api_server(service: Service, *arguments: str) -> Iterator[httpx.Client]:
    """The API under gunicorn, and a client of it."""
    listen = ("--port", str(service.settings.port), *arguments)
    with (service.folder / "api.log").open("ab") as log:
        process = subprocess.Popen(
            command("api", *listen), env=service.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{service.settings.port}", headers=HEADERS, timeout=60, trust_env=False
        ) as client:
            wait_until(lambda: process.poll() is not None or _answers(client), START_S)
            assert process.poll() is None, service.logs()
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30 * SCALE) == 0, service.logs()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/health").is_success
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
