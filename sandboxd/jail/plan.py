"""Plans: (policy, image, host facts) become a frozen list of steps, then (limits, files, argv, env) another. Pure.

`build` makes a sandbox that does not know its job; `job` is given to it later, to a process that has no rights left.
The order is the wall: mounts come before the user namespace, so that even uid 0 inside cannot undo them; rights go
before Landlock, Landlock before seccomp, seccomp before the job.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Literal

from sandboxd.jail import abi
from sandboxd.jail import steps as st
from sandboxd.jail.abi import Access
from sandboxd.jail.rootfs import Image, rootfs_steps
from sandboxd.jail.wire import Phase, PlannedStep, Step
from sandboxd.policy.model import Policy
from sandboxd.result import Isolation
from sandboxd.spec import NANOSECONDS, InputFile, InputSizes, Limits, StageSpec, Struct

Layer = Literal["seccomp", "landlock", "userns", "caps", "uid", "netns", "mount"]
LAYERS: tuple[Layer, ...] = ("seccomp", "landlock", "userns", "caps", "uid", "netns", "mount")
"""What a control run may leave out (`sandboxd launcher --without LAYER`)."""

PAYLOAD_ID = 1000
HOLD_ID = 2
"""PID 1's own uid while it holds the sandbox: not the payload's."""
IDS_PER_SLOT = 65_536
HOSTNAME = "sandbox"
WORKING_DIRECTORY = "/box"
DEFAULT_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": WORKING_DIRECTORY,
    "USER": "sandbox",
    "LOGNAME": "sandbox",
}
_CLONE_FLAGS = abi.CLONE_NEWNS | abi.CLONE_NEWPID | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS
_LATER_FLAGS = abi.CLONE_NEWCGROUP | abi.CLONE_NEWTIME
_NAMESPACE_SYSCTLS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
_INOTIFY_SYSCTLS = {"max_inotify_instances": 16, "max_inotify_watches": 1024}
"""Of one sandbox. Such counts go up the tree of user namespaces: see `_user_namespace_steps`."""


class HostFacts(Struct, frozen=True, kw_only=True):
    """What planning needs to know of the host; `jail/facts.py` finds it by trying."""

    cgroup: Literal["v2", "hybrid"]
    v1_controllers: tuple[str, ...]
    """Hierarchies that PID 1 is put into by hand; empty on pure v2."""
    landlock_abi: int
    last_capability: int
    cpus: int
    core_limit: Literal[0, 1] = 1
    """RLIMIT_CORE of payloads. At 1 the kernel starts no helper of a pipe pattern, at 0 it would; either way no file is
    written (core(5)). 0 only where the launcher's own hard limit is 0, as below sudo, and the pattern is no pipe.
    """


class Programs(Struct, frozen=True, kw_only=True):
    """Compiled seccomp programs, installed in this order."""

    payload: tuple[bytes, ...]
    init: tuple[bytes, ...]


class BuildInputs(Struct, frozen=True, kw_only=True):
    """All that the build list depends on; hashable, so that an encoded list can be kept."""

    policy: Policy
    image: Image
    host: HostFacts
    programs: Programs
    run_dir: str
    id_base: int
    without: frozenset[Layer] = frozenset()


def build_plan(inputs: BuildInputs) -> tuple[PlannedStep, ...]:
    """The steps that make a sandbox, by process, in the order of their execution."""
    return (
        *_planned(Phase.OUTER, _outer_steps(inputs)),
        *_planned(Phase.BUILD, _init_steps(inputs)),
        *_planned(Phase.PAYLOAD, _payload_steps(inputs)),
        *_planned(Phase.HOLD, _hold_steps(inputs)),
    )


def job_plan(stage: StageSpec, sizes: InputSizes) -> tuple[PlannedStep, ...]:
    """The steps that give a sandbox its job: files in, limits on, the candidates of its command."""
    return (
        *_planned(Phase.JOB, _file_steps(stage.files, sizes.files)),
        *_planned(Phase.JOB, [st.TakeStdin()] if stage.stdin is None or sizes.stdin else []),
        *_planned(Phase.JOB, _limit_steps(stage.limits)),
        *_planned(Phase.EXEC, _exec_steps(stage)),
    )


def environment(stage: StageSpec) -> dict[str, str]:
    """The payload's whole environment: the fixed one, the request's over it."""
    return DEFAULT_ENV | stage.env


def isolation(policy: Policy, host: HostFacts, without: frozenset[Layer]) -> Isolation:
    """What a result says of the walls that stood around it."""
    flags = _clone_flags(without) | _LATER_FLAGS | (0 if "userns" in without else abi.CLONE_NEWUSER)
    return Isolation(
        namespaces=st.namespaces(flags),
        cgroup=host.cgroup,
        seccomp="seccomp" not in without,
        landlock_abi=None if "landlock" in without else host.landlock_abi,
        selinux=None,
        rootless=False,
        without=tuple(sorted(without)),
    )


def _planned(phase: Phase, listed: Iterable[Step]) -> tuple[PlannedStep, ...]:
    return tuple(PlannedStep(phase, step) for step in listed)


def _clone_flags(without: frozenset[Layer]) -> int:
    return _CLONE_FLAGS if "netns" in without else _CLONE_FLAGS | abi.CLONE_NEWNET


def _outer_steps(inputs: BuildInputs) -> list[Step]:
    id_map = f"0 {inputs.id_base} {IDS_PER_SLOT}"
    maps: list[Step] = [
        st.Wait(),
        st.WriteIdMap("gid_map", id_map),
        st.WriteIdMap("uid_map", id_map),
        st.Notify(),
    ]
    return [
        st.Clone(_clone_flags(inputs.without)),
        *(st.AttachCgroup(name, index) for index, name in enumerate(inputs.host.v1_controllers)),
        st.Notify(),
        *([] if "userns" in inputs.without else maps),
    ]


def _init_steps(inputs: BuildInputs) -> list[Step]:
    # Before the user namespace ids are the host's; inside it they are the map's.
    owner = inputs.id_base + _payload_id(inputs)
    loopback = inputs.policy.network == "loopback" and "netns" not in inputs.without
    return [
        st.Wait(),
        st.Prctl("not dumpable", abi.PR_SET_DUMPABLE, 0),
        st.Prctl("die with the launcher", abi.PR_SET_PDEATHSIG, 9),
        st.Setsid(),
        st.Umask(0),
        st.Unshare(_LATER_FLAGS),
        st.OpenProc(),
        st.ZeroClocks(),
        st.Mount("none", "/", None, abi.MS_REC | abi.MS_PRIVATE),
        *([st.LeakRoot()] if "mount" in inputs.without else []),
        *rootfs_steps(inputs.image, inputs.run_dir, inputs.policy.defaults.disk_bytes, owner),
        *([st.LoopbackUp()] if loopback else []),
        st.SetHostname(HOSTNAME),
        st.SetDomainname("(none)"),
        st.JoinKeyring(),
        st.SetPriority(0),
        *([] if "landlock" in inputs.without else _landlock_steps(inputs)),
        *_user_namespace_steps(inputs),
        *([] if "caps" in inputs.without else _lock_capabilities(inputs.host)),
    ]


def _user_namespace_steps(inputs: BuildInputs) -> list[Step]:
    if "userns" in inputs.without:
        return [st.SetGroups()]
    return [
        # The namespace's owner is an id of the slot, not root: inotify instances of all sandboxes would else count
        # against root's few, and one job could take them from the host and from every other. Capabilities stay.
        st.Prctl("capabilities survive the change of uid", abi.PR_SET_SECUREBITS, abi.SECBIT_NO_SETUID_FIXUP),
        st.SetEuid(inputs.id_base),
        st.Unshare(abi.CLONE_NEWUSER),
        st.Notify(),
        st.Wait(),
        st.SetGroups(),
        st.SetResgid(0),
        st.SetResuid(0),
        *(st.WriteProc(f"sys/user/max_{name}_namespaces", "0") for name in _NAMESPACE_SYSCTLS),
        *(st.WriteProc(f"sys/user/{name}", str(value)) for name, value in _INOTIFY_SYSCTLS.items()),
    ]


def _landlock_steps(inputs: BuildInputs) -> list[Step]:
    """Rules bind to inodes of the merged root, so they are made after the pivot (landlock(7))."""
    version = inputs.host.landlock_abi
    every = Access(0)
    for right, since in ((Access.REFER, 2), (Access.TRUNCATE, 3), (Access.IOCTL_DEV, 5)):
        if version >= since:
            every |= right
    every |= Access((1 << 13) - 1)
    read = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
    write = every & ~(Access.MAKE_CHAR | Access.MAKE_BLOCK | Access.IOCTL_DEV)
    network = abi.LANDLOCK_ACCESS_NET_ALL if version >= 4 and inputs.policy.network == "none" else 0
    scopes = abi.LANDLOCK_SCOPE_ALL if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    return [
        st.LandlockCreate(int(every), network, scopes, size),
        st.LandlockAdd("/", int(read)),
        st.LandlockAdd("/dev", int(Access.READ_FILE | Access.WRITE_FILE | Access.READ_DIR)),
        *(st.LandlockAdd(path, int(write)) for path in (WORKING_DIRECTORY, "/tmp", "/dev/shm")),  # noqa: S108
    ]


def _payload_id(inputs: BuildInputs) -> int:
    return 0 if "uid" in inputs.without else PAYLOAD_ID


def _inside(inputs: BuildInputs, number: int) -> int:
    """An id as the process that sets it must name it."""
    return inputs.id_base + number if "userns" in inputs.without else number


def _payload_steps(inputs: BuildInputs) -> list[Step]:
    payload_id = _inside(inputs, _payload_id(inputs))
    without = inputs.without
    flags = abi.LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF | abi.LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF
    return [
        st.Setsid(),
        st.ResetSignals(),
        st.Chdir(WORKING_DIRECTORY),
        st.Umask(0o022),
        # Its own files in /proc belong to root while it is not dumpable; nothing else lives in here yet.
        st.Prctl("dumpable", abi.PR_SET_DUMPABLE, 1),
        st.WriteProc("self/oom_score_adj", "1000"),
        st.WriteProc("self/coredump_filter", "0"),
        *_fixed_limit_steps(inputs.host.core_limit),
        st.SetGroups(),
        st.SetResgid(payload_id),
        *(_keep_capabilities(payload_id, inputs.host) if "caps" in without else _drop_capabilities(payload_id)),
        st.Prctl("no_new_privs", abi.PR_SET_NO_NEW_PRIVS, 1),
        *([] if "landlock" in without else [st.LandlockRestrict(flags if inputs.host.landlock_abi >= 7 else 0)]),
        st.CloseRange(),
        *(
            []
            if "seccomp" in without
            else [
                st.InstallSeccomp(inputs.policy.seccomp, program, listen=inputs.policy.report_denied)
                for program in inputs.programs.payload
            ]
        ),
    ]


def _lock_capabilities(host: HostFacts) -> list[Step]:
    """By PID 1 for itself and the payload, which inherits both: no exec and no change of uid gives a capability back
    (capabilities(7)). It needs CAP_SETPCAP, so it comes before any is dropped."""
    return [
        st.Prctl("securebits, locked", abi.PR_SET_SECUREBITS, abi.SECUREBITS_ALL_LOCKED),
        st.DropBounding(host.last_capability),
    ]


def _drop_capabilities(own_id: int) -> list[Step]:
    """With the securebits locked a change of uid takes none away: capset does."""
    return [
        st.SetResuid(own_id),
        st.Prctl("no ambient capabilities", abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL),
        st.SetCapabilities(kept=False),
    ]


def _keep_capabilities(payload_id: int, host: HostFacts) -> list[Step]:
    """Control run: every capability of the payload's namespace survives the change of uid and the exec."""
    return [
        st.Prctl("keep capabilities", abi.PR_SET_KEEPCAPS, 1),
        st.SetResuid(payload_id),
        st.SetCapabilities(kept=True),
        st.RaiseAmbient(host.last_capability),
    ]


def _hold_steps(inputs: BuildInputs) -> list[Step]:
    """PID 1 gives up all rights; its death signal is set again, since a change of uid clears it (prctl(2))."""
    hold_id = _inside(inputs, HOLD_ID)
    return [
        st.SetResgid(hold_id),
        *_drop_capabilities(hold_id),
        st.Prctl("no_new_privs", abi.PR_SET_NO_NEW_PRIVS, 1),
        st.Prctl("die with the launcher", abi.PR_SET_PDEATHSIG, 9),
        *(st.InstallSeccomp("init", program) for program in inputs.programs.init),
    ]


def _file_steps(files: tuple[InputFile, ...], sizes: tuple[int, ...]) -> list[Step]:
    """By the payload's process, with no more rights than the job has: what it makes is the job's. Folders come before
    what lies in them."""
    folders = sorted({str(parent) for file in files for parent in PurePosixPath(file.path).parents} - {"."})
    offsets = accumulate(sizes, initial=0)
    return [
        *(st.Mkdir(folder, 0o755) for folder in folders),
        *(
            st.CopyFile(file.path, 0o755 if file.executable else 0o644, offset, size)
            for file, offset, size in zip(files, offsets, sizes, strict=False)
        ),
    ]


def _fixed_limit_steps(core: int) -> list[Step]:
    """Limits that no job changes. RLIMIT_AS stays unset (JVM, Go, sanitizers)."""
    return [
        st.SetRlimit("core", resource.RLIMIT_CORE, core, core),
        st.SetRlimit("locked memory", resource.RLIMIT_MEMLOCK, 0, 0),
        st.SetRlimit("message queues", resource.RLIMIT_MSGQUEUE, 0, 0),
        st.SetRlimit("nice", resource.RLIMIT_NICE, 0, 0),
        st.SetRlimit("real-time priority", resource.RLIMIT_RTPRIO, 0, 0),
        st.SetRlimit("pending signals", resource.RLIMIT_SIGPENDING, 256, 256),
    ]


def _limit_steps(limits: Limits) -> list[Step]:
    """After the files, to which RLIMIT_FSIZE would apply. The cgroup is the wall for CPU time and processes; RLIMIT_CPU
    and RLIMIT_NPROC stand behind it."""
    cpu_s = -(-limits.cpu_time_ns // NANOSECONDS) + 1
    return [
        st.SetRlimit("cpu seconds", resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        st.SetRlimit("file size", resource.RLIMIT_FSIZE, limits.file_size_bytes, limits.file_size_bytes),
        st.SetRlimit("open files", resource.RLIMIT_NOFILE, limits.open_files, limits.open_files),
        st.SetRlimit("stack", resource.RLIMIT_STACK, limits.stack_bytes, limits.stack_bytes),
        st.SetRlimit("processes", resource.RLIMIT_NPROC, limits.processes, limits.processes),
    ]


def _exec_steps(stage: StageSpec) -> list[Step]:
    """execvp(3): a name without a slash is looked up along PATH, here, so that init need not parse it."""
    name = stage.argv[0]
    if "/" in name:
        return [st.Exec(name)]
    folders = [folder for folder in environment(stage)["PATH"].split(":") if folder.startswith("/")]
    return [st.Exec(f"{folder}/{name}") for folder in folders]
