"""The root filesystem as steps: read-only image layers, one bounded write layer, `/dev` and `/proc` of its own. Pure.

Everything happens in PID 1's private mount namespace, below the instance's run directory, with relative names: a job's
mountinfo shows neither the host's paths nor the job's. Every mount gets its final flags when it is made; only `/dev` is
made read-only after its nodes are there, by itself. Kernel: overlayfs with `volatile` (5.10), procfs with
`subset=pid` (5.8).
"""

from __future__ import annotations

import stat

from sandboxd.jail import abi
from sandboxd.jail.steps import (
    Chdir,
    MakeNode,
    Mkdir,
    Mount,
    PivotRoot,
    SendTree,
    Symlink,
)
from sandboxd.jail.wire import Step
from sandboxd.spec import Struct

BLOCK_BYTES = 4096
OWN_INODES = 16
"""Folders of the write layer that are ours: upper, work, root, box, tmp, shm and overlayfs's own."""

TREE_ATTRIBUTES = (
    abi.MOUNT_ATTR_RDONLY
    | abi.MOUNT_ATTR_NOSUID
    | abi.MOUNT_ATTR_NODEV
    | abi.MOUNT_ATTR_NOEXEC
    | abi.MOUNT_ATTR_NOSYMFOLLOW
)
_QUIET = abi.MS_NOSUID | abi.MS_NODEV
_OVERLAY = "volatile,index=off,metacopy=off,redirect_dir=off"
_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9))
_DEV_LINKS = (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2"))


class Image(Struct, frozen=True, kw_only=True):
    """Read-only layers of a root filesystem. `base` is a folder below the run directory, `usr` overlaid on `/usr`
    apart, since overlay layers do not cross mounts (`host` image)."""

    name: str
    digest: str
    base: str
    usr: str


def write_layer_options(disk_bytes: int) -> dict[str, str]:
    """tmpfs options that bound bytes and inodes by one number (tmpfs(5))."""
    return {"size": str(max(disk_bytes, BLOCK_BYTES)), "nr_inodes": str(disk_bytes // BLOCK_BYTES + OWN_INODES)}


def rootfs_steps(image: Image, run_dir: str, disk_bytes: int, owner: int) -> list[Step]:
    """Steps from the run directory to a finished root; `owner` is the host's id of who owns `/box`."""
    options = ",".join(f"{key}={value}" for key, value in write_layer_options(disk_bytes).items())
    return [
        Chdir(run_dir),
        Mount("sandbox", "stage", "tmpfs", _QUIET, f"{options},mode=0755"),
        Mkdir("stage/upper", 0o755),
        Mkdir("stage/work", 0o755),
        Mkdir("stage/root", 0o755),
        Mkdir("stage/upper/box", 0o755, owner, owner),
        Mkdir("stage/upper/tmp", 0o1777),
        Mkdir("stage/shm", 0o1777),
        Mount(
            "sandbox",
            "stage/root",
            "overlay",
            _QUIET,
            f"lowerdir={image.base},upperdir=stage/upper,workdir=stage/work,{_OVERLAY}",
        ),
        Mount("sandbox", "stage/root/usr", "overlay", _QUIET | abi.MS_RDONLY, f"lowerdir={image.usr}:empty"),
        *_dev_steps(),
        Mount(
            "proc", "stage/root/proc", "proc", _QUIET | abi.MS_NOEXEC | abi.MS_RDONLY, "subset=pid,hidepid=invisible"
        ),
        SendTree("stage/upper", TREE_ATTRIBUTES),
        Chdir("stage/root"),
        PivotRoot(),
    ]


def _dev_steps() -> list[Step]:
    dev = "stage/root/dev"
    quiet = abi.MS_NOSUID | abi.MS_NOEXEC
    return [
        Mount("dev", dev, "tmpfs", quiet, "size=64k,nr_inodes=32,mode=0755"),
        *(MakeNode(f"{dev}/{name}", stat.S_IFCHR | 0o666, major, minor) for name, major, minor in _NODES),
        *(Symlink(f"/proc/self/fd{suffix}", f"{dev}/{name}") for name, suffix in _DEV_LINKS),
        Mkdir(f"{dev}/shm", 0o1777),
        Mount("stage/shm", f"{dev}/shm", None, abi.MS_BIND),
        Mount("dev", dev, None, abi.MS_REMOUNT | abi.MS_BIND | abi.MS_RDONLY | quiet),
    ]
