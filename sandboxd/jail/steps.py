"""The steps of a plan: one kernel action each, as a value that says what it does and how init reads it."""

from __future__ import annotations

import resource
import stat
from typing import ClassVar

from sandboxd.jail import abi
from sandboxd.jail.wire import Op, Record, Slot, Step


class Clone(Step, frozen=True):
    flags: int

    OP: ClassVar[Op] = Op.CLONE

    def record(self) -> Record:
        return Record(args=(self.flags,))

    def subject(self) -> str:
        made = ", ".join(namespaces(self.flags))
        return f"PID 1 into the cgroup, its pidfd to the launcher, new namespaces: {made}"


class AttachCgroup(Step, frozen=True):
    """Puts PID 1 into a leaf of a v1 hierarchy."""

    controller: str
    index: int

    OP: ClassVar[Op] = Op.ATTACH_CGROUP

    def record(self) -> Record:
        return Record(slot=Slot.ATTACH + self.index)

    def subject(self) -> str:
        return f"{self.controller} (v1)"


class WriteIdMap(Step, frozen=True):
    file: str
    content: str

    OP: ClassVar[Op] = Op.WRITE_ID_MAP

    def record(self) -> Record:
        return Record(strings=(self.file, self.content))

    def subject(self) -> str:
        return f"{self.file}: {self.content}"


class Notify(Step, frozen=True):
    """Wakes the process on the other end of the pair between outer and PID 1."""

    OP: ClassVar[Op] = Op.NOTIFY


class Wait(Step, frozen=True):
    """Waits for the other end's `Notify`."""

    OP: ClassVar[Op] = Op.WAIT


class Prctl(Step, frozen=True):
    label: str
    option: int
    arg2: int = 0
    arg3: int = 0

    OP: ClassVar[Op] = Op.PRCTL

    def record(self) -> Record:
        return Record(args=(self.option, self.arg2, self.arg3))

    def subject(self) -> str:
        return self.label


class Setsid(Step, frozen=True):
    OP: ClassVar[Op] = Op.SETSID


class Umask(Step, frozen=True):
    mask: int

    OP: ClassVar[Op] = Op.UMASK

    def record(self) -> Record:
        return Record(args=(self.mask,))

    def subject(self) -> str:
        return f"{self.mask:04o}"


class Unshare(Step, frozen=True):
    flags: int

    OP: ClassVar[Op] = Op.UNSHARE

    def record(self) -> Record:
        return Record(args=(self.flags,))

    def subject(self) -> str:
        return ", ".join(namespaces(self.flags))


class OpenProc(Step, frozen=True):
    """A procfs of the sandbox's pid namespace that is mounted nowhere: writes through it cannot be redirected."""

    OP: ClassVar[Op] = Op.OPEN_PROC

    def record(self) -> Record:
        return Record(slot=Slot.PROC)


class ZeroClocks(Step, frozen=True):
    """Monotonic and boot time start near zero in the new time namespace."""

    OP: ClassVar[Op] = Op.ZERO_CLOCKS

    def record(self) -> Record:
        return Record(slot=Slot.PROC)


class Mount(Step, frozen=True):
    source: str
    target: str
    type: str | None
    flags: int
    data: str | None = None

    OP: ClassVar[Op] = Op.MOUNT

    def record(self) -> Record:
        return Record(args=(self.flags,), strings=(self.source, self.target, self.type, self.data))

    def subject(self) -> str:
        options = ",".join(mount_flags(self.flags) + ([self.data] if self.data else []))
        return f"{self.type or self.source} on {self.target} ({options})"


class Mkdir(Step, frozen=True):
    path: str
    mode: int
    uid: int = 0
    gid: int = 0

    OP: ClassVar[Op] = Op.MKDIR

    def record(self) -> Record:
        return Record(args=(self.mode, self.uid, self.gid), strings=(self.path,))

    def subject(self) -> str:
        owner = f", uid {self.uid}" if self.uid else ""
        return f"{self.path} ({self.mode:04o}{owner})"


class Symlink(Step, frozen=True):
    target: str
    path: str

    OP: ClassVar[Op] = Op.SYMLINK

    def record(self) -> Record:
        return Record(strings=(self.target, self.path))

    def subject(self) -> str:
        return f"{self.path} -> {self.target}"


class MakeNode(Step, frozen=True):
    path: str
    mode: int
    major: int
    minor: int

    OP: ClassVar[Op] = Op.MKNOD

    def record(self) -> Record:
        return Record(args=(self.mode, self.major << 8 | self.minor), strings=(self.path,))

    def subject(self) -> str:
        return f"{self.path} ({stat.filemode(self.mode)} {self.major}:{self.minor})"


class SendTree(Step, frozen=True):
    """A clone of a folder's mount, with attributes of its own, lies on it from now on and goes to the launcher."""

    path: str
    attributes: int

    OP: ClassVar[Op] = Op.SEND_TREE

    def record(self) -> Record:
        return Record(args=(self.attributes,), strings=(self.path,))

    def subject(self) -> str:
        return f"{self.path} (ro,nosuid,nodev,noexec,nosymfollow) to the launcher"


class Chdir(Step, frozen=True):
    path: str

    OP: ClassVar[Op] = Op.CHDIR

    def record(self) -> Record:
        return Record(strings=(self.path,))

    def subject(self) -> str:
        return self.path


class PivotRoot(Step, frozen=True):
    """The working directory becomes the root, and the host's root is detached."""

    OP: ClassVar[Op] = Op.PIVOT_ROOT


class LoopbackUp(Step, frozen=True):
    OP: ClassVar[Op] = Op.LOOPBACK_UP


class SetHostname(Step, frozen=True):
    hostname: str

    OP: ClassVar[Op] = Op.SETHOSTNAME

    def record(self) -> Record:
        return Record(strings=(self.hostname,))

    def subject(self) -> str:
        return self.hostname


class SetDomainname(Step, frozen=True):
    domainname: str

    OP: ClassVar[Op] = Op.SETDOMAINNAME

    def record(self) -> Record:
        return Record(strings=(self.domainname,))

    def subject(self) -> str:
        return self.domainname


class JoinKeyring(Step, frozen=True):
    """A new session keyring: nothing of the launcher's is searched."""

    OP: ClassVar[Op] = Op.JOIN_KEYRING


class SetPriority(Step, frozen=True):
    nice: int

    OP: ClassVar[Op] = Op.SETPRIORITY

    def record(self) -> Record:
        return Record(args=(self.nice,))

    def subject(self) -> str:
        return f"nice {self.nice}"


class LandlockCreate(Step, frozen=True):
    """A ruleset that handles these rights: what no rule allows is refused."""

    handled_fs: int
    handled_net: int
    scoped: int
    attr_bytes: int

    OP: ClassVar[Op] = Op.LANDLOCK_CREATE

    def record(self) -> Record:
        return Record(slot=Slot.LANDLOCK, args=(self.handled_fs, self.handled_net, self.scoped, self.attr_bytes))

    def subject(self) -> str:
        return f"files {self.handled_fs:#x}, tcp {self.handled_net:#x}, scopes {self.scoped:#x}"


class LandlockAdd(Step, frozen=True):
    path: str
    allowed: int

    OP: ClassVar[Op] = Op.LANDLOCK_ADD

    def record(self) -> Record:
        return Record(slot=Slot.LANDLOCK, args=(self.allowed,), strings=(self.path,))

    def subject(self) -> str:
        return f"{self.path}: " + "|".join(right.name or "" for right in abi.Access(self.allowed)).lower()


class LandlockRestrict(Step, frozen=True):
    flags: int

    OP: ClassVar[Op] = Op.LANDLOCK_RESTRICT

    def record(self) -> Record:
        return Record(slot=Slot.LANDLOCK, args=(self.flags,))


class WriteProc(Step, frozen=True):
    """Writes a value through the private procfs."""

    path: str
    value: str

    OP: ClassVar[Op] = Op.WRITE_AT

    def record(self) -> Record:
        return Record(slot=Slot.PROC, strings=(self.path, self.value))

    def subject(self) -> str:
        return f"/proc/{self.path} = {self.value}"


class SetGroups(Step, frozen=True):
    """No supplementary groups."""

    OP: ClassVar[Op] = Op.SETGROUPS


class SetResgid(Step, frozen=True):
    gid: int

    OP: ClassVar[Op] = Op.SETRESGID

    def record(self) -> Record:
        return Record(args=(self.gid,))

    def subject(self) -> str:
        return str(self.gid)


class SetResuid(Step, frozen=True):
    uid: int

    OP: ClassVar[Op] = Op.SETRESUID

    def record(self) -> Record:
        return Record(args=(self.uid,))

    def subject(self) -> str:
        return str(self.uid)


class SetEuid(Step, frozen=True):
    """Who owns the user namespace that is made next: what is held in it of kernel pools counts against this id."""

    OP: ClassVar[Op] = Op.SETEUID
    uid: int

    def record(self) -> Record:
        return Record(args=(self.uid,))

    def subject(self) -> str:
        return str(self.uid)


class DropBounding(Step, frozen=True):
    last: int

    OP: ClassVar[Op] = Op.DROP_BOUNDING

    def record(self) -> Record:
        return Record(args=(self.last,))

    def subject(self) -> str:
        return f"capabilities 0..{self.last}"


class SetCapabilities(Step, frozen=True):
    """All gone from every set; or, for a control run, all kept and inheritable."""

    kept: bool

    OP: ClassVar[Op] = Op.CAPSET

    def record(self) -> Record:
        return Record(args=(int(self.kept), int(self.kept)))

    def subject(self) -> str:
        return "all kept" if self.kept else "none"


class RaiseAmbient(Step, frozen=True):
    last: int

    OP: ClassVar[Op] = Op.RAISE_AMBIENT

    def record(self) -> Record:
        return Record(args=(self.last,))


class InstallSeccomp(Step, frozen=True):
    profile: str
    program: bytes
    listen: bool = False
    """Refused calls wait for the launcher's answer (SECCOMP_FILTER_FLAG_NEW_LISTENER)."""

    OP: ClassVar[Op] = Op.SECCOMP

    def record(self) -> Record:
        return Record(args=(abi.SECCOMP_FILTER_FLAG_NEW_LISTENER if self.listen else 0,), data=self.program)

    def subject(self) -> str:
        told = ", refusals are told" if self.listen else ""
        return f"{self.profile} ({len(self.program) // 8} instructions{told})"


class SetRlimit(Step, frozen=True):
    label: str
    resource: int
    soft: int
    hard: int

    OP: ClassVar[Op] = Op.SETRLIMIT

    def record(self) -> Record:
        return Record(args=(self.resource, self.soft & (1 << 64) - 1, self.hard & (1 << 64) - 1))

    def subject(self) -> str:
        return f"{self.label} {'unlimited' if self.soft == resource.RLIM_INFINITY else self.soft}"


class TakeStdin(Step, frozen=True):
    """What the job reads becomes descriptor 0; until then that is empty."""

    OP: ClassVar[Op] = Op.STDIN

    def record(self) -> Record:
        return Record(slot=Slot.STDIN)


class CloseRange(Step, frozen=True):
    """Every other descriptor is closed; the control socket closes itself on exec."""

    OP: ClassVar[Op] = Op.CLOSE_RANGE


class ResetSignals(Step, frozen=True):
    """Default dispositions, empty mask."""

    OP: ClassVar[Op] = Op.SIGNALS


class LeakRoot(Step, frozen=True):
    """Control run `--without mount`: a descriptor of the host's root stays open in the payload."""

    OP: ClassVar[Op] = Op.LEAK_ROOT


class CopyFile(Step, frozen=True):
    """Makes a file of a part of what came with the job."""

    path: str
    mode: int
    offset: int
    size: int

    OP: ClassVar[Op] = Op.COPY_FILE

    def record(self) -> Record:
        return Record(slot=Slot.INPUTS, args=(self.mode, self.offset, self.size), strings=(self.path,))

    def subject(self) -> str:
        return f"/box/{self.path} ({self.size} bytes, {self.mode:04o})"


class Exec(Step, frozen=True):
    """One candidate of the job's command; the next is tried when it does not exist."""

    path: str

    OP: ClassVar[Op] = Op.EXEC

    def record(self) -> Record:
        return Record(strings=(self.path,))

    def subject(self) -> str:
        return self.path


class Fail(Step, frozen=True):
    """Fault injection: this step fails with `errno`; with 0 its process dies here, without a word."""

    errno: int

    OP: ClassVar[Op] = Op.FAIL

    def record(self) -> Record:
        return Record(args=(self.errno,))


_NAMESPACES = {
    abi.CLONE_NEWNS: "mnt",
    abi.CLONE_NEWPID: "pid",
    abi.CLONE_NEWNET: "net",
    abi.CLONE_NEWIPC: "ipc",
    abi.CLONE_NEWUTS: "uts",
    abi.CLONE_NEWCGROUP: "cgroup",
    abi.CLONE_NEWTIME: "time",
    abi.CLONE_NEWUSER: "user",
}


def namespaces(flags: int) -> tuple[str, ...]:
    """Names of the namespaces in clone(2) flags, as in /proc/PID/ns."""
    return tuple(name for flag, name in _NAMESPACES.items() if flags & flag)


_MOUNT_FLAGS = {
    abi.MS_RDONLY: "ro",
    abi.MS_NOSUID: "nosuid",
    abi.MS_NODEV: "nodev",
    abi.MS_NOEXEC: "noexec",
    abi.MS_REMOUNT: "remount",
    abi.MS_BIND: "bind",
    abi.MS_REC: "rec",
    abi.MS_PRIVATE: "private",
}


def mount_flags(flags: int) -> list[str]:
    return [name for flag, name in _MOUNT_FLAGS.items() if flags & flag]
