"""What every sandbox of one launcher is made with, prepared once: init in a sealed memfd, compiled filters, build
lists."""

from __future__ import annotations

import os
import shutil
import stat
from collections import OrderedDict
from importlib import resources
from pathlib import Path

from sandboxd.errors import HostError
from sandboxd.jail import plan, syscalls, wire
from sandboxd.jail.cgroups import Cgroups
from sandboxd.jail.facts import host_facts
from sandboxd.jail.plan import BuildInputs, Layer, Programs
from sandboxd.jail.rootfs import Image
from sandboxd.jail.slots import Slots, first_id
from sandboxd.jail.spawner import Spawner
from sandboxd.policy.load import profile_path
from sandboxd.policy.model import Network, Policy
from sandboxd.policy.profile import load_profile, policy_profile
from sandboxd.policy.seccomp import compile_profile, reporting

INIT_PROFILE = "init"
_RESERVED_FDS = 16
_BUILD_LISTS_MAX = 1024


class Workshop:
    """Owned by the launcher; nothing in it belongs to one sandbox."""

    def __init__(
        self,
        *,
        cgroups: Cgroups,
        slots: Slots,
        policies: dict[str, Policy],
        image: Image,
        policy_folder: Path,
        cache_dir: Path,
        run_dir: Path,
        without: frozenset[Layer],
    ) -> None:
        self._reserved_fd = _reserve_low_descriptors()
        self._init_fd = syscalls.sealed_memfd("sandboxd-init", [init_binary().read_bytes()], executable=True)
        self.spawner = Spawner(f"/proc/self/fd/{self._init_fd}", self._reserved_fd)
        self.cgroups = cgroups
        self.slots = slots
        self.policies = policies
        self.image = image
        self.run_dir = str(run_dir)
        self.without = without
        self.host = host_facts()
        self._init_programs = compile_profile(load_profile(profile_path(policy_folder, INIT_PROFILE)), cache_dir)
        self._programs = {
            (name, network): compile_profile(policy_profile(profile_path(policy_folder, name), network), cache_dir)
            for name, network in set(map(_filter_of, policies.values()))
        }
        self._reporting = {
            _filter_of(policy): tuple(reporting(program) for program in self._programs[_filter_of(policy)])
            for policy in policies.values()
            if policy.report_denied
        }
        self._lists: OrderedDict[tuple[str, int], int] = OrderedDict()

    def inputs(self, policy: Policy, slot: int) -> BuildInputs:
        """What the build list of a sandbox in `slot` depends on."""
        payload = (self._reporting if policy.report_denied else self._programs)[_filter_of(policy)]
        return BuildInputs(
            policy=policy,
            image=self.image,
            host=self.host,
            programs=Programs(payload=payload, init=self._init_programs),
            run_dir=self.run_dir,
            id_base=first_id(slot),
            without=self.without,
        )

    def filter_program(self, policy: Policy) -> bytes:
        """The payload's filter as it answers without notifications."""
        return self._programs[_filter_of(policy)][-1]

    def build_list(self, inputs: BuildInputs) -> int:
        """The sealed memfd of a build list: made once per policy and slot, kept, and never closed by the caller."""
        key = (inputs.policy.digest, inputs.id_base)
        fd = self._lists.get(key)
        if fd is None:
            fd = self._lists[key] = syscalls.sealed_memfd("sandboxd-build", wire.encode(plan.build_plan(inputs)))
            if len(self._lists) > _BUILD_LISTS_MAX:
                os.close(self._lists.popitem(last=False)[1])
        else:
            self._lists.move_to_end(key)
        return fd

    def close(self) -> None:
        self.spawner.close()
        for fd in (self._reserved_fd, self._init_fd, *self._lists.values()):
            os.close(fd)
        self._lists.clear()


def _reserve_low_descriptors() -> int:
    """Keeps 3..15 occupied: posix_spawn's dup2 actions must never overwrite a descriptor that a later one reads."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    while null < _RESERVED_FDS:
        null = os.dup(null)
    os.set_inheritable(null, False)
    return null


def init_binary() -> Path:
    """The compiled init of this installation."""
    path = Path(str(resources.files("sandboxd.jail"))) / "init" / "sandboxd-init"
    if not path.exists():
        raise HostError("init", f"{path} is missing: it is compiled when the package is built", "make install")
    return path


def require_root_owned(*folders: Path) -> None:
    """A root process must not run code, or follow policies and caches, that others may write.

    Every folder's parents and all that is below it are looked at. Raises HostError naming the path.
    """
    for folder in folders:
        resolved = folder.resolve()
        for parent in resolved.parents:
            _require_root_owned(str(parent), parent.lstat(), shared=True)
        _require_root_owned(str(resolved), resolved.lstat())
        pending = [str(resolved)]
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    _require_root_owned(entry.path, entry.stat(follow_symlinks=False))
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)


def _require_root_owned(path: str, info: os.stat_result, *, shared: bool = False) -> None:
    """`shared`: a folder such as /tmp, in which others may make files but not touch those of root."""
    writable = not stat.S_ISLNK(info.st_mode) and info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if info.st_uid != 0 or (writable and not (shared and info.st_mode & stat.S_ISVTX)):
        remedy = f"chown root: {path}; chmod go-w {path}"
        raise HostError("installation", f"{path} can be changed by others than root", remedy)


def remove_tree(path: Path) -> None:
    """Removes a folder of our own making, if it is there."""
    shutil.rmtree(path, ignore_errors=False) if path.exists() else None


def _filter_of(policy: Policy) -> tuple[str, Network]:
    """What a policy's filter depends on: policies that agree in it share one."""
    return policy.seccomp, policy.network
