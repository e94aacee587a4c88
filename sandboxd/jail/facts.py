"""What this host can do, found by trying; and the list of checks that `sandboxd doctor` prints and a launcher insists
on.

A *must* that is absent refuses service with its remedy. All else is a warning: several settings cannot be changed on
every host.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sandboxd.errors import HostError, SandboxdError
from sandboxd.jail import abi, syscalls
from sandboxd.jail.cgroup_host import Hierarchies, detect
from sandboxd.jail.cgroup_v1 import DYNMODS
from sandboxd.jail.cgroups import V1_CONTROLLERS
from sandboxd.jail.plan import HostFacts
from sandboxd.spec import Struct

LANDLOCK_ABI_MIN = 2
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "user")


class Finding(Struct, frozen=True, kw_only=True):
    """One check's answer. `ok` False with `must`: no service on this host until `remedy` is done."""

    name: str
    must: bool
    ok: bool
    detail: str
    remedy: str


def host_facts() -> HostFacts:
    """What planning needs. Raises HostError where a must is missing."""
    hierarchies = detect()
    landlock = syscalls.landlock_abi()
    if landlock is None or landlock < LANDLOCK_ABI_MIN:
        raise HostError("landlock", f"ABI {landlock} found, {LANDLOCK_ABI_MIN} or newer needed", _LANDLOCK_REMEDY)
    return HostFacts(
        cgroup="hybrid" if hierarchies.hybrid else "v2",
        v1_controllers=V1_CONTROLLERS if hierarchies.hybrid else (),
        landlock_abi=landlock,
        last_capability=int(Path("/proc/sys/kernel/cap_last_cap").read_text()),
        cpus=len(os.sched_getaffinity(0)),
        core_limit=_core_limit(),
    )


def findings() -> list[Finding]:
    """Every check of this host, musts first."""
    return [*(_run(check, must=True) for check in _MUSTS), *(_run(check, must=False) for check in _WARNINGS)]


def require() -> None:
    """Raises HostError for the first must that is absent."""
    for finding in (_run(check, must=True) for check in _MUSTS):
        if not finding.ok:
            raise HostError(finding.name, finding.detail, finding.remedy)


class _Check(Struct, frozen=True, kw_only=True):
    name: str
    probe: Callable[[], tuple[bool, str]]
    remedy: str


def _run(check: _Check, *, must: bool) -> Finding:
    try:
        ok, detail = check.probe()
    except (OSError, SandboxdError, ValueError) as error:
        ok, detail = False, str(error)
    return Finding(name=check.name, must=must, ok=ok, detail=detail, remedy="" if ok else check.remedy)


def _core_pattern() -> str:
    return Path("/proc/sys/kernel/core_pattern").read_text().strip()


def _root() -> tuple[bool, str]:
    return os.geteuid() == 0, f"effective uid {os.geteuid()}"


def _namespaces() -> tuple[bool, str]:
    absent = [name for name in NAMESPACES if not Path(f"/proc/self/ns/{name}").exists()]
    return not absent, "missing: " + ", ".join(absent) if absent else ", ".join(NAMESPACES)


def _filesystems() -> tuple[bool, str]:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    loadable = Path(f"/lib/modules/{os.uname().release}/kernel/fs/overlayfs").exists()
    return "overlay" in known or loadable, "overlay" if "overlay" in known else "overlay is a module, not loaded yet"


def _seccomp() -> tuple[bool, str]:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    return {"errno", "kill_process"} <= set(actions), " ".join(actions)


def _pidfd() -> tuple[bool, str]:
    os.close(os.pidfd_open(os.getpid()))
    return True, "pidfd_open works"


def _openat2() -> tuple[bool, str]:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.close(syscalls.openat2(root, "proc", os.O_PATH, abi.RESOLVE_BENEATH | abi.RESOLVE_NO_SYMLINKS))
    finally:
        os.close(root)
    return True, "openat2 works"


def _cgroups() -> tuple[bool, str]:
    found: Hierarchies = detect()
    if found.hybrid:
        return {"memory", "pids"} <= set(found.v1), f"hybrid: v1 {', '.join(sorted(found.v1))} and v2 at {found.v2}"
    controllers = (found.v2 / "cgroup.controllers").read_text().split()
    return {"memory", "pids", "cpu"} <= set(
        controllers
    ), f"v2 at {found.v2} with {' '.join(controllers) or 'no controller'}"


def _swap() -> tuple[bool, str]:
    areas = Path("/proc/swaps").read_text().splitlines()[1:]
    if not areas:
        return True, "no swap"
    found = detect()
    limit = found.v1["memory"] / "memory.memsw.limit_in_bytes" if found.hybrid else found.v2 / "memory.swap.max"
    return limit.exists() or not found.hybrid, f"{len(areas)} swap area(s), limited by {limit.name}"


_LANDLOCK_REMEDY = "Linux 6.1 or newer with CONFIG_SECURITY_LANDLOCK and `landlock` in the kernel's lsm= list"


def _landlock() -> tuple[bool, str]:
    version = syscalls.landlock_abi()
    return version is not None and version >= LANDLOCK_ABI_MIN, f"ABI {version}"


def _merged_usr() -> tuple[bool, str]:
    return Path("/bin").is_symlink() and Path("/lib").is_symlink(), "/bin and /lib are links into /usr"


def _core_is_piped() -> bool:
    """Whether a crash starts a helper of the host's, or sends to a socket of it."""
    return _core_pattern().startswith(("|", "@"))


def _core_limit() -> Literal[0, 1]:
    """What jobs can be given: 1, which starts no helper, unless this process may not have it."""
    return 0 if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 else 1


def _core() -> tuple[bool, str]:
    limit = "RLIMIT_CORE 1, which starts no helper" if _core_limit() else "RLIMIT_CORE 0"
    return not _core_is_piped(), f"core_pattern is {_core_pattern()!r}; jobs run with {limit}"


def _binfmt() -> tuple[bool, str]:
    folder = Path("/proc/sys/fs/binfmt_misc")
    entries = (
        [path.name for path in folder.iterdir() if path.name not in ("register", "status")] if folder.is_dir() else []
    )
    return not entries, "registered: " + ", ".join(entries) if entries else "none registered"


def _smt() -> tuple[bool, str]:
    text = Path("/sys/devices/system/cpu/smt/active").read_text().strip()
    return text == "0", "sibling threads share cores with other jobs" if text == "1" else "off"


def _vulnerabilities() -> tuple[bool, str]:
    folder = Path("/sys/devices/system/cpu/vulnerabilities")
    open_ones = [path.name for path in sorted(folder.iterdir()) if path.read_text().startswith("Vulnerable")]
    return not open_ones, "unmitigated: " + ", ".join(open_ones) if open_ones else "all mitigated"


_NEEDED_LIMITS = {
    "stack": (resource.RLIMIT_STACK, 1 << 30),
    "nofile": (resource.RLIMIT_NOFILE, 1024),
    "core": (resource.RLIMIT_CORE, 1),
    "sigpending": (resource.RLIMIT_SIGPENDING, 256),
}
"""A payload cannot be given more than the launcher may have: the widest policy's ceilings, and what every job gets."""


def raise_resource_limits() -> None:
    """Hard limits up, as far as this process may (CAP_SYS_RESOURCE)."""
    for number, needed in _NEEDED_LIMITS.values():
        soft, hard = resource.getrlimit(number)
        if hard != resource.RLIM_INFINITY and hard < needed:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(number, (soft, needed))


def _resource_limits() -> tuple[bool, str]:
    hard = {name: resource.getrlimit(number)[1] for name, (number, _) in _NEEDED_LIMITS.items()}
    if hard["core"] == 0 and not _core_is_piped():
        hard["core"] = 1  # sudo sets 0, and nothing but a helper makes 0 and 1 differ
    low = [
        f"{name} {hard[name]}, {needed} needed"
        for name, (_, needed) in _NEEDED_LIMITS.items()
        if hard[name] != resource.RLIM_INFINITY and hard[name] < needed
    ]
    return not low, "; ".join(low) if low else "hard limits are high enough"


def _favordynmods() -> tuple[bool, str]:
    """v1 moves wait 9-18 ms for an RCU grace period after 20 ms of rest, unless any v1 hierarchy has the option."""
    if not detect().hybrid:
        return True, "not needed on pure v2"
    mounted = "favordynmods" in Path("/proc/self/mountinfo").read_text()
    on = mounted or f"name={DYNMODS}:" in Path("/proc/self/cgroup").read_text()
    return on, "on" if on else "off: the first sandbox after a pause takes 9-18 ms longer"


def _sysctl(key: str, accepted: Callable[[int], bool], remedy_value: int) -> _Check:
    path = Path("/proc/sys") / key.replace(".", "/")

    def probe() -> tuple[bool, str]:
        if not path.exists():
            return True, "not in this kernel"
        value = int(path.read_text().split()[0])
        return accepted(value), f"{value}"

    return _Check(name=key, probe=probe, remedy=f"sysctl -w {key}={remedy_value}")


_MUSTS = (
    _Check(name="root", probe=_root, remedy="run the launcher as root (sudo)"),
    _Check(name="namespaces", probe=_namespaces, remedy="a kernel with every CONFIG_*_NS"),
    _Check(name="overlayfs", probe=_filesystems, remedy="modprobe overlay"),
    _Check(name="seccomp filters", probe=_seccomp, remedy="a kernel with CONFIG_SECCOMP_FILTER"),
    _Check(name="pidfd", probe=_pidfd, remedy="Linux 6.1 or newer"),
    _Check(name="openat2", probe=_openat2, remedy="Linux 6.1 or newer"),
    _Check(
        name="cgroups",
        probe=_cgroups,
        remedy="systemd-run --scope -p Delegate=yes COMMAND, or Delegate=yes in the unit",
    ),
    _Check(name="swap", probe=_swap, remedy="swapoff -a, or boot with swapaccount=1"),
    _Check(name="landlock", probe=_landlock, remedy=_LANDLOCK_REMEDY),
    _Check(
        name="resource limits",
        probe=_resource_limits,
        remedy=(
            "raise what is named: nofile by ulimit -Hn or LimitNOFILE= in the unit, stack by ulimit -Hs or LimitSTACK=,"
            " core by ulimit -Hc or LimitCORE=; for core below sudo: "
            "`Defaults rlimit_core=default` in sudoers, or a core_pattern without a pipe"
        ),
    ),
    _Check(name="merged /usr", probe=_merged_usr, remedy="apt-get install usrmerge"),
)
_WARNINGS = (
    _Check(name="core_pattern", probe=_core, remedy="sysctl -w kernel.core_pattern=core"),
    _Check(name="binfmt_misc", probe=_binfmt, remedy="echo -1 > /proc/sys/fs/binfmt_misc/status"),
    _Check(name="simultaneous multithreading", probe=_smt, remedy="echo off > /sys/devices/system/cpu/smt/control"),
    _Check(name="cpu vulnerabilities", probe=_vulnerabilities, remedy="update the kernel and the microcode"),
    _Check(
        name="v1 favordynmods",
        probe=_favordynmods,
        remedy="boot with cgroup v2, or start the launcher with --favor-dynmods (SANDBOXD_FAVOR_DYNMODS for serve)",
    ),
    _sysctl("kernel.kptr_restrict", lambda value: value >= 1, 2),
    _sysctl("kernel.dmesg_restrict", lambda value: value >= 1, 1),
    _sysctl("kernel.unprivileged_bpf_disabled", lambda value: value >= 1, 1),
    _sysctl("kernel.perf_event_paranoid", lambda value: value >= 2, 2),
    _sysctl("kernel.io_uring_disabled", lambda value: value >= 1, 2),
    _sysctl("dev.tty.legacy_tiocsti", lambda value: value == 0, 0),
    _sysctl("vm.unprivileged_userfaultfd", lambda value: value == 0, 0),
    _sysctl("fs.protected_symlinks", lambda value: value >= 1, 1),
    _sysctl("fs.protected_hardlinks", lambda value: value >= 1, 1),
    _sysctl("fs.protected_fifos", lambda value: value >= 1, 2),
    _sysctl("fs.protected_regular", lambda value: value >= 1, 2),
    _sysctl("debug.exception-trace", lambda value: value == 0, 0),
)
