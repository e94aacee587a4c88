"""The gate of a launcher: checks a stage against its own policies, starts a sandbox when the host has room for it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
from collections import OrderedDict
from collections.abc import Callable

from sandboxd.bounds import STAGE_ARGV_MAX, STAGE_FILES_MAX, check_argv, check_env, check_files, check_patterns
from sandboxd.errors import InputError, InternalError, StepError
from sandboxd.jail.cgroups import Leaf
from sandboxd.jail.pool import PREPARED_BYTES, Pool
from sandboxd.jail.sandbox import Owner, Sandbox
from sandboxd.jail.workshop import Workshop
from sandboxd.policy.merge import check_ceilings
from sandboxd.policy.model import Policy
from sandboxd.result import Ending
from sandboxd.spec import STDIN_MAX_BYTES, InputSizes, StageSpec

CLIENTS_MAX = 2048
OPEN_FILES = 65_536
_FDS_PER_SANDBOX = 28
"""Leaf folders and files, control socket, pidfds, write layer, pipes, build lists; and what is open for a moment."""
_FDS_RESERVE = 100
_PREPARED_PART = 0.02
"""Part of the host's memory, out of the reserve, that sandboxes without a job may take."""
_MEMORY_RESERVE = 0.2
"""Part of the host's memory that sandboxes' limits together leave to everything else."""


class Admission:
    """All sandboxes of a launcher start here. A stage waits, first come first served, until the memory limits of those
    that run leave room for its own, and descriptors are free. It gets a prepared sandbox where there is one."""

    def __init__(self, workshop: Workshop, *, prepared_max: int = 0) -> None:
        """Keeps at most `prepared_max` sandboxes ready for jobs to come, once `start`ed; 0: none."""
        self.workshop = workshop
        self._committed_bytes: dict[Sandbox, int] = {}
        """Of every live sandbox: the memory limit of the stage that it runs, 0 for one that waits."""
        self._waiting: OrderedDict[Owner, StageSpec] = OrderedDict()
        physical_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self._memory_bytes = int(min(physical_bytes, workshop.cgroups.memory_bound_bytes()) * (1 - _MEMORY_RESERVE))
        open_files = raise_open_files()
        clients = min(CLIENTS_MAX, open_files // 4)
        self._sandboxes_max = max(1, (open_files - 2 * clients - _FDS_RESERVE) // _FDS_PER_SANDBOX)
        affordable = min(self._sandboxes_max // 4, int(self._memory_bytes * _PREPARED_PART) // PREPARED_BYTES)
        self._pool = Pool(workshop.policies, min(prepared_max, affordable), self._prepared)
        self._idle = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Begins to prepare sandboxes."""
        self._pool.start()

    def close(self) -> None:
        """Prepares no more, and ends every sandbox, whoever's it is."""
        self._waiting.clear()
        self._pool.close()
        for sandbox in tuple(self._committed_bytes):
            sandbox.end(Ending.CANCELLED)

    def check(self, stage: StageSpec, sizes: InputSizes) -> None:
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
        if sizes.stdin > STDIN_MAX_BYTES:
            raise InputError("stdin", f"must be at most {STDIN_MAX_BYTES} bytes")

    def admit(self, owner: Owner, stage: StageSpec) -> None:
        """Starts a sandbox, now or later. Precondition: `check` passed."""
        self._waiting[owner] = stage
        self._admit_waiting()

    def cancel(self, owner: Owner) -> bool:
        """Takes back what waits, if it does; a running sandbox is its owner's to end."""
        return self._waiting.pop(owner, None) is not None

    async def wait_idle(self, timeout_s: float) -> int:
        """Until no sandbox is left, at most `timeout_s`; returns how many are."""
        if self._committed_bytes:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        return len(self._committed_bytes)

    def _admit_waiting(self) -> None:
        while self._waiting:
            owner, stage = next(iter(self._waiting.items()))
            committed_bytes = sum(self._committed_bytes.values())
            if committed_bytes and committed_bytes + stage.limits.memory_bytes > self._memory_bytes:
                return
            if len(self._committed_bytes) >= self._sandboxes_max:
                self._pool.give_way()
                return
            del self._waiting[owner]
            self._start(owner, stage)

    def _start(self, owner: Owner, stage: StageSpec) -> None:
        try:
            sandbox = self._pool.take(stage.policy) or self._make(stage.policy, _nothing)
        except InternalError as error:
            owner.on_failed(error)
            return
        self._committed_bytes[sandbox] = stage.limits.memory_bytes
        owner.on_admitted(sandbox)

    def _prepared(self, policy_name: str, on_built: Callable[[], None]) -> Sandbox:
        """For the pool."""
        if len(self._committed_bytes) >= self._sandboxes_max:
            raise StepError("Prepare", f"{self._sandboxes_max} sandboxes live already", errno.EMFILE)
        return self._make(policy_name, on_built)

    def _make(self, policy_name: str, on_built: Callable[[], None]) -> Sandbox:
        """One that is not built yet, with all that it needs claimed. Raises InternalError."""
        policy = self.workshop.policies[policy_name]
        slot, leaf = self._claim(policy)
        try:
            control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            leaf.remove()
            self.workshop.slots.free(slot)
            raise StepError("Socketpair", "", error.errno or 0) from error

        def gone() -> None:
            del self._committed_bytes[sandbox]
            self._pool.discard(sandbox)
            if not self._committed_bytes:
                self._idle.set()
            self._loop.call_soon(self._admit_waiting)

        sandbox = Sandbox(self.workshop, self.workshop.inputs(policy, slot), slot, leaf, control, on_built, gone)
        self._committed_bytes[sandbox] = 0
        return sandbox

    def _claim(self, policy: Policy) -> tuple[int, Leaf]:
        """A uid slot, and a cgroup leaf named after it with every limit written before a task can enter."""
        try:
            slot = self.workshop.slots.claim()
        except OSError as error:
            raise StepError("ClaimSlot", str(error.filename), error.errno or 0) from error
        try:
            leaf = self.workshop.cgroups.create(
                f"slot-{slot}", policy.defaults.memory_bytes, policy.defaults.processes + 1
            )
        except OSError as error:
            self.workshop.slots.free(slot)
            raise StepError("CreateCgroup", str(error.filename), error.errno or 0) from error
        return slot, leaf


def raise_open_files() -> int:
    """The soft limit on open files becomes the hard one, and that at least OPEN_FILES where this process may
    (getrlimit(2), CAP_SYS_RESOURCE). Returns it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for wanted in (max(hard, OPEN_FILES), hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _nothing() -> None:
    """Nobody waits for it to be built: its job is there."""
