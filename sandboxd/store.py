"""The only Redis data access: jobs, inputs, results, what the launchers offer, tokens; key names and expiry.

Keys, each below the instance's prefix:

    job:ID              hash: state and times of a job, and its result once it ended
    input:ID            msgpack: the job as asked for (`spec.JobRequest`); deleted when the job ends
    catalogue:WORKER    JSON: what that worker's launcher offers; expires unless the worker renews it
    catalogues          set of the workers that published one
    tokens              set of sha256 of the API tokens (hexadecimal); never a token
    ended               channel: ids of jobs that ended

A job changes its state by the scripts of `transitions` alone.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline, PubSub
from redis.retry import Retry

from sandboxd import transitions
from sandboxd.catalogue import Catalogue
from sandboxd.errors import InternalError, StoreFull, StoreUnavailable
from sandboxd.spec import JobRequest, Struct

ATTEMPTS_MAX = 2
"""A job whose worker died is run once more, then it has failed."""
CATALOGUE_TTL_S = 30
ACCEPT_BELOW = 0.6
"""No job is accepted above this part of Redis's maxmemory: the rest is for the results of those that were."""
RUN_BELOW = 0.8
"""No job is begun above this part: an accepted job waits in the queue until results expire, rather than lose its own.
"""
_ROOM_CHECK_S = 0.5
_CONNECT_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 5.0
_CONNECTIONS_MAX = 4096

_P = ParamSpec("_P")
_R = TypeVar("_R")


class JobRecord(Struct, frozen=True, kw_only=True):
    """A job as stored. Times are RFC 3339; `result` is the JSON that `document.result_document` made, b"" until the
    job ended.
    """

    id: str
    state: str
    owner: str
    policy: str
    image: str
    created_at: str
    started_at: str = ""
    finished_at: str = ""
    worker: str = ""
    attempt: int = 0
    cancel: bool = False
    result: bytes = b""

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "cancelled", "failed")


# Made here, once: see `document`.
_CATALOGUE = msgspec.json.Decoder(Catalogue)
_REQUEST = msgspec.msgpack.Decoder(JobRequest)


class Claim(Struct, frozen=True, kw_only=True):
    """What a worker got when it asked for a job: the state it was in (`queued`: it is the worker's now), and its input.

    `request` is None when the job is not the worker's, or when its input is gone or cannot be read.
    """

    state: str
    attempt: int
    request: JobRequest | None
    policy: str = ""
    image: str = ""


def connect(url: str, *, answer_timeout_s: float | None = _ANSWER_TIMEOUT_S) -> redis.Redis:
    """A client of the Redis at `url`. It answers or fails within seconds: waiting for Redis to come back is the
    caller's to decide.
    """
    return redis.Redis.from_url(
        url,
        max_connections=_CONNECTIONS_MAX,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
        socket_timeout=answer_timeout_s,
        # One more try covers a connection that a restarted Redis closed; every change here may safely be applied twice.
        retry=Retry(NoBackoff(), 1),
        health_check_interval=0,
    )


_PASSING = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ")
"""How Redis's answers begin that will be others later: a full disk below it, first of all."""


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what redis-py raises into our own: away, loading, full or read-only is StoreUnavailable; all else is our
    fault.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ReadOnlyError) as error:
        raise StoreUnavailable(f"Redis does not answer: {error}") from error
    except redis.exceptions.OutOfMemoryError as error:
        raise StoreFull("Redis is out of memory") from error
    except redis.RedisError as error:
        told = str(error).rpartition("caused error: ")[2]  # of a command in a pipeline its data comes first
        if told.startswith(_PASSING):
            raise StoreUnavailable(f"Redis takes no command now: {told}") from error
        raise InternalError(f"Redis refused a command: {told}") from error


def _typed_errors(method: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with redis_errors():
            return method(*args, **kwargs)

    return call


class Store:
    """Redis as the service sees it. Methods raise StoreUnavailable when it is away."""

    def __init__(self, client: redis.Redis, prefix: str, result_ttl_s: int = 86_400) -> None:
        self.client = client
        self.prefix = prefix
        self.result_ttl_s = result_ttl_s
        self.ended_channel = f"{prefix}:ended"
        self._room = (0, 0)
        self._next_room_check = 0.0

    def _keys(self, job_id: str) -> tuple[str, str]:
        return f"{self.prefix}:job:{job_id}", f"{self.prefix}:input:{job_id}"

    @_typed_errors
    def ping(self) -> None:
        self.client.ping()

    @_typed_errors
    def check_room(self, below: float) -> None:
        """Raises StoreFull when more than that part of Redis's maxmemory is used: `ACCEPT_BELOW` or `RUN_BELOW`.

        Asked every `_ROOM_CHECK_S` seconds. A Redis without `maxmemory` is its operator's to watch.
        """
        if time.monotonic() >= self._next_room_check:
            memory: Any = self.client.info("memory")
            self._room = (memory["used_memory"], memory["maxmemory"])
            self._next_room_check = time.monotonic() + _ROOM_CHECK_S
        used, bound = self._room
        if bound and used > below * bound:
            raise StoreFull(
                f"{used >> 20} of the {bound >> 20} MiB of Redis are used, and jobs are taken below {below:.0%}: "
                "results have to expire first"
            )

    # Jobs, seen from the API

    def put_job(self, pipeline: Pipeline, record: JobRecord, request: JobRequest) -> None:
        """Add a new, queued job to `pipeline`; the caller executes it together with the enqueueing."""
        job, given = self._keys(record.id)
        fields: dict[Any, Any] = {
            "state": record.state,
            "owner": record.owner,
            "policy": record.policy,
            "image": record.image,
            "created_at": record.created_at,
        }
        pipeline.hset(job, mapping=fields)
        pipeline.set(given, msgspec.msgpack.encode(request))

    @_typed_errors
    def job(self, job_id: str) -> JobRecord | None:
        """The job, or None when there is none of that id (any more)."""
        fields: dict[bytes, bytes] = self.client.hgetall(self._keys(job_id)[0])  # type: ignore[assignment]  # redis-py also types the async client
        if not fields:
            return None
        text = {name.decode(): value.decode() for name, value in fields.items() if name != b"result"}
        return JobRecord(
            id=job_id,
            state=text["state"],
            owner=text["owner"],
            policy=text["policy"],
            image=text["image"],
            created_at=text["created_at"],
            started_at=text.get("started_at", ""),
            finished_at=text.get("finished_at", ""),
            worker=text.get("worker", ""),
            attempt=int(text.get("attempt", "0")),
            cancel="cancel" in text,
            result=fields.get(b"result", b""),
        )

    @_typed_errors
    def cancel(self, job_id: str, owner: str, now: str) -> tuple[str, str]:
        """Ask for a job's end. A queued one ends here; for a running one the wish is recorded and its worker must be
        told.

        Returns the state found (`queued`: it is cancelled now; "": no such job of this owner) and the worker's name
        when it runs.
        """
        answer: Any = self.client.eval(
            transitions.CANCEL, 2, *self._keys(job_id), owner, now, self.result_ttl_s, self.ended_channel, job_id
        )
        return answer[0].decode(), answer[1].decode()

    # Jobs, seen from a worker. Each adds one command to the worker's own pipeline: one round trip, all or nothing.

    def claim(self, pipeline: Pipeline, job_id: str, *, worker: str, worker_name: str, now: str) -> None:
        """Take a queued job; `claimed` decodes the answer. `worker` is shown to clients, `worker_name` is RQ's."""
        pipeline.eval(transitions.CLAIM, 2, *self._keys(job_id), worker, worker_name, now)

    @staticmethod
    def claimed(answer: Any) -> Claim:  # noqa: ANN401  # what Redis answered
        """Decode the answer of `claim`."""
        state, attempt, given, policy, image = answer
        return Claim(
            state=state.decode(),
            attempt=int(attempt),
            request=_decoded(_REQUEST, given),
            policy=policy.decode(),
            image=image.decode(),
        )

    def finish(
        self,
        pipeline: Pipeline,
        job_id: str,
        *,
        attempt: int,
        state: str,
        result: bytes,
        now: str,
        also_delete: Sequence[str] = (),
    ) -> None:
        """Store a result and publish the end; answers 0, and changes nothing, when this execution no longer owns the
        job.
        """
        pipeline.eval(
            transitions.FINISH,
            2 + len(also_delete),
            *self._keys(job_id),
            *also_delete,
            attempt,
            state,
            result,
            now,
            self.result_ttl_s,
            self.ended_channel,
            job_id,
        )

    def release(
        self, pipeline: Pipeline, job_id: str, *, attempt: int | None, lost: bool, result: bytes, now: str
    ) -> None:
        """An execution ended without a result. Answers the state the job has then (b"" when there is no such job).

        `lost`: its worker died, so the job is queued once more, or has failed with `result` when that was the last
        attempt.
        Otherwise its worker gave it back, which costs no attempt. A job whose end was asked for is cancelled in both
        cases.
        """
        why = "lost" if lost else "returned"
        number = "" if attempt is None else attempt
        pipeline.eval(
            transitions.RELEASE,
            2,
            *self._keys(job_id),
            number,
            why,
            result,
            now,
            self.result_ttl_s,
            self.ended_channel,
            job_id,
            ATTEMPTS_MAX,
        )

    @_typed_errors
    def again(self, job_id: str, attempt: int) -> int:
        """The number of a second attempt of a job by the same worker, after a failure of ours; 0 when there is none
        left.
        """
        answer: Any = self.client.eval(transitions.AGAIN, 2, *self._keys(job_id), attempt, ATTEMPTS_MAX)
        return int(answer)

    def cancel_asked(self, pipeline: Pipeline, job_id: str) -> None:
        """Answers b"1" when a running job's end was asked for: the second line behind the message to its worker."""
        pipeline.hget(self._keys(job_id)[0], "cancel")

    @_typed_errors
    def drop_input(self, job_id: str) -> None:
        """Delete the input of a job that will not be run again."""
        self.client.delete(self._keys(job_id)[1])

    # What launchers offer

    def publish_catalogue(self, pipeline: Pipeline, worker: str, encoded: bytes) -> None:
        """Publish (or renew) what the launcher of `worker` offers: `catalogue.Catalogue` as JSON. It expires by
        itself.
        """
        pipeline.set(f"{self.prefix}:catalogue:{worker}", encoded, ex=CATALOGUE_TTL_S)
        pipeline.sadd(f"{self.prefix}:catalogues", worker)

    def withdraw_catalogue(self, pipeline: Pipeline, worker: str) -> None:
        """The worker ends, or its launcher went away."""
        pipeline.delete(f"{self.prefix}:catalogue:{worker}")
        pipeline.srem(f"{self.prefix}:catalogues", worker)

    @_typed_errors
    def catalogue(self) -> Catalogue | None:
        """The union of what is offered now; None while nothing is. Of two entries of one name the first worker's
        wins.
        """
        members: Any = self.client.smembers(f"{self.prefix}:catalogues")
        workers = sorted(members)
        if not workers:
            return None
        found: Any = self.client.mget([f"{self.prefix}:catalogue:".encode() + worker for worker in workers])
        # Workers of one host publish the same bytes: decode each text once.
        decoded = {encoded: _decoded(_CATALOGUE, encoded) for encoded in dict.fromkeys(found)}
        gone = [worker for worker, encoded in zip(workers, found, strict=True) if decoded[encoded] is None]
        if gone:
            self.client.srem(f"{self.prefix}:catalogues", *gone)
        return _union([catalogue for catalogue in decoded.values() if catalogue is not None])

    # Tokens

    @_typed_errors
    def set_token_hash(self, sha256_hex: str) -> None:
        """Let the token of this sha256 in, and no other any more."""
        with self.client.pipeline() as pipeline:
            pipeline.delete(f"{self.prefix}:tokens")
            pipeline.sadd(f"{self.prefix}:tokens", sha256_hex)
            pipeline.execute()

    @_typed_errors
    def token_hashes(self) -> tuple[str, ...]:
        """sha256 of every token that is let in."""
        digests: Any = self.client.smembers(f"{self.prefix}:tokens")
        return tuple(sorted(digest.decode("ascii", "ignore") for digest in digests))

    # Ends of jobs

    def subscribe_ended(self) -> PubSub:
        """A subscription to the ids of jobs that end, on a connection of its own."""
        listener: PubSub = self.client.pubsub()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        listener.subscribe(self.ended_channel)
        return listener


def _decoded(decoder: msgspec.json.Decoder[_R] | msgspec.msgpack.Decoder[_R], encoded: bytes | None) -> _R | None:
    """None for what is not there, and for what none of ours wrote."""
    if encoded is None:
        return None
    try:
        return decoder.decode(encoded)
    except msgspec.DecodeError:
        return None


def _union(catalogues: list[Catalogue]) -> Catalogue | None:
    if not catalogues:
        return None
    first = catalogues[0]
    if len(catalogues) == 1:
        return first
    return Catalogue(
        languages=tuple({item.name: item for each in reversed(catalogues) for item in each.languages}.values()),
        policies=tuple({item.name: item for each in reversed(catalogues) for item in each.policies}.values()),
        images=tuple({item.name: item for each in reversed(catalogues) for item in each.images}.values()),
        isolation=first.isolation,
        cpus=first.cpus,
    )
