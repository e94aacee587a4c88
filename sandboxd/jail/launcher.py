"""The launcher: the one privileged process. Builds and destroys sandboxes from *policy name + image + limits*.

    worker, `sandboxd run`  (uid sandboxd or root)      one connection each, frames of `protocol.py`
        │  unix stream socket, mode 0660, peer credentials checked
    launcher                (root, nice -10)            one event loop over sockets, pidfds, pipes and timers
        │  spawner (jail/spawner.py), SEQPACKET pair: reports up, job list down
    outer -> PID 1 (init)   (root until set up)         build list in a sealed memfd
        │  fork
    payload                 (own uid, no rights)        0, 1, 2 alone

It talks neither to Redis nor to a network, imports no flask, redis or rq, and takes no mount, capability or filter
from a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import grp
import os
import pwd
import signal
import socket
import stat
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

import sandboxd
from sandboxd import threads, watchdog
from sandboxd.catalogue import Catalogue
from sandboxd.errors import HostError, InputError
from sandboxd.instance import RUN_ROOT, SERVICE_USER, Instance
from sandboxd.jail import facts, offer, sweeper, warm
from sandboxd.jail.admission import CLIENTS_MAX, Admission
from sandboxd.jail.cgroup_host import open_cgroups, require_leaf
from sandboxd.jail.cgroup_v1 import favor_dynmods
from sandboxd.jail.connection import Buffered, Connection
from sandboxd.jail.images import make_host_image
from sandboxd.jail.plan import Layer
from sandboxd.jail.slots import Slots
from sandboxd.jail.workshop import Workshop, remove_tree, require_root_owned
from sandboxd.languages import load_languages
from sandboxd.policy.load import load_policies, policy_folder

log = structlog.get_logger()

NICE = -10
BACKLOG = 128
ACCEPT_RETRY_S = 0.1
WARM_INTERVAL_S = 60.0
STOP_DEADLINE_S = 5.0
THREADS = 4
"""They take files out of sandboxes, and free what jobs wrote."""
SWITCH_INTERVAL_S = 0.0005
"""How long a thread that takes files out of a sandbox may keep the loop, which has limits to see to, from going on."""
_DONE = object()
_PEER = struct.Struct("=3i")  # struct ucred: pid, uid, gid


class Launcher:
    """One instance's launcher. `start()` makes it ready, `serve()` runs until it is told to stop, `close()` leaves
    nothing."""

    def __init__(
        self,
        instance: Instance,
        without: Iterable[Layer] = (),
        *,
        prepared_max: int = 0,
        favor_dynmods: bool = False,
    ) -> None:
        """Keeps at most `prepared_max` sandboxes ready for jobs to come. `favor_dynmods`: see `cgroup_v1`."""
        self.instance = instance
        self._favor_dynmods = favor_dynmods
        self._prepared_max = prepared_max
        self.without = frozenset(without)
        self._admission: Admission | None = None
        self._connections: set[Connection] = set()
        self._buffered = Buffered()
        self._stack = contextlib.ExitStack()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._stopping = asyncio.Event()
        # Nobody asks for a child's status: the kernel reaps them all (sigaction(2)), also one whose maker died before
        # it could tell of it.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        # From here on, so that being told to stop while it starts still cleans up.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)

    async def start(self) -> None:
        """Checks the host, sweeps a predecessor's leftovers, prepares everything, probes languages, listens.

        Raises HostError for a must that is absent, PolicyError for a file that is wrong.
        """
        if self.without and self.instance.name == "default":
            raise InputError("without", "control runs are refused for the instance 'default'; give --instance NAME")
        facts.raise_resource_limits()
        facts.require()
        asyncio.get_running_loop().set_default_executor(threads.started(THREADS, "sandbox"))
        folder = policy_folder()
        os.umask(0o022)  # whoever started us: layers must be readable inside
        RUN_ROOT.mkdir(0o755, exist_ok=True)
        with sweeper.host_lock():
            self._make_folders()
            lock = sweeper.take_lock(self.instance)
            self._stack.callback(self._remove_run_dir, lock)
            sweeper.sweep(self.instance)
        require_root_owned(Path(sandboxd.__file__).parent, Path(sys.prefix), folder, self.instance.cache_dir)
        if self._favor_dynmods:
            self._stack.callback(os.close, favor_dynmods())
        cgroups = open_cgroups(self.instance.name)
        self._stack.callback(cgroups.close)
        sweeper.record(self.instance, cgroups.parents())
        sweeper.clear(self.instance.name, cgroups.parents())  # of one that left no record
        require_leaf(cgroups)
        slots = Slots(self.instance.name)
        self._stack.callback(slots.close)
        definitions = load_languages(folder)
        for leftover in ("base", "empty", "stage"):
            remove_tree(self.instance.run_dir / leftover)
        image = make_host_image(
            self.instance.run_dir, self.instance.cache_dir, {name for item in definitions.values() for name in item.etc}
        )
        workshop = Workshop(
            cgroups=cgroups,
            slots=slots,
            policies=load_policies(folder),
            image=image,
            policy_folder=folder,
            cache_dir=self.instance.cache_dir,
            run_dir=self.instance.run_dir,
            without=self.without,
        )
        self._stack.callback(workshop.close)
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
        admission = self._admission = Admission(workshop, prepared_max=self._prepared_max)
        catalogue = await offer.make_catalogue(admission, definitions, self.instance.cache_dir)
        offered = {language.name for language in catalogue.languages}
        self._keep_warm(warm.files(glob for item in definitions.values() if item.name in offered for glob in item.warm))
        gc.collect()
        gc.freeze()  # what was made at start stays: later collections need not look at it
        self._listen(admission, catalogue)
        admission.start()
        log.info(
            "ready",
            instance=self.instance.name,
            languages=sorted(offered),
            cgroup=workshop.host.cgroup,
            without=sorted(self.without),
        )

    async def serve(self) -> None:
        """Runs until SIGTERM or SIGINT, one that came during `start` included; gives signs of life meanwhile."""
        while not self._stopping.is_set():
            watchdog.beat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), watchdog.BEAT_S)

    async def close(self) -> None:
        """Ends every sandbox, waits until nothing of them is left, removes the instance's folders."""
        for connection in tuple(self._connections):
            connection.close()
        if self._admission is not None:
            self._admission.close()
            left = await self._admission.wait_idle(STOP_DEADLINE_S)
            if left:
                log.error("sandboxes are left, for the next launcher to sweep", count=left)
        self._stack.close()

    def _make_folders(self) -> None:
        """Nobody else may put names into the run directory; the service's own folder lies in it."""
        self.instance.run_dir.mkdir(0o755, exist_ok=True)
        info = self.instance.run_dir.lstat()
        if info.st_uid != 0 or info.st_mode & 0o022 or not stat.S_ISDIR(info.st_mode):
            raise HostError("run directory", f"{self.instance.run_dir} can be changed by others than root")
        self.instance.cache_dir.mkdir(0o755, parents=True, exist_ok=True)

    def _remove_run_dir(self, lock: int) -> None:
        """What is not ours (the service's folder) stays; the lock goes last."""
        with sweeper.host_lock():
            for name in ("base", "empty", "stage"):
                remove_tree(self.instance.run_dir / name)
            sweeper.forget(self.instance)
            self.instance.lock_path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.instance.run_dir.rmdir()
            os.close(lock)

    def _listen(self, admission: Admission, catalogue: Catalogue) -> None:
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
        loop.add_reader(listener, self._on_client, listener, admission, catalogue)
        self._stack.callback(loop.remove_reader, listener)

    def _on_client(self, listener: socket.socket, admission: Admission, catalogue: Catalogue) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptor is free: look again when one may be
            log.error("client not accepted", error=str(error))
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_RETRY_S, self._accept_again, listener, admission, catalogue)
            return
        sock.setblocking(False)
        pid, uid, _gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in self._allowed_uids or len(self._connections) >= CLIENTS_MAX:
            log.warning("client refused", pid=pid, uid=uid, clients=len(self._connections))
            sock.close()
            return
        self._connections.add(Connection(admission, catalogue, self._buffered, sock, self._connections.discard))

    def _accept_again(self, listener: socket.socket, admission: Admission, catalogue: Catalogue) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._on_client, listener, admission, catalogue)

    def _keep_warm(self, paths: list[str]) -> None:
        """Reads one chunk per turn of the loop, so that no sandbox waits for all of them; then again after a while."""
        loop = asyncio.get_running_loop()

        def read_next(chunks: Iterator[None]) -> None:
            if next(chunks, _DONE) is _DONE:
                loop.call_later(WARM_INTERVAL_S, read_next, warm.read(paths))
            else:
                loop.call_soon(read_next, chunks)

        if paths:
            loop.call_soon(read_next, warm.read(paths))
