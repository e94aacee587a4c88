"""Clients that are slow on purpose hold sockets, never the service: with few threads, so that few would do.

Each attack runs against gunicorn's own threaded worker too, whom it stops: the control.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from jailrig import SCALE
from rig import claim, finish, publish, shipped_catalogue, wait_until
from servicerig import HEADERS, START_S, Service, command, free_port, offering_service

from sandboxd.api import connections

pytestmark = pytest.mark.root

THREADS = 16
CONNECTIONS_MAX = 4 * THREADS
PYTHON = {"language": "python", "source": "print(1)"}
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n"
QUICK_S = 3.0
"""How long a request may take that the attack does not hold up."""
OURS = "sandboxd.api.connections.Worker"
GUNICORNS = "gthread"
_SERVER = """
import sys
from sandboxd.api import server
from sandboxd.config import load_settings
options = server.gunicorn_options
server.gunicorn_options = lambda settings: options(settings) | {"worker_class": sys.argv[2]}
server.Server(load_settings(port=int(sys.argv[1]), api_threads=int(sys.argv[3]))).run()
"""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with offering_service("slow") as service:
        yield service


class Target:
    """An API, and its port."""

    def __init__(self, service: Service) -> None:
        self.store = service.store
        self.port = free_port()

    def client(self, timeout_s: float = 60) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers=HEADERS, timeout=timeout_s, trust_env=False
        )

    def answers(self, timeout_s: float) -> bool:
        """Whether a new client gets an answer to a question and to a job, each within the time."""
        publish(self.store, shipped_catalogue())
        try:
            with self.client(timeout_s) as client:
                return client.get("/v1/health").is_success and client.post("/v1/jobs", json=PYTHON).status_code == 202
        except httpx.TransportError:
            return False

    @contextlib.contextmanager
    def connected(self, number: int, *, sending: bytes = b"") -> Iterator[list[socket.socket]]:
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(number):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=30))
                if sending:
                    client.sendall(sending)
                clients.append(client)
            yield clients


@contextlib.contextmanager
def serving(service: Service, worker_class: str) -> Iterator[Target]:
    """The API with `THREADS` threads and that class of worker."""
    target = Target(service)
    prefix = command()[:-4]  # as the service user, without the interpreter and its arguments
    python = [sys.executable, "-I", "-c", _SERVER, str(target.port), worker_class, str(THREADS)]
    with (service.folder / "api.log").open("ab") as log:
        process = subprocess.Popen(
            [*prefix, *python], env=service.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: process.poll() is not None or target.answers(START_S), START_S)
        assert process.poll() is None, service.logs()
        yield target
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30 * SCALE)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[Target]:
    with serving(service, OURS) as target:
        yield target


@pytest.fixture
def gunicorns(service: Service) -> Iterator[Target]:
    with serving(service, GUNICORNS) as target:
        yield target


Attack = Callable[[Target], contextlib.AbstractContextManager[list[socket.socket]]]


@contextlib.contextmanager
def dripping(target: Target) -> Iterator[list[socket.socket]]:
    """Twice as many clients as threads, who send a byte of a header now and then."""
    over = threading.Event()
    with target.connected(2 * THREADS, sending=HEALTH + b"X: ") as clients:

        def drip() -> None:
            while not over.wait(0.2):
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.send(b"x")

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            time.sleep(1)
            yield clients
        finally:
            over.set()
            dripper.join()


def silent(target: Target) -> contextlib.AbstractContextManager[list[socket.socket]]:
    """Half as many clients again as there are connections, who say nothing."""
    return target.connected(CONNECTIONS_MAX * 3 // 2)


def starting_a_body(target: Target) -> contextlib.AbstractContextManager[list[socket.socket]]:
    """Clients without a token, who announce a body and never send it."""
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n{"
    )
    return target.connected(2 * THREADS, sending=head)


def staying(target: Target) -> contextlib.AbstractContextManager[list[socket.socket]]:
    """Clients who were turned away, and do not close their side."""
    return target.connected(10, sending=b"NONSENSE\r\n\r\n")


@contextlib.contextmanager
def not_reading(target: Target) -> Iterator[list[socket.socket]]:
    """Clients without a token, who ask for a document again and again and read no answer."""
    ask = b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(2 * THREADS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", target.port))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.send(ask)
            clients.append(client)
        time.sleep(2)
        yield clients


def starting_a_body_with_a_token(target: Target) -> contextlib.AbstractContextManager[list[socket.socket]]:
    token = f"Authorization: {HEADERS['Authorization']}\r\nContent-Type: application/json\r\n".encode()
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + token
    return target.connected(2 * THREADS, sending=head + b"Content-Length: 1000000\r\n\r\n{")


@contextlib.contextmanager
def waiting(target: Target) -> Iterator[list[socket.socket]]:
    """Clients with a token, who wait for a job that nobody runs."""
    with target.client() as client:
        job_id = client.post("/v1/jobs", json=PYTHON).json()["id"]
    head = f"GET /v1/jobs/{job_id}?wait=30 HTTP/1.1\r\nHost: localhost\r\nAuthorization: {HEADERS['Authorization']}"
    with target.connected(2 * THREADS, sending=head.encode() + b"\r\n\r\n") as clients:
        time.sleep(0.5)
        yield clients


ATTACKS = pytest.mark.parametrize(
    "attack", [dripping, silent, starting_a_body, staying, not_reading, starting_a_body_with_a_token]
)


@ATTACKS
def test_slow_clients_hold_up_nobody(server: Target, attack: Attack) -> None:
    with attack(server):
        assert server.answers(QUICK_S * SCALE)
        assert server.answers(QUICK_S * SCALE)


@ATTACKS
def test_control_the_same_clients_stop_gunicorns_own_worker(gunicorns: Target, attack: Attack) -> None:
    with attack(gunicorns):
        wait_until(lambda: not gunicorns.answers(QUICK_S), 30)


def test_a_full_house_makes_room_by_sending_the_oldest_away(server: Target) -> None:
    with server.connected(1) as [oldest], server.connected(CONNECTIONS_MAX):
        assert server.answers(QUICK_S * SCALE)
        assert oldest.recv(100) == b""


def read_all(client: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(1 << 16):
            found += data
    return found


def test_a_head_that_does_not_come_is_408_and_a_silent_client_is_closed(server: Target) -> None:
    begin = time.monotonic()
    with server.connected(1, sending=HEALTH) as [half], server.connected(1) as [still]:
        answer = read_all(half)
        assert read_all(still) == b""
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    assert b"#request-timeout" in answer
    assert connections.HEAD_S * 0.9 < time.monotonic() - begin < 2 * connections.HEAD_S * SCALE


def test_a_body_that_does_not_come_is_408(server: Target) -> None:
    token = f"Authorization: {HEADERS['Authorization']}\r\nContent-Type: application/json\r\n".encode()
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n" + token
    with (
        server.connected(1, sending=head + b"Content-Length: 1000\r\n\r\n{") as [plain],
        server.connected(1, sending=head + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{") as [chunked],
    ):
        for client in (plain, chunked):
            answer = read_all(client)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"#request-timeout" in answer
    assert server.answers(QUICK_S * SCALE)


def test_a_client_without_a_token_is_told_so_at_once_whatever_he_announced(server: Target) -> None:
    begin = time.monotonic()
    with starting_a_body(server) as clients:
        for client in clients:
            answer = read_all(client)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"Connection: close" in answer
    assert time.monotonic() - begin < QUICK_S * SCALE


def test_a_body_behind_a_refused_head_does_not_lose_the_answer(server: Target) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n"
    with server.connected(1, sending=head + b"x" * 8_000_000) as [client]:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


def test_clients_who_wait_for_jobs_hold_up_nobody(server: Target) -> None:
    """Not a matter of gunicorn's: the places for those who wait are fewer than the threads."""
    with waiting(server):
        assert server.answers(QUICK_S * SCALE)


def test_a_client_that_hangs_up_is_no_longer_waited_for(server: Target) -> None:
    """Those who wait hold a bounded number of places, which are free soon after they are gone."""
    wait_until(lambda: wait_took(server) > 1, 10 * SCALE)  # nobody waits any more of the test before
    with waiting(server) as clients:
        assert wait_took(server) < 1 * SCALE, "all places are taken: nobody is made to wait"
        for client in clients:
            client.close()
    wait_until(lambda: wait_took(server) > 1, 10 * SCALE)


def wait_took(target: Target) -> float:
    begin = time.monotonic()
    with target.client() as client:
        assert client.post("/v1/jobs", json=PYTHON, params={"wait": 1.5}).status_code == 202
    return time.monotonic() - begin


def test_an_answer_that_is_not_taken_is_given_up(server: Target) -> None:
    with server.client() as client:
        job_id = client.post("/v1/jobs", json=PYTHON).json()["id"]
    claim(server.store, job_id)
    finish(server.store, job_id, reason="".join(map(chr, range(0x4E00, 0x9000))) * 120)
    ask = f"GET /v1/jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {HEADERS['Authorization']}\r\n\r\n"
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        waiter = select.poll()
        for _ in range(2 * THREADS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(ask.encode())
            waiter.register(client, select.POLLRDHUP)
        # Making so many large answers takes seconds; that they are not taken holds no thread afterwards.
        wait_until(lambda: server.answers(QUICK_S), connections.ANSWER_S * 0.8)
        assert waiter.poll(2 * connections.ANSWER_S * SCALE * 1000)
        assert time.monotonic() - begin > connections.ANSWER_S * 0.9


def test_a_large_answer_comes_whole_also_to_a_slow_reader(server: Target) -> None:
    with server.client() as client:
        job_id = client.post("/v1/jobs", json=PYTHON).json()["id"]
    claim(server.store, job_id)
    reason = "".join(map(chr, range(0x4E00, 0x9000))) * 100
    finish(server.store, job_id, reason=reason)
    with server.client() as client, client.stream("GET", f"/v1/jobs/{job_id}") as answer:
        body = bytearray()
        for chunk in answer.iter_raw(1 << 18):
            body += chunk
            time.sleep(0.02)
    assert json.loads(body)["reason"] == reason


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (b"NONSENSE\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\n\n", 400, "bad-request"),
        (b"\x16\x03\x01\x02\x00\x01", 400, "bad-request"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414, "uri-too-long"),
        (HEALTH + b"Expect: miracles\r\n\r\n", 417, "expectation-failed"),
        (HEALTH + b"X: y\r\n" * 51 + b"\r\n", 431, "headers-too-large"),
        (HEALTH + b"X: " + b"y" * 9000 + b"\r\n\r\n", 431, "headers-too-large"),
        (HEALTH + b"X: " + b"y" * 40_000, 431, "headers-too-large"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else value,
)
def test_what_never_was_a_request_is_a_problem_too(server: Target, request_: bytes, status: int, kind: str) -> None:
    with server.connected(1, sending=request_) as [client]:
        answer = read_all(client)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/problem+json" in answer
    assert f"/v1/docs#{kind}".encode() in answer
    assert b"NONSENSE" not in answer


def test_a_connection_brings_one_request_after_the_other(server: Target) -> None:
    with server.connected(1) as [client]:
        client.sendall((HEALTH + b"\r\n") * 3)
        answer = b""
        while answer.count(b"HTTP/1.1 200 OK") < 3:
            answer += client.recv(1 << 16)
        while not answer.endswith(b'"ok"}'):
            answer += client.recv(1 << 16)
        client.sendall(HEALTH)
        time.sleep(0.2)
        client.sendall(b"\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
