"""The launcher: the one privileged process. Builds and destroys sandboxes from *policy name + image + limits*.

    worker, `sandboxd run`  (uid sandboxd or root)      one connection each, frames of `protocol.py`
        │  unix stream socket, mode 0660, peer credentials checked
    launcher                (root, nice -10)            one event loop over sockets, pidfds, pipes and timers
        │  posix_spawn, SEQPACKET pair: reports up, job list and pipes down
    outer -> PID 1 (init)   (root until set up)         build list in a sealed memfd
        │  fork
    payload                 (own uid, no rights)        0, 1, 2 alone

It talks neither to Redis nor to a network, imports no flask, redis or rq, and takes no mount, capability or filter
from a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import signal
import socket
import struct
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import structlog

import sandboxd
from sandboxd.bounds import STAGE_ARGV_MAX, STAGE_FILES_MAX, check_argv, check_env, check_files, check_patterns
from sandboxd.catalogue import Catalogue
from sandboxd.errors import HostError, InputError, InternalError, StepError
from sandboxd.instance import RUN_ROOT, SERVICE_USER, Instance
from sandboxd.jail import facts, offer, sweeper, warm
from sandboxd.jail.cgroups import Leaf, open_cgroups
from sandboxd.jail.connection import Connection
from sandboxd.jail.images import make_host_image
from sandboxd.jail.plan import Layer
from sandboxd.jail.sandbox import Owner, Sandbox
from sandboxd.jail.slots import Slots
from sandboxd.jail.streams import Stream
from sandboxd.jail.workshop import Workshop, remove_tree, require_root_owned
from sandboxd.languages import load_languages
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.merge import check_ceilings
from sandboxd.policy.model import Policy
from sandboxd.result import Facts
from sandboxd.spec import STDIN_MAX_BYTES, InputFile, StageSpec

log = structlog.get_logger()

NICE = -10
BACKLOG = 128
CLIENTS_MAX = 512
WARM_INTERVAL_S = 60.0
STOP_DEADLINE_S = 5.0
_PEER = struct.Struct("=3i")  # struct ucred: pid, uid, gid
_MEMORY_RESERVE = 0.2
"""Part of the host's memory that sandboxes' limits together leave to everything else."""


class Launcher:
    """One instance's launcher. `start()` makes it ready, `serve()` runs until it is told to stop, `close()` leaves
    nothing."""

    def __init__(self, instance: Instance, without: Iterable[Layer] = ()) -> None:
        self.instance = instance
        self.without = frozenset(without)
        self.workshop: Workshop
        self.catalogue: Catalogue
        self._connections: set[Connection] = set()
        self._sandboxes: set[Sandbox] = set()
        self._waiting: OrderedDict[Owner, StageSpec] = OrderedDict()
        self._committed_bytes = 0
        self._memory_bytes = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * (1 - _MEMORY_RESERVE))
        self._stack = contextlib.ExitStack()
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()

    # --- life

    async def start(self) -> None:
        """Checks the host, sweeps a predecessor's leftovers, prepares everything, probes languages, listens.

        Raises HostError for a must that is absent, PolicyError for a file that is wrong.
        """
        if self.without and self.instance.name == "default":
            raise InputError("without", "control runs are refused for the instance 'default'; give --instance NAME")
        facts.require()
        folder = policy_folder()
        require_root_owned(Path(sandboxd.__file__).parent, folder)
        self._make_run_dir()
        lock = sweeper.take_lock(self.instance)
        self._stack.callback(self._remove_run_dir, lock)
        sweeper.sweep(self.instance)
        cgroups = open_cgroups(self.instance.name)
        self._stack.callback(cgroups.close)
        sweeper.record(self.instance, cgroups.parents())
        slots = Slots(self.instance.name)
        self._stack.callback(slots.close)
        definitions = load_languages(folder)
        for leftover in ("base", "empty", "stage"):
            remove_tree(self.instance.run_dir / leftover)
        image = make_host_image(
            self.instance.run_dir, self.instance.cache_dir, {name for item in definitions.values() for name in item.etc}
        )
        self.workshop = Workshop(
            cgroups=cgroups,
            slots=slots,
            policies=load_policies(folder),
            image=image,
            policy_folder=folder,
            cache_dir=self.instance.cache_dir,
            run_dir=self.instance.run_dir,
            without=self.without,
        )
        self._stack.callback(self.workshop.close)
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        self.catalogue = await offer.make_catalogue(self.workshop, definitions, self.instance.cache_dir, self._probe)
        offered = {language.name for language in self.catalogue.languages}
        self._keep_warm(warm.files(glob for item in definitions.values() if item.name in offered for glob in item.warm))
        self._listen()
        log.info(
            "ready",
            instance=self.instance.name,
            languages=sorted(offered),
            cgroup=self.workshop.host.cgroup,
            without=sorted(self.without),
        )

    async def serve(self) -> None:
        """Runs until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self._stopping.wait()

    async def close(self) -> None:
        """Ends every sandbox, waits until nothing of them is left, removes the instance's folders."""
        for connection in tuple(self._connections):
            connection.close()
        if self._sandboxes:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), STOP_DEADLINE_S)
        self._stack.close()

    def _make_run_dir(self) -> None:
        RUN_ROOT.mkdir(0o755, exist_ok=True)
        self.instance.run_dir.mkdir(0o755, exist_ok=True)
        require_root_owned_folder(self.instance.run_dir)
        self.instance.cache_dir.mkdir(0o755, parents=True, exist_ok=True)

    def _remove_run_dir(self, lock: int) -> None:
        """What is not ours (the service's folder) stays; the lock goes last."""
        for name in ("base", "empty", "stage"):
            remove_tree(self.instance.run_dir / name)
        for name in (sweeper.RECORD, "lock"):
            (self.instance.run_dir / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.instance.run_dir.rmdir()
        os.close(lock)

    def _listen(self) -> None:
        path = self.instance.launcher_socket
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stack.callback(listener.close)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        self._stack.callback(path.unlink, missing_ok=True)
        self._allowed_uids = {0}
        with contextlib.suppress(KeyError):  # no service user: root alone
            self._allowed_uids.add(pwd.getpwnam(SERVICE_USER).pw_uid)
            os.chown(path, 0, grp.getgrnam(SERVICE_USER).gr_gid)
            path.chmod(0o660)
        listener.setblocking(False)
        listener.listen(BACKLOG)
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, self._on_client, listener)
        self._stack.callback(loop.remove_reader, listener)

    def _on_client(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        pid, uid, _gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in self._allowed_uids or len(self._connections) >= CLIENTS_MAX:
            log.warning("client refused", pid=pid, uid=uid, clients=len(self._connections))
            sock.close()
            return
        self._connections.add(Connection(self, sock, self._connections.discard))

    # --- stages

    def check(self, stage: StageSpec) -> None:
        """Holds a stage against this launcher's own policies: the client is not trusted. Raises InputError."""
        policy = self.workshop.policies.get(stage.policy)
        if policy is None:
            raise InputError("policy", f"unknown policy {stage.policy[:64]!r}")
        if stage.image != self.workshop.image.name:
            raise InputError("image", f"unknown image {stage.image[:64]!r}")
        check_ceilings(stage.limits, policy)
        check_argv(stage.argv, maximum=STAGE_ARGV_MAX)
        check_env(stage.env)
        check_files(stage.files, maximum=STAGE_FILES_MAX)
        check_patterns(stage.collect, "collect")
        if stage.stdin is not None and len(stage.stdin) > STDIN_MAX_BYTES:
            raise InputError("stdin", f"must be at most {STDIN_MAX_BYTES} bytes")

    def admit(self, owner: Owner, stage: StageSpec) -> None:
        """Starts a sandbox now, or when the limits of those that run leave room for its memory."""
        self._waiting[owner] = stage
        self._admit_waiting()

    def cancel(self, owner: Owner) -> bool:
        """Takes back what waits for admission, if it does; a running sandbox is its owner's to end."""
        return self._waiting.pop(owner, None) is not None

    def _admit_waiting(self) -> None:
        while self._waiting:
            owner, stage = next(iter(self._waiting.items()))
            needed = stage.limits.memory_bytes
            if self._sandboxes and self._committed_bytes + needed > self._memory_bytes:
                return
            del self._waiting[owner]
            self._start(owner, stage)

    def _start(self, owner: Owner, stage: StageSpec) -> None:
        policy = self.workshop.policies[stage.policy]
        needed = stage.limits.memory_bytes
        try:
            slot, leaf = self._claim(policy)
        except InternalError as error:
            owner.on_failed(error)
            return

        def gone() -> None:
            self._sandboxes.discard(sandbox)
            self._committed_bytes -= needed
            if not self._sandboxes:
                self._idle.set()
            self._admit_waiting()

        sandbox = Sandbox(self.workshop, self.workshop.inputs(policy, slot), slot, leaf, owner, gone)
        self._sandboxes.add(sandbox)
        self._committed_bytes += needed
        owner.on_admitted(sandbox)

    def _claim(self, policy: Policy) -> tuple[int, Leaf]:
        """A uid slot, and a cgroup leaf named after it with every limit written before a task can enter."""
        slot = self.workshop.slots.claim()
        try:
            leaf = self.workshop.cgroups.create(
                f"slot-{slot}", policy.ceilings.memory_bytes, policy.ceilings.processes + 1
            )
        except OSError as error:
            self.workshop.slots.free(slot)
            raise StepError("CreateCgroup", str(error.filename), error.errno or 0) from error
        return slot, leaf

    async def _probe(self, stage: StageSpec) -> tuple[Facts, bytes]:
        """Runs a stage for the launcher itself."""
        self.check(stage)
        capture = _Capture(stage)
        self.admit(capture, stage)
        return await capture.over

    # --- page cache

    def _keep_warm(self, paths: list[str]) -> None:
        """Reads one file per turn of the loop, so that no sandbox waits for all of them; then again after a while."""
        loop = asyncio.get_running_loop()

        def read_next(index: int) -> None:
            if index < len(paths):
                warm.read(paths[index])
                loop.call_soon(read_next, index + 1)
            else:
                loop.call_later(WARM_INTERVAL_S, read_next, 0)

        if paths:
            loop.call_soon(read_next, 0)


class _Capture:
    """Owner of a sandbox that the launcher runs for itself: keeps what it printed."""

    def __init__(self, stage: StageSpec) -> None:
        self._stage = stage
        self._printed: dict[Stream, bytearray] = {stream: bytearray() for stream in Stream}
        self.over: asyncio.Future[tuple[Facts, bytes]] = asyncio.get_running_loop().create_future()

    def on_admitted(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        sandbox.build()

    def on_ready(self) -> None:
        self._sandbox.give(self._stage)

    def on_output(self, stream: Stream, chunk: bytes) -> None:
        self._printed[stream] += chunk[: max(0, self._stage.limits.output_bytes - len(self._printed[stream]))]

    def on_stdin_taken(self, count: int) -> None:
        """Its stages have stdin in full."""

    def on_over(self, facts: Facts, files: tuple[InputFile, ...], files_omitted: int) -> None:
        self.over.set_result((facts, b"\n".join(bytes(self._printed[stream]) for stream in Stream)))

    def on_failed(self, error: InternalError) -> None:
        self.over.set_exception(error)


def require_root_owned_folder(path: Path) -> None:
    """Nobody else may put names into a folder of the launcher's."""
    info = path.stat()
    if info.st_uid != 0 or info.st_mode & 0o022:
        raise HostError("run directory", f"{path} can be changed by others than root", f"rm -r {path}")
