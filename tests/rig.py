"""Real parts for tests of the service: a Redis of their own, a published offer, jobs that end."""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import redis

from sandboxd import document
from sandboxd.catalogue import Catalogue, ImageInfo
from sandboxd.document import Digested, JobResult
from sandboxd.languages import load_languages, offered
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.queue import JobQueue
from sandboxd.result import Isolation, Verdict
from sandboxd.store import Claim, Store

TOKEN = "a-token-made-for-the-tests"
TOKEN_HASH = hashlib.sha256(TOKEN.encode()).hexdigest()
NOW = "2026-01-02T03:04:05.000006Z"


class RedisProcess:
    """A redis-server on a unix socket, which can be killed and started anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "777",
             "--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--logfile", str(self.folder / "log")],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self.answers, 10)

    def answers(self) -> bool:
        client = redis.Redis(unix_socket_path=str(self.socket))
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def wait_until(condition: object, timeout_s: float) -> None:
    """Wait for something that another process does, for which it gives no sign."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s: {condition}"
        time.sleep(0.01)


@contextlib.contextmanager
def running_redis(folder: Path) -> Iterator[RedisProcess]:
    folder.chmod(0o711)  # another user connects to the socket in it
    server = RedisProcess(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def shipped_catalogue() -> Catalogue:
    """What a launcher on a machine with every tool offers: the shipped policies and languages."""
    folder = policy_folder()
    return Catalogue(
        languages=tuple(offered(each, "1.0", "host") for each in load_languages(folder).values()),
        policies=tuple(each.info() for each in load_policies(folder).values()),
        images=(ImageInfo(name="host", digest="host-stat:00"),),
        isolation=Isolation(
            namespaces=("mnt",), cgroup="v2", seccomp=True, landlock_abi=7, selinux=None, rootless=False, without=()
        ),
        cpus=2,
    )


def publish(store: Store, catalogue: Catalogue, worker: str = "w1") -> None:
    with store.client.pipeline() as pipeline:
        store.publish_catalogue(pipeline, worker, msgspec.json.encode(catalogue))
        pipeline.execute()


def withdraw(store: Store, worker: str = "w1") -> None:
    with store.client.pipeline() as pipeline:
        store.withdraw_catalogue(pipeline, worker)
        pipeline.execute()


def claim(store: Store, job_id: str, worker_name: str = "w1") -> Claim:
    with store.client.pipeline() as pipeline:
        store.claim(pipeline, job_id, worker="host:1", worker_name=worker_name, now=NOW)
        return store.claimed(pipeline.execute()[0])


def finish(
    store: Store,
    job_id: str,
    attempt: int = 1,
    state: str = "finished",
    verdict: Verdict = Verdict.OK,
    reason: str = "ended with exit status 0",
) -> bool:
    result = JobResult(
        verdict=verdict,
        reason=reason,
        stages=(),
        policy=Digested(name="default", digest="sha256:00"),
        image=Digested(name="host", digest="host-stat:00"),
        isolation=None,
    )
    with store.client.pipeline() as pipeline:
        store.finish(pipeline, job_id, attempt=attempt, state=state, result=document.pack_result(result), now=NOW)
        return bool(pipeline.execute()[0])


def release(store: Store, job_id: str, *, lost: bool, attempt: int | None = None) -> str:
    with store.client.pipeline() as pipeline:
        store.release(pipeline, job_id, attempt=attempt, lost=lost, result=b"{}", now=NOW)
        return pipeline.execute()[0].decode()


def queue_of(store: Store) -> JobQueue:
    return JobQueue(store)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut out, put in or doubled."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(changed)) if changed else 0
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[at : at + chance.randint(1, 9)]
            case 2:
                changed[at:at] = bytes([chance.choice([0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC6, 0xDB, 0xDD, 0xDF, 0xFF])])
            case _:
                changed[at:at] = changed[at : at + chance.randint(1, 40)]
    return bytes(changed)
