"""The whole service on one machine with one command: private Redis, launcher, workers and API, kept alive together.

    serve (root, this process: starts, watches, restarts, stops; never touches a job)
      ├── redis-server   user sandboxd   unix socket /run/sandboxd/NAME/service/redis.sock
      ├── launcher       root            unix socket /run/sandboxd/NAME/launcher.sock
      ├── worker x N     user sandboxd   one per core
      └── api            user sandboxd   HTTP on 127.0.0.1:8080

They start in this order, each when the one before it answers, and stop the other way round: API and workers finish
what they have, then the launcher, then Redis. On several hosts the same four run as units of their own around one
Redis: see `deploy/`.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import http.client
import os
import pwd
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from sandboxd import redis_server, watchdog
from sandboxd.config import Settings
from sandboxd.errors import HostError
from sandboxd.instance import DEFAULT_INSTANCE, SERVICE_USER, Instance
from sandboxd.service_files import CannotServe, load_or_make_token, own_service
from sandboxd.spec import MIB, Struct
from sandboxd.store import Store, connect
from sandboxd.supervisor import ChildSpec, Supervisor, child_environment

log = structlog.get_logger()

READY_TIMEOUT_S = 120.0
"""For one child to answer; the launcher asks every language for its version inside a sandbox first."""
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(2 * MIB)}
"""Memory of a big job goes back to the kernel: left to itself, malloc(3) keeps up to 64 MiB for the next one."""
_RANK_REDIS, _RANK_LAUNCHER, _RANK_FRONT = 0, 1, 2


class ServeOptions(Struct, frozen=True, kw_only=True):
    """What the command line said, complete."""

    workers: int
    ready_timeout_s: float = READY_TIMEOUT_S


def serve(
    settings: Settings,
    options: ServeOptions,
    *,
    announce: Callable[[str], None],
) -> None:
    """Run the service, for which `check_start` found nothing amiss, until a stop signal. `announce` gets the text to
    show when it is ready.

    Raises CannotServe; sandboxd.supervisor.Stopped when a stop signal came before the service was ready.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_service(settings.paths))
        token = load_or_make_token(settings.paths)
        supervisor = stack.enter_context(Supervisor(settings.paths.notify_socket))
        start_children(supervisor, settings, options, token)
        announce(ready_text(settings, options))
        watchdog.notify("READY=1")
        supervisor.run()
        watchdog.notify("STOPPING=1")
        log.info("stopping: jobs that run may end, those that wait are kept")


def check_start(settings: Settings) -> None:
    """Everything that can be known to be missing before the first process. Raises CannotServe."""
    if os.geteuid() != 0:
        raise CannotServe(f"serve needs root: sudo {Path(sys.prefix, 'bin', 'sandboxd')} serve", os.EX_NOPERM)
    if settings.redis_url:
        raise CannotServe(
            "serve brings its own Redis, and SANDBOXD_REDIS_URL names another: unset it, or run `sandboxd launcher`, "
            "`sandboxd worker` and `sandboxd api` around that one (deploy/ has their units)",
            os.EX_CONFIG,
        )
    try:
        redis_server.find_server()
    except HostError as error:
        raise CannotServe(str(error), os.EX_UNAVAILABLE) from None
    try:
        pwd.getpwnam(SERVICE_USER), grp.getgrnam(SERVICE_USER)
    except KeyError:
        raise CannotServe(f"there is no system user {SERVICE_USER}: run make install", os.EX_NOUSER) from None
    check_port(settings.host, settings.port)


def check_port(host: str, port: int) -> None:
    """Whether the API will be able to listen. Raises CannotServe."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} of {host} is in use by another program: stop it, or choose another with --port"
        else:
            message = f"cannot listen on {host} port {port}: {error.strerror}"
        raise CannotServe(message, os.EX_UNAVAILABLE) from None


def start_children(supervisor: Supervisor, settings: Settings, options: ServeOptions, token: str) -> None:
    """Start the children, each when the one before it answers. Raises CannotServe naming the one that does not."""
    instance = settings.paths

    def start(spec: ChildSpec, ready: Callable[[], bool]) -> None:
        end = supervisor.wait_until(ready, supervisor.start(spec), options.ready_timeout_s)
        if end is not None:
            details = redis_server.last_words(instance) if spec.name == "redis" else "see its messages above"
            raise CannotServe(f"{spec.name} {end}: {details}", os.EX_UNAVAILABLE)

    start(redis_spec(instance), lambda: redis_server.answers(instance))
    # Redis gets the token's digest alone: who reads its files cannot call the API.
    Store(connect(redis_server.redis_url(instance)), settings.prefix).set_token_hash(
        hashlib.sha256(token.encode()).hexdigest()
    )
    start(launcher_spec(settings), lambda: accepts_connections(instance.launcher_socket))
    for index in range(1, options.workers + 1):
        supervisor.start(worker_spec(settings, index))
    start(api_spec(settings), lambda: is_ready(settings, token))


def redis_spec(instance: Instance) -> ChildSpec:
    command = redis_server.command(redis_server.find_server(), instance)
    return ChildSpec(
        name="redis",
        command=tuple(command),
        environment=child_environment({}),
        user=SERVICE_USER,
        stop_rank=_RANK_REDIS,
        stop_s=10.0,
    )


def launcher_spec(settings: Settings) -> ChildSpec:
    instance = settings.paths
    command = ["launcher", "--instance", instance.name, "--prepared", str(settings.prepared)]
    command += ["--favor-dynmods"] if settings.favor_dynmods else []
    return _own_spec(instance, "launcher", tuple(command), None, _RANK_LAUNCHER, 10.0, watched=True)


def worker_spec(settings: Settings, index: int) -> ChildSpec:
    """Started anew under the same name, a worker gives back its dead predecessor's job: root reads nothing of Redis."""
    name = f"worker-{index}"
    command = ("worker", "--name", f"{settings.prefix}.{name}".replace(":", "."))
    return _own_spec(settings.paths, name, command, SERVICE_USER, _RANK_FRONT, 20.0, watched=True)


def api_spec(settings: Settings) -> ChildSpec:
    listen = ["--host", settings.host, "--port", str(settings.port), *(["--no-auth"] if settings.no_auth else [])]
    return _own_spec(settings.paths, "api", ("api", *listen), SERVICE_USER, _RANK_FRONT, 20.0)


def _own_spec(
    instance: Instance,
    name: str,
    arguments: tuple[str, ...],
    user: str | None,
    stop_rank: int,
    stop_s: float,
    *,
    watched: bool = False,
) -> ChildSpec:
    """A child that is this same program. -I: neither working directory nor PYTHON* variables bring other code in."""
    environment = {
        "SANDBOXD_INSTANCE": instance.name,
        "SANDBOXD_STATE_ROOT": instance.state_root,
        "SANDBOXD_REDIS_URL": redis_server.redis_url(instance),
        **_MALLOC,
    }
    return ChildSpec(
        name=name,
        command=(sys.executable, "-I", "-m", "sandboxd", *arguments),
        environment=child_environment(environment),
        user=user,
        stop_rank=stop_rank,
        stop_s=stop_s,
        watched=watched,
    )


def accepts_connections(path: Path) -> bool:
    """Whether somebody listens on the unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def is_ready(settings: Settings, token: str) -> bool:
    """Whether the API answers, reaches Redis and knows of a worker."""
    connection = http.client.HTTPConnection(_reachable_host(settings), settings.port, timeout=2)
    try:
        connection.request("GET", "/v1/ready", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable_host(settings: Settings) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # compared, not listened on


def base_url(settings: Settings) -> str:
    """Where a client on this machine finds the API."""
    host = _reachable_host(settings)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def ready_text(settings: Settings, options: ServeOptions) -> str:
    """What the person who started the service needs now."""
    instance, url = settings.paths, base_url(settings)
    workers = "1 worker" if options.workers == 1 else f"{options.workers} workers"
    named = "" if instance.name == DEFAULT_INSTANCE else f" --instance {instance.name}"
    authorization = "" if settings.no_auth else f'-H "Authorization: Bearer $(sudo sandboxd token show{named})" '
    token = "none is asked for (--no-auth)" if settings.no_auth else f"sudo sandboxd token show{named}"
    return "\n".join(
        (
            f"sandboxd is ready at {url} (instance {instance.name}, {workers})",
            f"  token  {token}",
            f"  docs   {url}/v1/docs",
            f"  try    curl {authorization}-H 'Content-Type: application/json' \\",
            f"""           -d '{{"language": "python", "source": "print(6 * 7)"}}' '{url}/v1/jobs?wait=10'""",
            "Ctrl-C stops it.",
        )
    )
