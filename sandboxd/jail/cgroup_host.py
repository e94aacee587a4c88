"""Which form this host's cgroups have, and where this process is in them."""

from __future__ import annotations

from pathlib import Path

from sandboxd.errors import HostError
from sandboxd.jail.cgroup_v1 import HybridCgroups
from sandboxd.jail.cgroup_v2 import PureCgroups
from sandboxd.jail.cgroups import PREFIX, V1_CONTROLLERS, Cgroups
from sandboxd.spec import MIB, Struct

TRIAL_BYTES = 16 * MIB


class Hierarchies(Struct, frozen=True, kw_only=True):
    """Where this process is in the cgroup tree: folders below the mounts."""

    v2: Path
    v1: dict[str, Path]

    @property
    def hybrid(self) -> bool:
        return "memory" in self.v1


def detect(cgroup_text: str | None = None, mountinfo_text: str | None = None) -> Hierarchies:
    """Finds this process's cgroups from /proc/self/{cgroup,mountinfo}; a v1-only host is refused."""
    mountinfo = mountinfo_text if mountinfo_text is not None else Path("/proc/self/mountinfo").read_text()
    membership = cgroup_text if cgroup_text is not None else Path("/proc/self/cgroup").read_text()
    v2_mount: tuple[str, Path] | None = None
    v1_mounts: dict[str, tuple[str, Path]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount_point = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            v2_mount = v2_mount or (root, Path(mount_point))
        elif kind == "cgroup":
            for name in options.split()[-1].split(","):
                v1_mounts.setdefault(name, (root, Path(mount_point)))
    if v2_mount is None:
        raise HostError("cgroup v2", "no cgroup2 filesystem is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")
    v2: Path | None = None
    v1: dict[str, Path] = {}
    for line in membership.splitlines():
        _, names, path = line.split(":", 2)
        if names == "":
            v2 = _below(v2_mount, path)
        for name in names.split(","):
            if name in V1_CONTROLLERS and name in v1_mounts:
                v1[name] = _below(v1_mounts[name], path)
    if v2 is None:
        raise HostError("cgroup v2", "this process is in no cgroup of the v2 hierarchy")
    return Hierarchies(v2=v2, v1=v1)


def _below(mount: tuple[str, Path], path: str) -> Path:
    root, mount_point = mount
    inside = path[len(root) :] if root != "/" and path.startswith(root) else path
    return mount_point / inside.lstrip("/")


def require_leaf(cgroups: Cgroups) -> None:
    """Makes a leaf, tries all that a sandbox needs of it, removes it. Raises HostError with what is missing."""
    try:
        leaf = cgroups.create("check", TRIAL_BYTES, 1)
        try:
            leaf.kill()
            leaf.cpu_usage_ns()
            leaf.memory_peak_bytes()
            leaf.oom()
        finally:
            leaf.remove()
    except OSError as error:
        raise HostError("cgroups", f"{error.filename}: {error.strerror}", "Linux 6.1 or newer") from error


def open_cgroups(instance: str, hierarchies: Hierarchies | None = None) -> Cgroups:
    """The implementation that fits this host, with the instance's folders made and this process in its place."""
    found = hierarchies or detect()
    name = f"{PREFIX}{instance}"
    return HybridCgroups(name, found.v2, found.v1) if found.hybrid else PureCgroups(name, found.v2)
