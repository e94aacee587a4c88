"""The embedded Redis of `sandboxd serve`: a private child on a unix socket, never on TCP, owned by the service user.

Persistence is the append-only file, synced once a second: a crash loses at most the last second of accepted jobs.
Eviction is off: a full Redis refuses new jobs and never drops accepted ones.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import redis

from sandboxd.errors import HostError
from sandboxd.instance import Instance
from sandboxd.jail.facts import Finding

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
SERVERS = ("redis-server", "valkey-server")
_MIB = 1024 * 1024
MEMORY_MAX_BYTES = 512 * _MIB
_LOG_TAIL_BYTES = 2000


def find_server() -> str:
    """Path of the Redis (or Valkey) server. Raises HostError when the host has none."""
    for name in SERVERS:
        if found := shutil.which(name, path=SEARCH_PATH):
            return found
    raise HostError("redis", "neither redis-server nor valkey-server is installed", "apt-get install redis-server")


def finding(url: str) -> Finding:
    """Whether there is a server to embed, for doctor; with a Redis at `url` none is needed."""
    if url:
        return Finding(name="redis", must=True, ok=True, detail="one from elsewhere is used", remedy="")
    try:
        return Finding(name="redis", must=True, ok=True, detail=find_server(), remedy="")
    except HostError as error:
        return Finding(name="redis", must=True, ok=False, detail="no server is installed", remedy=error.remedy)


def data_folder(instance: Instance) -> Path:
    """Where the append-only file and the log are kept."""
    return instance.state_dir / "redis"


def log_path(instance: Instance) -> Path:
    return data_folder(instance) / "redis.log"


def redis_url(instance: Instance) -> str:
    """URL of the embedded Redis, as redis-py reads it."""
    return f"unix://{instance.redis_socket}"


def command(server: str, instance: Instance) -> list[str]:
    """The server's command line. `data_folder` and the socket's folder exist and belong to the user it runs as."""
    return [
        server,
        *("--port", "0"),
        *("--unixsocket", str(instance.redis_socket), "--unixsocketperm", "700"),
        *("--dir", str(data_folder(instance)), "--logfile", str(log_path(instance)), "--loglevel", "warning"),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "everysec"),
        *("--maxmemory", str(memory_limit_bytes()), "--maxmemory-policy", "noeviction"),
        *("--daemonize", "no", "--protected-mode", "yes", "--databases", "1"),
    ]


def memory_limit_bytes() -> int:
    """512 MiB, on a small host a quarter of its memory."""
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(MEMORY_MAX_BYTES, host_bytes // 4)


def answers(instance: Instance) -> bool:
    """Whether the server is up and has read its append-only file."""
    try:
        with redis.Redis(unix_socket_path=str(instance.redis_socket), socket_timeout=2) as connection:
            return bool(connection.ping())
    except redis.RedisError:
        return False


def last_words(instance: Instance) -> str:
    """The last lines of the server's log, for the message about its death."""
    try:
        # The folder belongs to the service user, who may put a link or a pipe there: root must follow neither.
        descriptor = os.open(log_path(instance), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as log:
            log.seek(max(0, os.fstat(descriptor).st_size - _LOG_TAIL_BYTES))
            return "\n".join(log.read(_LOG_TAIL_BYTES).decode(errors="replace").splitlines()[-5:])
    except OSError:
        return ""
