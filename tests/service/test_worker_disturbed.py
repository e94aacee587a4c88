"""Cancelled jobs; workers, launchers and a Redis that die; strangers in the queue: each job ends in a defined state."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jailrig import SCALE, LauncherUnderTest
from rig import NOW, wait_until
from rq import Queue, Worker
from rq.serializers import JSONSerializer
from rq.suspension import resume, suspend
from servicerig import Service, command, service_folder

from sandboxd.instance import SERVICE_USER
from sandboxd.languages import OUTPUT_NAME
from sandboxd.spec import InputFile, JobRequest
from sandboxd.store import JobRecord
from workers.bury import bury_worker, recover, worker_name

pytestmark = pytest.mark.root

LONG = "import time; print('on', flush=True); time.sleep(60)"
PRINTS = JobRequest(language="python", files=(InputFile(path="main.py", content=b"print(1)"),))
PHASES = [
    ("cpp", '#include <bits/stdc++.h>\n#include <regex>\nint main() { std::regex r("a*"); }', "cc1plus"),
    ("c", "#include <unistd.h>\nint main(void) { pause(); }", OUTPUT_NAME),
]
"""Language, source, and the process by which a phase is known."""
KILL_MOMENTS = int(os.environ.get("KILL_MOMENTS", "16"))
SHORT = "import time; time.sleep(1.5); print('done')"


@pytest.fixture(scope="module")
def parts(_launcher: LauncherUnderTest) -> Iterator[Service]:
    with service_folder() as folder:
        service = Service(_launcher.instance, folder)
        yield service
        service.close()


@pytest.fixture
def service(parts: Service, launcher: LauncherUnderTest) -> Iterator[Service]:
    """A service with one worker, which the test may disturb."""
    parts.start_worker()
    yield parts
    pids = [worker.pid for worker in parts.workers]
    parts.stop_workers()
    for pid in pids:
        # What a killed worker left expires by itself, but not before the next test.
        bury(parts, pid)
    assert parts.queue.depth() == 0


@pytest.fixture
def own_service(own_launcher: LauncherUnderTest) -> Iterator[Service]:
    """A service whose launcher the test may kill."""
    with service_folder() as folder:
        service = Service(own_launcher.instance, folder)
        service.start_worker()
        yield service
        service.close()


def bury(service: Service, pid: int) -> None:
    """As the worker does that is started in its place."""
    bury_worker(service.queue, worker_name(service.settings, pid))


def running(service: Service, source: str = LONG, **more: Any) -> str:
    """The id of a job that runs now."""
    job_id: str = service.python(source, wait=0, **more)["id"]
    service.await_state(job_id, "running")
    return job_id


def rq_records(service: Service) -> dict[str, str]:
    """All that Redis holds beside what is ours, and its type; what a worker has is named as if it were the only one."""
    worker = re.compile(rf"{re.escape(worker_name(service.settings, 0)).removesuffix('0')}[0-9]+")
    keys = [key.decode() for key in service.store.client.scan_iter("*")]
    ours = tuple(f"{service.settings.prefix}:{kind}" for kind in ("job:", "tokens"))
    return {
        worker.sub("WORKER", key): service.store.client.type(key).decode() for key in keys if not key.startswith(ours)
    }


def names(launcher: LauncherUnderTest) -> set[str]:
    """Of the processes that live in sandboxes now."""
    found = set()
    for pid in launcher.sandbox_pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def payload_sleeps(launcher: LauncherUnderTest) -> Callable[[], bool]:
    """Whether the program has come to its `sleep`."""

    def sleeps() -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return any("nanosleep" in Path(f"/proc/{pid}/wchan").read_text() for pid in launcher.sandbox_pids())
        return False

    return sleeps


# Cancellation


def test_a_running_job_is_cancelled_within_a_second(service: Service, launcher: LauncherUnderTest) -> None:
    job_id = running(service)
    wait_until(payload_sleeps(launcher), 10)
    begin = time.monotonic()
    answer = service.delete(job_id)
    assert time.monotonic() - begin < 1 * SCALE
    assert answer.status_code == 200
    job = answer.json
    assert (job["state"], job["verdict"], job["reason"]) == ("cancelled", None, "cancelled while it ran")
    assert (job["stages"][0]["verdict"], job["stages"][0]["stdout"]) == (None, "on\n")
    launcher.await_nothing_left()
    assert service.python("print(1)")["verdict"] == "ok"


def test_a_job_is_cancelled_while_it_compiles(service: Service) -> None:
    source = '#include <bits/stdc++.h>\n#include <regex>\nint main() { std::regex r("a*"); }'
    job_id = service.post({"language": "cpp", "source": source}, wait=0)["id"]
    service.await_state(job_id, "running")
    assert service.delete(job_id).json["state"] == "cancelled"
    job = service.get(job_id)
    assert [stage["name"] for stage in job["stages"]] == ["compile"]


def test_a_queued_job_is_cancelled_and_never_runs(service: Service) -> None:
    first = running(service)
    second = service.python("print('never')", wait=0)["id"]
    assert service.delete(second).json["state"] == "cancelled"
    assert service.delete(first).json["state"] == "cancelled"
    assert service.python("print(1)")["verdict"] == "ok"
    job = service.get(second)
    assert (job["state"], job["started_at"], job["stages"]) == ("cancelled", None, [])


def test_a_cancellation_whose_message_is_lost_is_seen_all_the_same(service: Service) -> None:
    job_id = running(service)
    record = service.store.job(job_id)
    assert record is not None
    assert service.store.cancel(job_id, record.owner, NOW)[0] == "running"
    assert service.get(job_id)["state"] == "cancelled"


def test_a_late_cancellation_does_not_hit_the_next_job(service: Service) -> None:
    for _ in range(10):
        first = service.python("print(1)", wait=0)["id"]
        second = service.python("print(2)", wait=0)["id"]
        service.delete(first)
        assert service.get(second)["verdict"] == "ok"


# Workers that die


def test_the_job_of_a_killed_worker_is_run_once_more(service: Service, launcher: LauncherUnderTest) -> None:
    job_id = running(service, SHORT)
    victim = service.workers[0]
    victim.kill()
    victim.wait()
    bury(service, victim.pid)
    record = service.store.job(job_id)
    assert record is not None
    assert (record.state, record.attempt) == ("queued", 1)
    service.start_worker()
    job = service.get(job_id)
    assert (job["state"], job["verdict"], job["stages"][0]["stdout"]) == ("finished", "ok", "done\n")


@pytest.mark.parametrize(("language", "source", "process"), PHASES, ids=["compiles", "runs"])
def test_a_job_whose_worker_died_twice_has_failed_once_and_with_the_reason(
    service: Service, launcher: LauncherUnderTest, language: str, source: str, process: str
) -> None:
    assert service.python("print(1)")["verdict"] == "ok"
    records = rq_records(service)
    with service.store.subscribe_ended() as ended:
        job_id = service.post({"language": language, "source": source}, wait=0)["id"]
        for _ in range(2):
            wait_until(lambda: process in names(launcher), 20 * SCALE)
            victim = service.workers[-1]
            victim.kill()
            victim.wait()
            launcher.await_nothing_left()
            bury(service, victim.pid)
            service.start_worker()
        job = service.get(job_id)
        assert (job["state"], job["verdict"], job["stages"]) == ("failed", "internal_error", [])
        assert "the worker died" in job["reason"]
        assert service.python("print(1)")["verdict"] == "ok", "the last worker has nothing of it in hand"
        told = [message["data"] for message in iter(lambda: ended.get_message(timeout=1), None)]
    assert told.count(job_id.encode()) == 1
    assert rq_records(service) == records


@pytest.mark.slow
@pytest.mark.timeout(180 * SCALE)
def test_a_worker_killed_at_any_moment_of_a_job_costs_no_job(service: Service, launcher: LauncherUnderTest) -> None:
    """Taken from the queue, compiled, run, stored: a compiled hello takes about a tenth of a second."""
    source = '#include <stdio.h>\nint main(void) { puts("done"); }'
    assert service.python("print(1)")["verdict"] == "ok"
    attempts, records = set(), rq_records(service)
    for moment in range(KILL_MOMENTS):
        job_id = service.post({"language": "c", "source": source}, wait=0)["id"]
        time.sleep(moment * 0.15 / KILL_MOMENTS)
        victim = service.workers[-1]
        victim.kill()
        victim.wait()
        bury(service, victim.pid)
        service.start_worker()
        job = service.get(job_id)
        assert (job["state"], job["verdict"]) == ("finished", "ok"), f"killed in moment {moment}: {job}"
        assert job["stages"][-1]["stdout"] == "done\n"
        record = service.store.job(job_id)
        assert record is not None
        attempts.add(record.attempt)
        launcher.await_nothing_left()
        assert rq_records(service) == records, f"killed in moment {moment}"
    assert attempts == {1, 2}, "some were over first, some were run once more"


def test_a_job_that_waits_for_its_second_worker_is_cancelled_and_leaves_nothing(service: Service) -> None:
    assert service.python("print(1)")["verdict"] == "ok"
    records = rq_records(service)
    job_id = running(service)
    victim = service.workers[0]
    victim.kill()
    victim.wait()
    bury(service, victim.pid)
    assert service.delete(job_id).json["state"] == "cancelled"
    service.start_worker()
    assert service.python("print(1)")["verdict"] == "ok"
    assert rq_records(service) == records


def test_a_job_to_be_cancelled_whose_worker_died_is_cancelled(service: Service) -> None:
    job_id = running(service)
    victim = service.workers[0]
    victim.send_signal(signal.SIGSTOP)
    record = service.store.job(job_id)
    assert record is not None
    service.store.cancel(job_id, record.owner, NOW)
    victim.kill()
    victim.wait()
    bury(service, victim.pid)
    assert service.get(job_id)["state"] == "cancelled"


def test_burying_is_quick_and_forgets_the_worker(service: Service) -> None:
    job_id = running(service, SHORT)
    victim = service.workers[0]
    victim.kill()
    victim.wait()
    begin = time.monotonic()
    bury(service, victim.pid)
    assert time.monotonic() - begin < 0.5 * SCALE
    assert service.offers() == 0
    assert not Worker.all(queue=service.queue.rq, serializer=JSONSerializer)
    service.start_worker()
    assert service.get(job_id)["verdict"] == "ok"


@pytest.mark.slow
def test_a_worker_that_is_gone_unseen_is_noticed_by_the_others(service: Service) -> None:
    job_id = running(service, SHORT)
    victim = service.workers[0]
    service.start_worker()
    victim.kill()
    victim.wait()
    begin = time.monotonic()
    assert service.get(job_id, wait=40)["verdict"] == "ok"
    assert time.monotonic() - begin < 30 * SCALE


def test_a_job_lost_between_queue_and_worker_is_taken_back(service: Service) -> None:
    service.stop_workers()
    record = JobRecord(id="c" * 32, state="queued", owner="me", policy="default", image="host", created_at=NOW)
    service.queue.submit(record, PRINTS)
    service.store.client.lmove(service.queue.rq.key, service.queue.rq.intermediate_queue_key, "RIGHT", "RIGHT")
    assert service.queue.depth() == 0
    service.start_worker()
    assert service.await_state(record.id, "finished").attempt == 1
    assert service.queue.rq.intermediate_queue.get_job_ids() == []


def test_a_job_twice_in_the_queue_runs_once(service: Service) -> None:
    job_id = running(service, SHORT)
    with service.queue.transaction() as pipeline:
        service.queue.push(pipeline, job_id)
        pipeline.execute()
    assert service.get(job_id)["verdict"] == "ok"
    assert service.python("print(1)")["verdict"] == "ok"
    record = service.store.job(job_id)
    assert record is not None
    assert record.attempt == 1


# Stopping


def test_a_worker_told_to_stop_ends_its_job_first(service: Service) -> None:
    job_id = running(service, SHORT)
    worker = service.workers[0]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20 * SCALE) == 0
    assert service.get(job_id, wait=0)["verdict"] == "ok"
    assert service.offers() == 0


def test_a_worker_told_twice_gives_its_job_back(service: Service, launcher: LauncherUnderTest) -> None:
    job_id = running(service, SHORT)
    worker = service.workers[0]
    worker.send_signal(signal.SIGTERM)
    # Within a second it is taken for the same order, sent by a terminal and a supervisor.
    time.sleep(1.05)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10 * SCALE) == 0
    launcher.await_nothing_left()
    record = service.store.job(job_id)
    assert record is not None
    if record.state == "queued":
        assert record.attempt == 0
        service.start_worker()
    assert service.get(job_id)["verdict"] == "ok"


def test_an_idle_worker_stops_at_once(service: Service) -> None:
    worker = service.workers[0]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(3 * SCALE) == 0


def test_a_suspended_worker_takes_no_job_until_it_is_resumed(service: Service) -> None:
    time.sleep(1.1)  # `rq suspend` counts within a second
    suspend(service.store.client)
    try:
        service.python("print(1)")  # the worker had looked before it began to wait for a job
        waiting = service.python("print(2)", wait=2)
        assert waiting["state"] == "queued"
    finally:
        resume(service.store.client)
    assert service.get(waiting["id"])["verdict"] == "ok"


def test_a_worker_refuses_to_be_root(service: Service) -> None:
    done = subprocess.run(
        command("worker", user=None), env=service.environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == os.EX_NOPERM
    assert "must not be root" in done.stderr


def test_a_worker_is_the_service_user_and_nothing_more(service: Service) -> None:
    lines = Path(f"/proc/{service.workers[0].pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    uid = str(pwd.getpwnam(SERVICE_USER).pw_uid)
    assert status["Uid"].split() == [uid] * 4
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"


# Launchers and sandboxes that die


def test_a_killed_sandbox_is_our_fault_and_the_job_is_run_again(service: Service, launcher: LauncherUnderTest) -> None:
    job_id = running(service, SHORT)
    wait_until(payload_sleeps(launcher), 10)
    for pid in launcher.sandbox_pids():
        with contextlib.suppress(ProcessLookupError):  # died with its init
            os.kill(pid, signal.SIGKILL)
    job = service.get(job_id)
    record = service.store.job(job_id)
    assert record is not None
    # Whichever of the two was seen dead first: PID 1 (ours, run again), or the program.
    assert (job["verdict"], record.attempt) in (("ok", 2), ("signalled", 1))


def test_a_killed_launcher_is_waited_for_and_the_job_is_run_again(
    own_service: Service, own_launcher: LauncherUnderTest
) -> None:
    job_id = running(own_service, SHORT)
    wait_until(payload_sleeps(own_launcher), 10)
    own_launcher.kill()
    own_launcher.start()
    job = own_service.get(job_id)
    assert (job["state"], job["verdict"], job["stages"][0]["stdout"]) == ("finished", "ok", "done\n")
    record = own_service.store.job(job_id)
    assert record is not None
    assert record.attempt == 2


@pytest.mark.slow
def test_without_its_launcher_a_job_has_failed_within_30_seconds(
    own_service: Service, own_launcher: LauncherUnderTest
) -> None:
    job_id = running(own_service)
    begin = time.monotonic()
    own_launcher.kill()
    job = own_service.get(job_id, wait=40)
    assert time.monotonic() - begin < 30 * SCALE
    assert (job["state"], job["verdict"]) == ("failed", "internal_error")
    assert "launcher" in job["reason"]
    # Nothing can be run, so nothing is offered; and nothing that waits is lost.
    wait_until(lambda: own_service.offers() == 0, 15)
    own_launcher.start()
    wait_until(lambda: own_service.offers() == 1, 15)
    assert own_service.python("print(1)")["verdict"] == "ok"


def test_a_worker_without_a_launcher_takes_no_job(own_service: Service, own_launcher: LauncherUnderTest) -> None:
    own_launcher.kill()
    wait_until(lambda: own_service.offers() == 0, 15)
    record = JobRecord(id="a" * 32, state="queued", owner="me", policy="default", image="host", created_at=NOW)
    own_service.queue.submit(record, PRINTS)
    time.sleep(1)
    assert own_service.queue.depth() == 1
    own_launcher.start()
    assert own_service.await_state(record.id, "finished").attempt == 1


def test_what_the_launcher_refuses_after_all_is_our_fault_and_named(service: Service) -> None:
    record = JobRecord(id="b" * 32, state="queued", owner="me", policy="lax", image="host", created_at=NOW)
    service.queue.submit(record, JobRequest(command=("/usr/bin/true",), policy="lax"))
    failed = service.await_state(record.id, "failed")
    assert b"unknown policy" in failed.result
    assert b"internal_error" in failed.result


def test_a_job_whose_input_is_gone_has_failed(service: Service) -> None:
    first = running(service, SHORT)
    job_id = service.python("print(1)", wait=0)["id"]
    service.store.client.delete(f"{service.settings.prefix}:input:{job_id}")
    job = service.get(job_id)
    assert (job["state"], job["reason"]) == ("failed", "the job's input is gone")
    assert service.get(first)["verdict"] == "ok"


# Redis


def test_a_result_waits_for_redis_to_come_back(service: Service) -> None:
    job_id = running(service, "import time; time.sleep(0.5); print('kept')")
    # The append-only file is written before the job is answered; what is lost without it is at most a second.
    service.store.client.wait_aof(1, 0, 5000) if hasattr(service.store.client, "wait_aof") else time.sleep(1.1)
    service.redis.stop()
    time.sleep(1)
    service.redis.start()
    job = service.get(job_id)
    assert (job["state"], job["verdict"], job["stages"][0]["stdout"]) == ("finished", "ok", "kept\n")


@pytest.fixture
def room(service: Service) -> Iterator[Callable[[float], None]]:
    """Sets Redis's maxmemory, as a multiple of what it uses now (64 MiB and more); none afterwards."""
    # In small pieces: the buffers that a large one needs are given back some time later.
    ballast = [f"ballast:{number}" for number in range(1024)]
    for name in ballast:
        service.store.client.set(name, bytes(65_536))

    def set_room(factor: float) -> None:
        used = service.store.client.info("memory")["used_memory"]
        service.store.client.config_set("maxmemory", int(used * factor))

    yield set_room
    service.store.client.config_set("maxmemory", 0)
    service.store.client.delete(*ballast)


def test_an_accepted_job_waits_until_there_is_room_for_its_result(
    service: Service, room: Callable[[float], None]
) -> None:
    room(1.0 / 0.9)
    time.sleep(1)
    records = [
        JobRecord(id=f"{number:032x}", state="queued", owner="me", policy="default", image="host", created_at=NOW)
        for number in range(3)
    ]
    for record in records:
        service.queue.submit(record, PRINTS)
    # The worker stood at the queue already; before it asks for the next one it looks.
    service.await_state(records[0].id, "finished")
    wait_until(lambda: "no job is begun" in service.logs(), 10 * SCALE)
    time.sleep(1)
    assert service.queue.depth() == 2
    room(10.0)
    for record in records:
        assert b'"verdict":"ok"' in service.await_state(record.id, "finished").result


def test_a_result_that_finds_no_room_is_told_and_not_tried_again(
    service: Service, room: Callable[[float], None]
) -> None:
    job_id = running(
        service,
        "import os, time; time.sleep(1); os.write(1, os.urandom(15_000_000)) and None",
        limits={"output_bytes": 16 << 20},
    )
    room(1.12)
    job = service.get(job_id)
    assert (job["state"], job["verdict"]) == ("failed", "internal_error")
    assert "no room for the result" in job["reason"]
    record = service.store.job(job_id)
    assert record is not None
    assert record.attempt == 1
    room(10.0)
    time.sleep(1)
    # The worker lives on.
    assert service.python("print(1)")["verdict"] == "ok"


# Strangers in the queue


def test_a_function_that_is_not_ours_is_refused_and_not_even_imported(service: Service, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    marker = service.folder / "made-by-a-stranger"
    stranger = Queue(service.queue.rq.name, connection=service.store.client, serializer=JSONSerializer)
    for function in ("os.system", "posix.system", "subprocess.call", "workers.bury.bury", "workers.tasks.run_job.x"):
        stranger.enqueue(function, f"touch {marker}")
    assert service.python("print(1)")["verdict"] == "ok"
    assert not marker.exists()
    assert service.workers[0].poll() is None
    assert "not a job of this service" in service.logs()


def test_a_pickle_in_the_queue_is_not_opened(service: Service) -> None:
    marker = service.folder / "made-by-a-pickle"
    job = Queue(service.queue.rq.name, connection=service.store.client).enqueue("os.system", f"touch {marker}")
    pickled = b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    service.store.client.hset(job.key, "data", pickled)
    assert service.python("print(1)")["verdict"] == "ok"
    assert not marker.exists()
    assert service.workers[0].poll() is None


@pytest.mark.parametrize(
    "fields",
    [
        {"data": b"\xff\xfe"},
        {"created_at": "yesterday", "data": b"x"},
        {"timeout": "x", "data": b"x"},
        {"nothing": "x"},
    ],
    ids=["bytes", "no date", "no number", "no data"],
)
def test_garbage_in_the_queue_does_not_stop_a_worker(service: Service, fields: dict[str, Any]) -> None:
    service.store.client.hset("rq:job:garbage", mapping=fields)
    service.store.client.rpush(service.queue.rq.key, "garbage")
    assert service.python("print(1)")["verdict"] == "ok"
    assert service.workers[0].poll() is None, service.logs()
    service.store.client.delete("rq:job:garbage")


@pytest.mark.parametrize("entry", [b"\xff\xfe", b"", b"x" * 100_000, b"\0", "\u202e".encode()])
def test_an_entry_of_the_queue_that_is_no_id_ends_no_worker(service: Service, entry: bytes) -> None:
    """Nor does it keep one from starting that finds it where another left it."""
    redis = service.store.client
    for key in (service.queue.rq.key, service.queue.rq.intermediate_queue_key):
        redis.rpush(key, entry)
    assert service.python("print(1)")["verdict"] == "ok"
    assert service.workers[0].poll() is None, service.logs()
    service.start_worker()
    assert service.python("print(1)")["verdict"] == "ok"
    assert not redis.exists(service.queue.rq.key, service.queue.rq.intermediate_queue_key)


def test_records_of_rq_that_are_none_end_no_worker(service: Service) -> None:
    """As whoever may write to Redis could plant them: they would be there after each restart."""
    redis, name = service.store.client, f"{service.settings.prefix}.planted".replace(":", ".")
    redis.zadd(service.queue.rq.started_job_registry.key, {b"\xff\xfe": 1, b"no-execution": 1})
    redis.hset(f"rq:worker:{name}", mapping={"birth": b"\xff", "queues": b"\xff"})
    redis.sadd(f"rq:worker:{name}:executions", b"\xff")
    redis.sadd(f"{service.settings.prefix}:catalogues", b"\xff", "planted")
    redis.set(f"{service.settings.prefix}:catalogue:planted", "{")
    redis.sadd(f"{service.settings.prefix}:tokens", b"\xff")
    recover(service.queue)
    bury_worker(service.queue, name)
    service.start_worker()
    assert service.python("print(1)")["verdict"] == "ok"
    assert service.workers[0].poll() is None, service.logs()
    assert not redis.exists(
        service.queue.rq.started_job_registry.key, f"rq:worker:{name}", f"rq:worker:{name}:executions"
    )
    redis.srem(f"{service.settings.prefix}:tokens", b"\xff")


def test_the_name_of_a_worker_is_told_from_its_process(service: Service) -> None:
    names = [worker.name for worker in Worker.all(queue=service.queue.rq, serializer=JSONSerializer)]
    assert names == [worker_name(service.settings, service.workers[0].pid)]
