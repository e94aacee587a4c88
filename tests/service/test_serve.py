"""`sandboxd serve`: one command, the whole service; what dies comes back, and nothing is left at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sandboxd.instance import SERVICE_USER

SCALE = float(os.environ.get("TIMEOUT_SCALE", "1"))
SANDBOXD = (sys.executable, "-I", "-m", "sandboxd")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """A `sandboxd serve` of its own, read line by line."""

    def __init__(self, state_root: Path, name: str) -> None:
        self.instance, self.port, self.state_root = name, free_port(), state_root
        self.said = ""
        self.environment = {**os.environ, "SANDBOXD_STATE_ROOT": str(state_root)}
        self.process = subprocess.Popen(
            [*SANDBOXD, "serve", "--instance", name, "--port", str(self.port), "--workers", "2"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.await_line(r"Ctrl-C stops it")

    def await_line(self, expression: str, timeout_s: float = 60.0) -> re.Match[str]:
        """Read what the service says until a text matches; what came before is forgotten."""
        assert self.process.stdout is not None
        deadline_s = time.monotonic() + timeout_s * SCALE
        while not (found := re.search(expression, self.said)):
            left_s = deadline_s - time.monotonic()
            ready = select.select([self.process.stdout], [], [], max(0.0, left_s))[0]
            chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"never said {expression!r}: {self.said}"
            self.said += chunk.decode(errors="replace")
        self.last, self.said = self.said[: found.end()], self.said[found.end() :]
        return found

    def children(self) -> dict[str, list[int]]:
        """Process ids by kind: redis, launcher, worker, api."""
        found: dict[str, list[int]] = defaultdict(list)
        for line in self._ps("--ppid", str(self.process.pid), "-o", "pid=,args="):
            pid, _, arguments = line.strip().partition(" ")
            kind = next(
                kind
                for kind in ("redis", "launcher", "worker", "api")
                if f"sandboxd {kind}" in arguments or kind in arguments.split()[0]
            )
            found[kind].append(int(pid))
        return found

    @staticmethod
    def _ps(*arguments: str) -> list[str]:
        done = subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False)
        return [line for line in done.stdout.splitlines() if "<defunct>" not in line]

    def client(self) -> httpx.Client:
        token = (self.state_root / self.instance / "token").read_text().strip()
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=90,
            trust_env=False,
        )

    def print_job(self, text: str) -> dict[str, object]:
        """Run one job to its end."""
        with self.client() as client:
            body = {"language": "python", "source": f"print({text!r})"}
            answer = client.post("/jobs", params={"wait": 30}, json=body)
            assert answer.status_code == 200, answer.text
            job: dict[str, object] = answer.json()
            return job

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask for the end; the exit status."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60 * SCALE)
        self.said += output.decode(errors="replace")
        return self.process.returncode

    def leftovers(self) -> list[str]:
        """What of this instance is still on the machine."""
        found = []
        for line in self._ps("-e", "-o", "pid=,args="):
            if self.instance in line and "pytest" not in line:
                found.append(line)
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if self.instance in line]
        for folder, names, _ in os.walk("/sys/fs/cgroup"):
            found += [f"{folder}/{name}" for name in names if name == f"sandboxd-{self.instance}"]
        found += [str(path) for path in Path("/run/sandboxd").glob("*") if path.name == self.instance]
        return found


@pytest.fixture(scope="module")
def state_root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandboxd-serve-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="module")
def service(state_root: Path) -> Iterator[Service]:
    service = Service(state_root, f"serve-{os.getpid()}")
    yield service
    assert service.end() == 0, service.said
    assert service.leftovers() == []


@contextlib.contextmanager
def own_service(state_root: Path, name: str) -> Iterator[Service]:
    """A service that the test itself ends."""
    service = Service(state_root, f"{name}-{os.getpid()}")
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.communicate()


def serve_fails(*arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """Exit status and message of a service that cannot start."""
    done = subprocess.run(
        [*prefix, *SANDBOXD, "serve", "--instance", f"fails-{os.getpid()}", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60 * SCALE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def user_of(pid: int) -> str:
    return pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name


def test_it_says_where_it_is_and_how_to_use_it(service: Service) -> None:
    assert f"sandboxd is ready at http://127.0.0.1:{service.port}" in service.last
    assert "2 workers" in service.last
    assert f"sudo sandboxd token show --instance {service.instance}" in service.last
    assert "curl" in service.last


def test_it_runs_a_job(service: Service) -> None:
    job = service.print_job("hello")
    assert job["verdict"] == "ok"


def test_only_supervisor_and_launcher_are_root(service: Service) -> None:
    users = {kind: user_of(pid) for kind, pids in service.children().items() for pid in pids}
    assert users == {"redis": SERVICE_USER, "launcher": "root", "worker": SERVICE_USER, "api": SERVICE_USER}


def test_the_token_is_never_in_redis(service: Service) -> None:
    token = (service.state_root / service.instance / "token").read_bytes().strip()
    for path in (service.state_root / service.instance / "redis").rglob("*"):
        if path.is_file():
            assert token not in path.read_bytes()


@pytest.mark.parametrize("kind", ["worker", "api", "launcher", "redis"])
def test_a_child_that_is_killed_is_started_anew_and_the_next_job_runs(service: Service, kind: str) -> None:
    service.said = ""
    os.kill(service.children()[kind][0], signal.SIGKILL)
    said = service.await_line(r"a child died and is started anew.*\n")
    assert kind in said.group()
    assert "SIGKILL" in said.group()
    with service.client() as client:
        deadline_s = time.monotonic() + 30 * SCALE
        while True:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/ready").status_code == 200:
                    break
            assert time.monotonic() < deadline_s, f"not ready after the death of {kind}"
            time.sleep(0.05)
    assert service.print_job(f"after {kind}")["verdict"] == "ok"


@pytest.mark.slow
@pytest.mark.timeout(150 * SCALE)
def test_a_launcher_that_is_frozen_is_killed_and_its_job_runs_again(service: Service) -> None:
    service.said = ""
    with service.client() as client:
        source = "import time; time.sleep(2); print('done')"
        job = client.post("/jobs", json={"language": "python", "source": source}).json()
        time.sleep(0.5)
        os.kill(service.children()["launcher"][0], signal.SIGSTOP)
        said = service.await_line(r"a child hangs and is killed.*\n", 60)
        assert "launcher" in said.group()
        ended = client.get(f"/jobs/{job['id']}", params={"wait": 60}, timeout=90).json()
    assert (ended["state"], ended["verdict"]) == ("finished", "ok"), (ended["reason"], service.said)
    assert ended["stages"][-1]["stdout"] == "done\n"


def test_an_instance_that_is_served_is_not_served_twice(service: Service) -> None:
    status, message = serve_fails(
        "--instance", service.instance, "--port", str(free_port()), SANDBOXD_STATE_ROOT=str(service.state_root)
    )
    assert status == os.EX_TEMPFAIL
    assert "is served already" in message


def test_a_port_in_use_is_said(service: Service) -> None:
    status, message = serve_fails("--port", str(service.port))
    assert status == os.EX_UNAVAILABLE
    assert f"port {service.port} of 127.0.0.1 is in use" in message
    assert "--port" in message


def test_an_ordinary_user_is_told_to_use_sudo() -> None:
    drop = ("setpriv", f"--reuid={SERVICE_USER}", f"--regid={SERVICE_USER}", "--clear-groups")
    status, message = serve_fails(prefix=drop)
    assert status == os.EX_NOPERM
    assert "sudo" in message


def test_a_missing_redis_is_named_with_the_command_that_installs_it() -> None:
    servers = [
        path
        for name in ("redis-server", "valkey-server")
        if (path := shutil.which(name, path="/usr/local/bin:/usr/bin:/bin"))
    ]
    hide = " && ".join(f"mount --bind /dev/null {os.path.realpath(path)}" for path in servers)
    status, message = serve_fails(
        "--port", str(free_port()), prefix=("unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "sh")
    )
    assert status == os.EX_UNAVAILABLE
    assert "apt-get install redis-server" in message


def test_a_redis_from_outside_is_refused_with_the_way_to_use_it() -> None:
    status, message = serve_fails(SANDBOXD_REDIS_URL="redis://127.0.0.1")
    assert status == os.EX_CONFIG
    assert "sandboxd worker" in message


def test_a_wrong_option_is_a_usage_error() -> None:
    status, message = serve_fails("--host", "0.0.0.0", "--no-auth")  # noqa: S104  # refused
    assert status == 2
    assert "loopback" in message


def test_jobs_and_token_are_kept_over_a_restart(state_root: Path) -> None:
    with own_service(state_root, "kept") as service:
        job = service.print_job("kept")
        assert service.end(signal.SIGINT) == 0
    with own_service(state_root, "kept") as service, service.client() as client:
        found = client.get(f"/jobs/{job['id']}")
        assert found.status_code == 200
        assert found.json()["verdict"] == "ok"
        assert service.end() == 0
        assert service.leftovers() == []


def test_when_it_is_killed_its_children_die_and_the_next_one_starts(state_root: Path) -> None:
    with own_service(state_root, "killed") as service:
        pidfds = [os.pidfd_open(pid) for pids in service.children().values() for pid in pids]
        service.process.kill()
        service.process.wait()
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 10 * SCALE)[0], "a child outlived the supervisor"
            os.close(pidfd)
    with own_service(state_root, "killed") as service:
        assert service.print_job("again")["verdict"] == "ok"
        assert service.end() == 0
        assert service.leftovers() == []


def test_a_start_that_nobody_reads_serves_all_the_same(state_root: Path) -> None:
    """`serve | true`."""
    port, name = free_port(), f"piped-{os.getpid()}"
    reader, writer = os.pipe()
    os.close(reader)
    service = subprocess.Popen(
        [*SANDBOXD, "serve", "--instance", name, "--port", str(port), "--workers", "1"],
        env={**os.environ, "SANDBOXD_STATE_ROOT": str(state_root)}, stdout=writer, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writer)
    try:
        token, deadline_s = state_root / name / "token", time.monotonic() + 30 * SCALE
        while True:
            assert service.poll() is None, "it ended"
            assert time.monotonic() < deadline_s
            with contextlib.suppress(httpx.TransportError, FileNotFoundError):
                headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
                if httpx.get(f"http://127.0.0.1:{port}/v1/ready", headers=headers, trust_env=False).status_code == 200:
                    break
            time.sleep(0.1)
        time.sleep(1)
        assert service.poll() is None, "it ended once it was ready"
    finally:
        service.terminate()
        assert service.wait(30 * SCALE) == 0


def test_a_log_that_nobody_takes_any_more_ends_nothing(state_root: Path) -> None:
    """`serve 2>&1 | less`, and q."""
    with own_service(state_root, "unread") as service:
        assert service.process.stdout is not None
        os.dup2(os.open("/dev/null", os.O_RDONLY), service.process.stdout.fileno())
        for _ in range(4):
            assert service.print_job("unread")["verdict"] == "ok"
        before = service.children()
        for pids in (before["worker"], before["launcher"]):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        with service.client() as client:
            deadline_s = time.monotonic() + 30 * SCALE
            while client.get("/ready").status_code != 200:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        assert service.print_job("again")["verdict"] == "ok"
        after = service.children()
        assert (after["redis"], after["api"]) == (before["redis"], before["api"])
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60 * SCALE) == 0
        assert service.leftovers() == []


def test_a_full_disk_below_redis_is_told_and_passes(tmp_path: Path) -> None:
    job = {"language": "python", "source": "print(1)"}
    tmp_path.chmod(0o711)
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0711", "tmpfs", tmp_path], check=True)
    try:
        with own_service(tmp_path, "full") as service, service.client() as client:
            assert service.print_job("before")["verdict"] == "ok"
            rest = tmp_path / "rest"
            with rest.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            deadline_s = time.monotonic() + 30 * SCALE
            while (answer := client.post("/jobs", json=job)).status_code != 503:
                assert answer.status_code == 202, answer.text
                assert time.monotonic() < deadline_s, "it accepts jobs that it cannot keep"
                time.sleep(0.05)
            assert answer.json()["type"].endswith("store-unavailable")
            assert int(answer.headers["Retry-After"]) > 0
            assert client.get("/ready").status_code == 503
            rest.unlink()
            while client.get("/ready").status_code != 200:
                assert time.monotonic() < deadline_s, service.said
                time.sleep(0.05)
            assert service.print_job("after")["verdict"] == "ok"
            assert service.end() == 0
            assert "Traceback" not in service.said
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_who_waits_for_a_job_is_answered_when_the_service_stops(state_root: Path) -> None:
    endless = {"language": "python", "source": "import time; time.sleep(30)", "limits": {"wall_time_s": 60}}
    with own_service(state_root, "waited") as service, service.client() as client:
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(client.post, "/jobs", params={"wait": 60}, json=endless)
            time.sleep(1.0 * SCALE)
            assert service.end() == 0
            assert answer.result().status_code == 202
        assert answer.result().json()["state"] == "running"


def test_the_job_of_a_killed_worker_runs_again_soon(service: Service) -> None:
    with service.client() as client:
        source = "import time; time.sleep(2); print('done')"
        job = client.post("/jobs", json={"language": "python", "source": source}).json()
        while client.get(f"/jobs/{job['id']}").json()["state"] != "running":
            time.sleep(0.02)
        for pid in service.children()["worker"]:
            os.kill(pid, signal.SIGKILL)
        ended = client.get(f"/jobs/{job['id']}", params={"wait": 20}, timeout=90).json()
    assert (ended["state"], ended["verdict"]) == ("finished", "ok"), (ended["reason"], service.said)


def test_a_job_that_runs_at_the_end_is_given_back_and_runs_after_the_restart(state_root: Path) -> None:
    endless = {"language": "python", "source": "import time; time.sleep(30)", "limits": {"wall_time_s": 60}}
    with own_service(state_root, "given") as service:
        with service.client() as client:
            job = client.post("/jobs", json=endless).json()
            while client.get(f"/jobs/{job['id']}").json()["state"] != "running":
                time.sleep(0.02)
        service.process.send_signal(signal.SIGTERM)
        service.await_line("stopping")
        assert service.end() == 0  # asked a second time, it does not wait for the job
        assert service.leftovers() == []
    with own_service(state_root, "given") as service:
        with service.client() as client:
            deadline_s = time.monotonic() + 30 * SCALE
            while client.get(f"/jobs/{job['id']}").json()["state"] != "running":
                assert time.monotonic() < deadline_s, client.get(f"/jobs/{job['id']}").json()
                time.sleep(0.05)
            client.delete(f"/jobs/{job['id']}")
        assert service.end() == 0
