"""Making a job, looking at it, waiting for it, cancelling it."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rig import claim, finish, publish, queue_of, wait_until, withdraw

from sandboxd.api import answers
from sandboxd.catalogue import Catalogue
from sandboxd.result import Verdict
from sandboxd.spec import InputFile
from sandboxd.store import Store

PYTHON: dict[str, Any] = {"language": "python", "source": "print(1)"}
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def test_a_new_job_is_202_with_its_place(api: Any) -> None:
    answer = api.post(PYTHON)
    assert answer.status_code == 202
    job = answer.json
    assert re.fullmatch("[0-9a-f]{32}", job["id"])
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["verdict"] is job["reason"] is job["started_at"] is job["finished_at"] is job["worker"] is None
    assert job["stages"] == []
    assert job["policy"] == {"name": "default", "digest": None}
    assert job["image"] == {"name": "host", "digest": None}
    assert RFC3339.fullmatch(job["created_at"])
    assert api.get(answer.headers["Location"]).json == job


def test_a_new_job_waits_in_the_queue(api: Any, store: Store) -> None:
    ids = [api.post(PYTHON).json["id"] for _ in range(3)]
    assert queue_of(store).rq.get_job_ids() == ids


def test_the_worker_gets_what_was_asked_for(api: Any, store: Store) -> None:
    body = {
        "language": "c",
        "files": [
            {"path": "a.c", "content": "int main(){}"},
            {"path": "data/x.bin", "content": "AP8=", "encoding": "base64", "executable": True},
        ],
        "stdin": base64.b64encode(b"\xfe").decode(),
        "stdin_encoding": "base64",
        "args": ["x", "y z"],
        "env": {"A": "ü"},
        "limits": {"cpu_time_s": 0.5, "processes": 3},
        "compile_limits": {"wall_time_s": 7},
    }  # fmt: skip
    request = claim(store, api.post(body).json["id"]).request
    assert request is not None
    assert (request.language, request.command, request.policy, request.image) == ("c", None, "default", None)
    assert request.files == (
        InputFile(path="a.c", content=b"int main(){}"),
        InputFile(path="data/x.bin", content=b"\0\xff", executable=True),
    )
    assert request.stdin == b"\xfe"
    assert (request.args, request.env) == (("x", "y z"), {"A": "ü"})
    assert request.limits == {"cpu_time_ns": 500_000_000, "processes": 3}
    assert request.compile_limits == {"wall_time_ns": 7_000_000_000}


def test_a_source_is_stored_under_the_name_of_the_language(api: Any, store: Store, catalogue: Catalogue) -> None:
    request = claim(store, api.post(PYTHON).json["id"]).request
    assert request is not None
    assert request.files == (InputFile(path=catalogue.language("python").source_name, content=b"print(1)"),)


def test_a_command_needs_no_file(api: Any, store: Store) -> None:
    request = claim(store, api.post({"command": ["/usr/bin/id", "-u"]}).json["id"]).request
    assert request is not None
    assert (request.language, request.command) == (None, ("/usr/bin/id", "-u"))


def test_a_job_that_runs_says_since_when_and_where(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    claim(store, job_id)
    job = api.get(f"/v1/jobs/{job_id}").json
    assert (job["state"], job["worker"]) == ("running", "host:1")
    assert RFC3339.fullmatch(job["started_at"])


@pytest.mark.parametrize(
    "job_id", ["0" * 32, "x", "0" * 31, "0" * 33, "..%2f..", "A" * 32, "%00", "0" * 5000, "ended", "*"]
)
def test_an_unknown_job_is_404(api: Any, job_id: str) -> None:
    for answer in (api.get(f"/v1/jobs/{job_id}"), api.delete(f"/v1/jobs/{job_id}")):
        assert answer.status_code == 404
        assert answer.content_type == "application/problem+json"


def test_wait_returns_200_once_the_job_ended(api: Any, store: Store) -> None:
    ended_by = run_next_job(store)
    answer = api.post(PYTHON, wait=30)
    ended_by.join()
    assert answer.status_code == 200
    assert (answer.json["state"], answer.json["verdict"]) == ("finished", "ok")
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json['id']}"


def test_wait_ends_with_202_when_its_time_is_over(api: Any) -> None:
    begin = time.monotonic()
    answer = api.post(PYTHON, wait=0.3)
    assert answer.status_code == 202
    assert 0.3 <= time.monotonic() - begin < 2
    begin = time.monotonic()
    assert api.get(answer.headers["Location"], wait=0.3).json["state"] == "queued"
    assert 0.3 <= time.monotonic() - begin < 2


def test_a_waiting_get_is_woken_at_the_end(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    claim(store, job_id)
    ender = after(0.2, lambda: finish(store, job_id))
    begin = time.monotonic()
    assert api.get(f"/v1/jobs/{job_id}", wait=30).json["state"] == "finished"
    assert time.monotonic() - begin < 5
    ender.join()


def test_waiting_for_a_job_that_ended_returns_at_once(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    claim(store, job_id)
    finish(store, job_id)
    begin = time.monotonic()
    assert api.get(f"/v1/jobs/{job_id}", wait=30).json["state"] == "finished"
    assert time.monotonic() - begin < 1


def test_waiting_does_not_poll(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    api.get(f"/v1/jobs/{job_id}", wait=0.01)
    before = reads(store)
    api.get(f"/v1/jobs/{job_id}", wait=1)
    # One look when it comes, one after it registered, one when its time is over.
    assert reads(store) - before <= 3


def test_twenty_requests_wait_for_twenty_jobs_at_once(api: Any, store: Store) -> None:
    ids = [api.post(PYTHON).json["id"] for _ in range(20)]
    got: dict[str, str] = {}

    def wait_for(job_id: str) -> None:
        got[job_id] = api.get(f"/v1/jobs/{job_id}", wait=30).json["state"]

    threads = [threading.Thread(target=wait_for, args=(job_id,)) for job_id in ids]
    for thread in threads:
        thread.start()
    for job_id in ids:
        claim(store, job_id)
        finish(store, job_id)
    for thread in threads:
        thread.join()
    assert got == dict.fromkeys(ids, "finished")


def test_a_cancelled_queued_job_never_runs(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    answer = api.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200
    assert (answer.json["state"], answer.json["verdict"]) == ("cancelled", None)
    assert RFC3339.fullmatch(answer.json["finished_at"])
    assert queue_of(store).depth() == 0
    assert claim(store, job_id).request is None


def test_who_waits_for_a_job_learns_that_it_was_cancelled(api: Any) -> None:
    job_id = api.post(PYTHON).json["id"]
    canceller = after(0.2, lambda: api.delete(f"/v1/jobs/{job_id}"))
    begin = time.monotonic()
    assert api.get(f"/v1/jobs/{job_id}", wait=30).json["state"] == "cancelled"
    assert time.monotonic() - begin < 5
    canceller.join()


def test_a_job_cancelled_twice_is_200_both_times(api: Any) -> None:
    job_id = api.post(PYTHON).json["id"]
    first, second = api.delete(f"/v1/jobs/{job_id}"), api.delete(f"/v1/jobs/{job_id}")
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json == second.json


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_job_that_ended_cannot_be_cancelled(api: Any, store: Store, state: str) -> None:
    job_id = api.post(PYTHON).json["id"]
    claim(store, job_id)
    finish(store, job_id, state=state)
    answer = api.delete(f"/v1/jobs/{job_id}")
    assert answer.status_code == 409
    assert answer.json["type"] == "/v1/docs#job-ended"
    assert api.get(f"/v1/jobs/{job_id}").json["state"] == state


def test_cancelling_a_running_job_waits_for_its_end(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    claim(store, job_id)
    ender = after(0.2, lambda: finish(store, job_id, state="cancelled"))
    answer = api.delete(f"/v1/jobs/{job_id}")
    ender.join()
    assert (answer.status_code, answer.json["state"]) == (200, "cancelled")


def test_a_job_that_ends_by_itself_before_it_is_cancelled_is_409(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    claim(store, job_id)
    ender = after(0.2, lambda: finish(store, job_id, state="finished"))
    answer = api.delete(f"/v1/jobs/{job_id}")
    ender.join()
    assert answer.status_code == 409


def test_the_input_is_deleted_when_the_job_ends(api: Any, store: Store) -> None:
    ids = [api.post({"language": "python", "source": "x" * 100_000}).json["id"] for _ in range(2)]
    api.delete(f"/v1/jobs/{ids[0]}")
    claim(store, ids[1])
    finish(store, ids[1])
    for job_id in ids:
        assert not list(store.client.scan_iter(f"{store.prefix}:input:{job_id}"))
        assert store.client.memory_usage(f"{store.prefix}:job:{job_id}", samples=0) < 2048


def test_a_job_that_ended_is_kept_as_long_as_the_setting_says(api: Any, store: Store) -> None:
    job_id = api.post(PYTHON).json["id"]
    assert store.client.ttl(f"{store.prefix}:job:{job_id}") == -1
    claim(store, job_id)
    finish(store, job_id)
    assert 86_000 < store.client.ttl(f"{store.prefix}:job:{job_id}") <= 86_400


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.INTERNAL_ERROR])
def test_the_document_is_what_openapi_describes(api: Any, store: Store, verdict: Verdict) -> None:
    job_id = api.post(PYTHON).json["id"]
    answers.Job.model_validate_json(api.get(f"/v1/jobs/{job_id}").data)
    claim(store, job_id)
    finish(store, job_id, state="failed" if verdict is Verdict.INTERNAL_ERROR else "finished", verdict=verdict)
    job = answers.Job.model_validate_json(api.get(f"/v1/jobs/{job_id}").data)
    assert job.verdict == verdict.value


def test_a_full_queue_is_503_with_retry_after(make_api: Callable[..., Any]) -> None:
    api = make_api(queue_max=2)
    assert [api.post(PYTHON).status_code for _ in range(3)] == [202, 202, 503]
    answer = api.post(PYTHON)
    assert answer.json["type"] == "/v1/docs#queue-full"
    assert int(answer.headers["Retry-After"]) > 0


def test_without_a_worker_a_job_is_503_with_retry_after(
    make_api: Callable[..., Any], store: Store, catalogue: Catalogue
) -> None:
    withdraw(store)
    api = make_api()
    answer = api.post(PYTHON)
    assert (answer.status_code, answer.json["type"]) == (503, "/v1/docs#no-worker")
    assert int(answer.headers["Retry-After"]) > 0
    publish(store, catalogue)
    assert api.post(PYTHON).status_code == 202


def test_bounds_can_be_lowered_by_settings(make_api: Callable[..., Any]) -> None:
    api = make_api(source_max_bytes=10, stdin_max_bytes=5, files_max=1, wait_max_s=2, body_max_bytes=2000)
    for body, field, bound in (
        ({"language": "python", "source": "x" * 11}, "source", "10"),
        ({"language": "python", "source": "", "stdin": "x" * 6}, "stdin", "5"),
        ({"language": "python", "files": [{"path": f"{i}", "content": ""} for i in range(2)]}, "files", "1"),
    ):
        error = api.post(body).json["errors"][0]
        assert error["field"] == field
        assert bound in error["message"]
    assert api.post(PYTHON, wait=3).json["errors"][0]["message"] == "must be at most 2"
    assert api.post({"language": "python", "source": "x" * 2000}).status_code == 413


def after(seconds: float, do: Callable[[], object]) -> threading.Thread:
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


def run_next_job(store: Store) -> threading.Thread:
    """Claim and finish whatever is queued next, as a worker does."""

    def work() -> None:
        queue = queue_of(store)
        wait_until(lambda: queue.depth() == 1, 10)
        job_id = queue.rq.get_job_ids()[0]
        claim(store, job_id)
        finish(store, job_id)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def reads(store: Store) -> int:
    return int(store.client.info("commandstats")["cmdstat_hgetall"]["calls"])
