"""Jobs through queue, worker and launcher: what comes back, and that nothing else does."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from jailrig import LauncherUnderTest
from servicerig import Service, service_folder

from sandboxd.api import answers

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def parts(_launcher: LauncherUnderTest) -> Iterator[Service]:
    with service_folder() as folder:
        service = Service(_launcher.instance, folder)
        service.start_worker()
        yield service
        service.close()


@pytest.fixture
def service(parts: Service, launcher: LauncherUnderTest) -> Service:
    return parts


def run_stage(job: dict[str, Any]) -> dict[str, Any]:
    stage: dict[str, Any] = job["stages"][-1]
    return stage


def test_a_program_runs_and_its_output_comes_back(service: Service) -> None:
    job = service.python("print(6 * 7)")
    assert (job["state"], job["verdict"], job["reason"]) == ("finished", "ok", "ended with exit status 0")
    stage = run_stage(job)
    assert (stage["name"], stage["exit_code"], stage["signal"]) == ("run", 0, None)
    assert (stage["stdout"], stage["stdout_encoding"], stage["stderr"]) == ("42\n", "utf8", "")
    assert job["created_at"] < job["started_at"] < job["finished_at"]
    host, _, pid = job["worker"].rpartition(":")
    assert host
    assert int(pid) == service.workers[0].pid


def test_the_document_is_what_openapi_describes(service: Service) -> None:
    for job in (
        service.python("print(1)"),
        service.python("import os; os.abort()"),
        service.post({"language": "c", "source": "int main(void) { return 3; }"}),
        service.post({"language": "c", "source": "int main(void) {"}),
        service.python("while True: pass", limits={"cpu_time_s": 0.2}),
    ):
        answers.Job.model_validate(job)
        assert job["policy"]["digest"].startswith("sha256:")
        assert job["image"]["digest"].startswith("host-stat:")
        assert job["isolation"]["without"] == []


def test_a_compiled_program_has_two_stages(service: Service) -> None:
    source = "#include <stdio.h>\nint main(int n, char **a) { puts(a[1]); return n; }"
    job = service.post({"language": "c", "source": source, "args": ["é"]})
    assert [stage["name"] for stage in job["stages"]] == ["compile", "run"]
    assert [stage["verdict"] for stage in job["stages"]] == ["ok", "runtime_error"]
    assert (job["verdict"], run_stage(job)["exit_code"], run_stage(job)["stdout"]) == ("runtime_error", 2, "é\n")


def test_what_the_compiler_says_comes_back(service: Service) -> None:
    job = service.post({"language": "c", "source": "int main(void) { return undeclared; }"})
    assert (job["verdict"], len(job["stages"])) == ("compile_error", 1)
    assert "undeclared" in run_stage(job)["stderr"]
    assert run_stage(job)["exit_code"] == 1


def test_stdin_files_arguments_and_environment_arrive(service: Service) -> None:
    source = "import os, sys; print(sys.stdin.buffer.read(), sys.argv[1:], os.environ['A'], open('d/x', 'rb').read())"
    job = service.post(
        {
            "language": "python",
            "files": [
                {"path": "other.py", "content": ""},
                {"path": "main.py", "content": source},
                {"path": "d/x", "content": base64.b64encode(b"\0\xff").decode(), "encoding": "base64"},
            ],
            "stdin": base64.b64encode(b"\xfe\n").decode(),
            "stdin_encoding": "base64",
            "args": ["a b", ""],
            "env": {"A": "ü"},
        }
    )
    assert run_stage(job)["stdout"] == "b'\\xfe\\n' ['a b', ''] ü b'\\x00\\xff'\n"


def test_stdin_is_at_its_end_when_none_was_given(service: Service) -> None:
    assert run_stage(service.python("import sys; print(repr(sys.stdin.read()))"))["stdout"] == "''\n"


def test_binary_output_comes_back_to_the_byte(service: Service) -> None:
    stage = run_stage(service.python("import sys; sys.stdout.buffer.write(bytes(range(256)))"))
    assert stage["stdout_encoding"] == "base64"
    assert base64.b64decode(stage["stdout"]) == bytes(range(256))


def test_output_over_the_bound_keeps_both_ends_and_counts_the_rest(service: Service) -> None:
    job = service.python(
        "import sys; sys.stdout.write('a' * 1000 + 'b' * 5000 + 'c' * 1000)", limits={"output_bytes": 2000}
    )
    stage = run_stage(job)
    assert job["verdict"] == "ok"
    assert stage["stdout"] == "a" * 1000 + "c" * 1000
    assert (stage["stdout_dropped_bytes"], stage["stdout_gap_at_bytes"]) == (5000, 1000)
    assert (stage["stderr_dropped_bytes"], stage["stderr_gap_at_bytes"]) == (0, None)


def test_output_without_end_is_ended(service: Service) -> None:
    job = service.python("while True: print('x' * 1000)", limits={"output_bytes": 10_000})
    stage = run_stage(job)
    assert job["verdict"] == "output_exceeded"
    assert len(stage["stdout"]) <= 10_000
    assert stage["stdout_dropped_bytes"] > 100_000


def test_a_gigabyte_of_output_is_bounded(service: Service) -> None:
    job = service.python("import os\nfor _ in range(1024): os.write(1, bytes(1 << 20))", limits={"cpu_time_s": 10})
    assert job["verdict"] == "output_exceeded"
    assert len(run_stage(job)["stdout"]) <= 1 << 20


def test_a_line_of_64_kib_is_whole(service: Service) -> None:
    assert run_stage(service.python("print('x' * 65536)"))["stdout"] == "x" * 65536 + "\n"


@pytest.mark.parametrize(
    ("source", "limits", "verdict"),
    [
        ("while True: pass", {"cpu_time_s": 0.2}, "cpu_time_exceeded"),
        ("import time; time.sleep(60)", {"wall_time_s": 0.3}, "wall_time_exceeded"),
        ("x = bytearray(1 << 30)", {"memory_bytes": 64 << 20}, "memory_exceeded"),
        ("import os; os.kill(os.getpid(), 11)", {}, "signalled"),
        ("raise SystemExit(9)", {}, "runtime_error"),
    ],
)
def test_each_ending_has_its_verdict(service: Service, source: str, limits: dict[str, float], verdict: str) -> None:
    job = service.python(source, limits=limits)
    assert (job["state"], job["verdict"]) == ("finished", verdict)
    for name, value in limits.items():
        assert run_stage(job)["limits"][name] == value


@pytest.mark.parametrize(
    ("command", "exit_code", "name"),
    [
        (["/nonexistent"], 127, "ENOENT"),
        (["/usr/bin/python3/x"], 127, "ENOTDIR"),
        (["/usr"], 126, "EACCES"),
        (["./data"], 126, "EACCES"),
    ],
)
def test_a_command_that_cannot_be_executed_is_the_programs(
    service: Service, command: list[str], exit_code: int, name: str
) -> None:
    job = service.post({"command": command, "files": [{"path": "data", "content": "x"}]})
    assert (job["state"], job["verdict"]) == ("finished", "runtime_error")
    assert run_stage(job)["exit_code"] == exit_code
    assert name in job["reason"]


def test_a_thing_that_is_no_program_is_the_programs_fault(service: Service) -> None:
    job = service.post({"command": ["./data"], "files": [{"path": "data", "content": "\x01", "executable": True}]})
    assert (job["verdict"], run_stage(job)["exit_code"]) == ("runtime_error", 126)
    assert "ENOEXEC" in job["reason"]


def test_jobs_run_in_the_order_they_came(service: Service) -> None:
    ids = [service.python(f"print({n})", wait=0)["id"] for n in range(10)]
    jobs = [service.get(job_id) for job_id in ids]
    assert [run_stage(job)["stdout"] for job in jobs] == [f"{n}\n" for n in range(10)]
    starts = [job["started_at"] for job in jobs]
    assert starts == sorted(starts)


def test_a_stored_result_is_small_and_rq_keeps_nothing(service: Service) -> None:
    service.python("print(1)")
    before = set(service.store.client.scan_iter("*"))
    job = service.python("print(2)")
    added = set(service.store.client.scan_iter("*")) - before
    assert added == {f"{service.settings.prefix}:job:{job['id']}".encode()}
    assert sum(service.store.client.memory_usage(key, samples=0) or 0 for key in added) <= 8192


def test_a_compiled_program_that_is_too_large_does_not_compile_and_says_why(service: Service) -> None:
    job = service.post({"language": "c", "source": "char a[40 << 20] = {1}; int main() { return a[5]; }"})
    assert (job["state"], job["verdict"]) == ("finished", "compile_error")
    assert "at most 256 regular files of together 32 MiB" in job["reason"]
    assert [stage["name"] for stage in job["stages"]] == ["compile"]


def test_a_large_result_is_stored_small(service: Service) -> None:
    job = service.python("print('y\\n' * 500_000)")
    assert run_stage(job)["stdout"] == "y\n" * 500_000 + "\n"
    assert (service.store.client.memory_usage(f"{service.settings.prefix}:job:{job['id']}", samples=0) or 0) < 16_384


def test_a_job_takes_few_commands(service: Service) -> None:
    def calls() -> dict[str, int]:
        stats = service.store.client.info("commandstats")
        return {name: stat["calls"] for name, stat in stats.items()}

    service.python("print(1)")
    before = calls()
    for _ in range(20):
        service.python("print(1)")
    after = calls()
    per_job = {name: (count - before.get(name, 0)) / 20 for name, count in after.items()}
    # Submit, RQ's fetch, claim, finish.
    assert per_job["cmdstat_exec"] <= 4.5
    assert sum(per_job.values()) <= 70
