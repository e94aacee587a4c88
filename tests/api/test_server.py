"""The API under gunicorn, as the service starts it: what only a real server can show."""

from __future__ import annotations

import concurrent.futures
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from jailrig import SCALE
from rig import claim, finish, publish, shipped_catalogue, wait_until
from servicerig import HEADERS, Service, api_server, command, offering_service

pytestmark = pytest.mark.root

PYTHON = {"language": "python", "source": "print(1)"}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with offering_service("api") as service:
        yield service


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[httpx.Client]:
    with api_server(service) as client:
        yield client


@pytest.fixture(autouse=True)
def _offer(service: Service) -> None:
    publish(service.store, shipped_catalogue())


def raw(service: Service, *parts: bytes) -> bytes:
    """What the server answers to these bytes."""
    with socket.create_connection(("127.0.0.1", service.settings.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        return connection.recv(65536)


def head(*lines: str) -> bytes:
    token = f"Authorization: {HEADERS['Authorization']}"
    return "\r\n".join(["POST /v1/jobs HTTP/1.1", "Host: localhost", token, *lines, "", ""]).encode()


def test_a_job_is_taken(server: httpx.Client) -> None:
    answer = server.post("/v1/jobs", json=PYTHON)
    assert answer.status_code == 202
    assert server.get(answer.headers["Location"]).json()["state"] == "queued"


def test_two_hundred_requests_wait_at_once_and_are_woken_at_once(service: Service, server: httpx.Client) -> None:
    job_id = server.post("/v1/jobs", json=PYTHON).json()["id"]
    before = service.store.client.info("clients")["connected_clients"]

    def wait_for(_number: int) -> tuple[str, float]:
        answer = httpx.get(
            f"{server.base_url}/v1/jobs/{job_id}", params={"wait": 60}, headers=HEADERS, timeout=90, trust_env=False
        )
        return answer.json()["state"], time.monotonic()

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        waiting = [pool.submit(wait_for, number) for number in range(200)]
        hub = f"{service.settings.prefix}:ended"
        wait_until(lambda: service.store.client.pubsub_numsub(hub)[0][1] >= 1, 20 * SCALE)
        time.sleep(2 * SCALE)
        # Waiting costs no connection to Redis: all share one subscription.
        assert service.store.client.info("clients")["connected_clients"] - before < 30
        assert server.get("/v1/health").status_code == 200
        assert server.post("/v1/jobs", json=PYTHON).status_code == 202
        claim(service.store, job_id)
        finish(service.store, job_id)
        ended = time.monotonic()
        results = [each.result(60) for each in waiting]
    assert {state for state, _ in results} == {"finished"}
    assert max(at for _, at in results) - ended < 5 * SCALE


def test_a_body_over_the_bound_is_413_without_being_read(service: Service, server: httpx.Client) -> None:
    answer = raw(service, head("Content-Type: application/json", "Content-Length: 1000000000000"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_a_chunked_body_over_the_bound_is_refused(service: Service, server: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"language": "python", "source": "'
        for _ in range(16):
            yield b"x" * (1 << 20)
        yield b'"}'

    before = service.queue.depth()
    try:
        status = server.post("/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"}).status_code
    except httpx.TransportError:
        # The server answers and closes before all was read; the kernel may then throw the answer away.
        status = 413
    assert status == 413
    assert service.queue.depth() == before
    assert server.get("/v1/health").status_code == 200


def test_a_chunked_body_is_read(server: httpx.Client) -> None:
    body = iter([b'{"language": "python", ', b'"source": "print(1)"}'])
    assert server.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}).status_code == 202


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/health HTTP/1.1\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX: y\r\nHost: evil.example\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
    ids=["no host", "foreign host", "two hosts", "nonsense", "long line", "many headers", "negative length",
         "smuggling", "TLS"],
)  # fmt: skip
def test_a_hostile_request_is_refused_and_the_server_lives_on(
    service: Service, server: httpx.Client, request_: bytes
) -> None:
    answer = raw(service, request_)
    assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 401", b"HTTP/1.1 403", b"HTTP/1.1 414", b"HTTP/1.1 431")
    assert server.get("/v1/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"ZZ\r\n",
        b"-1\r\n",
        b"1" * 10_000,
        b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
    ids=["no number", "negative", "long number", "many trailers"],
)
def test_chunks_that_are_none_are_the_clients_mistake(service: Service, server: httpx.Client, body: bytes) -> None:
    answer = raw(service, head("Content-Type: application/json", "Transfer-Encoding: chunked") + body)
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert b"application/problem+json" in answer
    assert server.get("/v1/health").status_code == 200


def test_a_body_that_ends_before_its_length_is_refused_and_nothing_is_queued(service: Service) -> None:
    before = service.queue.depth()
    body = b'{"language": "python", "source": "print(1)"}'
    with socket.create_connection(("127.0.0.1", service.settings.port), timeout=30) as connection:
        connection.sendall(head("Content-Type: application/json", "Content-Length: 500") + body)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert service.queue.depth() == before


def test_a_client_that_sends_slowly_holds_up_nobody(service: Service, server: httpx.Client) -> None:
    slow = [socket.create_connection(("127.0.0.1", service.settings.port)) for _ in range(50)]
    for connection in slow:
        connection.sendall(head("Content-Type: application/json", "Content-Length: 100") + b"{")
    begin = time.monotonic()
    assert server.post("/v1/jobs", json=PYTHON).status_code == 202
    assert time.monotonic() - begin < 5 * SCALE
    for connection in slow:
        connection.close()


def test_the_api_runs_on_a_unix_socket(service: Service) -> None:
    path = service.folder / "public" / "api.sock"
    path.parent.mkdir()
    path.parent.chmod(0o777)
    process = subprocess.Popen(command("api", "--socket", str(path)), env=service.environment, stdin=subprocess.DEVNULL)
    try:
        wait_until(path.exists, 20 * SCALE)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://any.name") as client:
            assert client.get("/v1/ready").status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30 * SCALE) == 0


def test_the_api_refuses_to_be_root(service: Service) -> None:
    done = subprocess.run(
        command("api", user=None), env=service.environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode != 0
    assert "must not be root" in done.stderr


def test_without_a_token_only_loopback_is_served(service: Service) -> None:
    done = subprocess.run(
        command("api", "--no-auth", "--host", "192.0.2.1"),
        env=service.environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert "loopback" in done.stderr
