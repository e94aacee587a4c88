"""The only module that imports ctypes: system calls that Python's os module lacks, one typed function each.

Every failure is an OSError with the call and its subject. Prototypes are set once, here. Linux 6.1 has all of them.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import select
import socket
from collections.abc import Iterable, Mapping

from sandboxd.jail import abi

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def openat2(dir_fd: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): opens `path` below `dir_fd` under the RESOLVE_* rules; close-on-exec."""
    raw = os.fsencode(path)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    number = _syscall(
        ctypes.c_long(abi.SYS.OPENAT2),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(raw),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _checked(number, f"openat2({raw!r})")


def set_child_subreaper(*, on: bool) -> None:
    """prctl(2) PR_SET_CHILD_SUBREAPER: whether descendants whose parent ended become this process's own children."""
    _checked(_libc.prctl(ctypes.c_int(abi.PR_SET_CHILD_SUBREAPER), ctypes.c_ulong(on)), "prctl(PR_SET_CHILD_SUBREAPER)")


def landlock_abi() -> int | None:
    """Version of the Landlock ABI (landlock(7)); None where the kernel has none."""
    number = _syscall(
        ctypes.c_long(abi.SYS.LANDLOCK_CREATE_RULESET),
        ctypes.c_void_p(None),
        ctypes.c_size_t(0),
        ctypes.c_uint32(abi.LANDLOCK_CREATE_RULESET_VERSION),
    )
    return int(number) if number > 0 else None


def reconfigure_mount(mount_fd: int, options: dict[str, str]) -> None:
    """fspick(2) and fsconfig(2): changes a filesystem's options through a descriptor of one of its mounts."""
    context = _checked(
        _syscall(
            ctypes.c_long(abi.SYS.FSPICK),
            ctypes.c_int(mount_fd),
            ctypes.c_char_p(b""),
            ctypes.c_uint(abi.FSPICK_EMPTY_PATH | abi.FSPICK_CLOEXEC),
        ),
        "fspick",
    )
    try:
        for key, value in options.items():
            _fsconfig(context, abi.FSCONFIG_SET_STRING, key.encode(), value.encode())
        _fsconfig(context, abi.FSCONFIG_CMD_RECONFIGURE, None, None)
    finally:
        os.close(context)


def detached_mount(kind: str, options: Mapping[str, str | None]) -> int:
    """fsopen(2), fsconfig(2), fsmount(2): a new filesystem that no path leads to, and that is gone with the descriptor.
    An option without a value is None."""
    context = _checked(
        _syscall(ctypes.c_long(abi.SYS.FSOPEN), ctypes.c_char_p(kind.encode()), ctypes.c_uint(abi.FSOPEN_CLOEXEC)),
        f"fsopen({kind})",
    )
    try:
        for key, value in options.items():
            command = abi.FSCONFIG_SET_FLAG if value is None else abi.FSCONFIG_SET_STRING
            _fsconfig(context, command, key.encode(), None if value is None else value.encode())
        _fsconfig(context, abi.FSCONFIG_CMD_CREATE, None, None)
        mounted = _syscall(
            ctypes.c_long(abi.SYS.FSMOUNT),
            ctypes.c_int(context),
            ctypes.c_uint(abi.FSMOUNT_CLOEXEC),
            ctypes.c_uint(0),
        )
        return _checked(mounted, f"fsmount({kind})")
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    number = _syscall(
        ctypes.c_long(abi.SYS.FSCONFIG),
        ctypes.c_int(context),
        ctypes.c_uint(command),
        ctypes.c_char_p(key),
        ctypes.c_char_p(value),
        ctypes.c_int(0),
    )
    _checked(number, f"fsconfig({(key or b'create').decode()})")


def sealed_memfd(name: str, pieces: Iterable[bytes], *, executable: bool = False) -> int:
    """memfd_create(2) with `pieces` one after the other, sealed against every change; the caller owns it."""
    fd = new_memfd(name, executable=executable)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def new_memfd(name: str, *, executable: bool = False) -> int:
    """Not executable unless asked for, where the kernel can say so (MFD_NOEXEC_SEAL, Linux 6.3)."""
    flags = abi.MFD_CLOEXEC | abi.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | (abi.MFD_EXEC if executable else abi.MFD_NOEXEC_SEAL))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def seal(memfd: int) -> None:
    """Nothing of it can be changed any more (fcntl(2), F_ADD_SEALS)."""
    seals = abi.F_SEAL_SEAL | abi.F_SEAL_SHRINK | abi.F_SEAL_GROW | abi.F_SEAL_WRITE
    fcntl.fcntl(memfd, abi.F_ADD_SEALS, seals)


def copy(source: int, target: int, offset: int, count: int) -> None:
    """sendfile(2): `count` bytes of `source` from `offset` on to the position of `target`. Raises EIO where they end
    before."""
    while count > 0:
        copied = os.sendfile(target, source, offset, count)
        if copied == 0:
            raise OSError(errno.EIO, "the file is shorter than it was")
        offset, count = offset + copied, count - copied


def receive(sock: socket.socket, size: int, descriptors_max: int) -> tuple[bytes, list[int]]:
    """recvmsg(2) with descriptors that close themselves on exec. (`socket.recv_fds` passes its flags to nobody: what it
    returns is inherited by every process that is started.)"""
    numbers = array.array("i")
    space = socket.CMSG_LEN(descriptors_max * numbers.itemsize)
    data, ancillary, _flags, _address = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return data, list(numbers)


def is_child(fd: int) -> bool:
    """Whether a descriptor is the pidfd of a child of this process, or of a process that has ended: who ignores SIGCHLD
    has no ended children."""
    try:
        os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        return bool(ended.poll(0))
    except OSError:  # no pidfd
        return False
    return True


def is_seccomp_listener(fd: int) -> bool:
    """Whether a descriptor is one that a filter's notifications come from."""
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:seccomp notify"
