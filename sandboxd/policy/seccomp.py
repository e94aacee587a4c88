"""Seccomp profiles: OCI JSON in, one classic BPF program out, compiled through libseccomp and cached by content.

What a profile means here, in this order:

1. a denial with argument conditions that matches wins;
2. else a matching `SCMP_ACT_ALLOW`, with conditions or without;
3. else the syscall's denial without conditions ("allowed like this, otherwise this errno");
4. else `defaultAction`, which is never to allow.

libseccomp cannot say this in one filter: beside a rule without conditions it silently drops those with conditions. So
each of the three groups is compiled to a filter of its own, and the programs are linked: where one has no answer, it
jumps to the next.

Only equality (`SCMP_CMP_EQ`, `SCMP_CMP_MASKED_EQ`) is taken: ranges are miscompiled by the libseccomp 2.5.4 of Debian
12 (GHSA-4q85-33p6-j5g6). Only the native architecture is served; all others, and x32, end the process.

seccomp(2), seccomp_rule_add(3); https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp
"""

from __future__ import annotations

import contextlib
import errno as errno_names
import hashlib
import os
import struct
import tempfile
from pathlib import Path
from typing import IO, Protocol, cast, overload

from sandboxd.errors import HostError, PolicyError
from sandboxd.policy.profile import Action, Operator, Profile, Rule, load_profile, wider_than
from sandboxd.policy.syscall_numbers import NUMBERS, check_machine

__all__ = [
    "Profile",
    "compile_profile",
    "is_known",
    "load_profile",
    "reporting",
    "syscall_name",
    "syscall_number",
    "wider_than",
]

# Code that a compiled program depends on.
_SOURCES = ("seccomp.py", "profile.py", "syscall_numbers.py")
INSTRUCTION = struct.Struct("<HBBI")
"""`struct sock_filter`: code, jt, jf, k."""
INSTRUCTIONS_MAX = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""
_RET_K, _JUMP_ALWAYS, _JUMP_EQUAL, _LOAD = 0x06, 0x05, 0x15, 0x20
_DATA_NR = 0  # offset in struct seccomp_data
RET_ACTION, RET_DATA, RET_ERRNO = 0xFFFF0000, 0x0000FFFF, 0x00050000
_RET_USER_NOTIF = 0x7FC00000
# "No answer here": SECCOMP_RET_TRACE, which no profile can ask for; replaced when programs are linked.
_NO_ANSWER_DATA = 0xFFFE
_RET_NO_ANSWER = 0x7FF00000 | _NO_ANSWER_DATA


class _Filter(Protocol):
    """What is used of the binding's `SyscallFilter`."""

    def set_attr(self, attr: int, value: int) -> None: ...
    def add_rule(self, action: int, syscall: int, *args: object) -> None: ...
    def export_bpf(self, file: IO[bytes]) -> None: ...


class _Attr(Protocol):
    ACT_BADARCH: int
    CTL_OPTIMIZE: int


class _Arch(Protocol):
    NATIVE: int


class _Binding(Protocol):
    """The part of libseccomp's Python binding that is used; both implementations have it."""

    ALLOW: int
    KILL_PROCESS: int
    EQ: int
    MASKED_EQ: int
    Attr: _Attr
    Arch: _Arch

    def ERRNO(self, errno: int) -> int: ...
    def TRACE(self, data: int) -> int: ...
    def SyscallFilter(self, default: int) -> _Filter: ...
    def Arg(self, index: int, operator: int, value: int, value_two: int) -> object: ...
    @overload
    def resolve_syscall(self, arch: int, name: str) -> int: ...
    @overload
    def resolve_syscall(self, arch: int, name: int) -> bytes | str: ...


def compile_profile(profile: Profile, cache_dir: Path | None = None) -> tuple[bytes, ...]:
    """The programs to install, in order, each an array of little-endian `struct sock_filter`. Today always one.

    With `cache_dir` (a folder of ours alone) the program is kept there under the hash of the profile, of this code
    and of the installed libseccomp; libseccomp's binding is imported only when there is none.

    Raises:
        PolicyError: libseccomp refused a rule, or the program is longer than the kernel takes.
        HostError: libseccomp or its binding is missing, or the machine is neither x86_64 nor aarch64.
    """
    check_machine()
    key = _cache_key(profile) if cache_dir is not None else None
    if cache_dir is None or key is None:
        return (_compile(profile),)
    path = cache_dir / f"seccomp-{profile.name}-{key[:32]}.bpf"
    program = _read_cached(path)
    if program is None:
        program = _compile(profile)
        _write_cached(path, program)
    return (program,)


def reporting(program: bytes) -> bytes:
    """The program with every refusal turned into a notification of the supervisor, which then answers.

    Not so for clone3, whose ENOSYS libc needs at each start of a thread, for `sync`, which is answered with success,
    and for what ends the process.
    """
    clone3 = syscall_number("clone3")
    exempt = [
        (_LOAD, 0, 0, _DATA_NR),
        (_JUMP_EQUAL, 0, 1, clone3 if clone3 is not None else 0xFFFFFFFF),
        (_RET_K, 0, 0, RET_ERRNO | errno_names.ENOSYS),
    ]
    instructions = [
        (_RET_K, 0, 0, _RET_USER_NOTIF) if _is_refusal(instruction) else instruction
        for instruction in INSTRUCTION.iter_unpack(program)
    ]
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in (*exempt, *instructions))


def _is_refusal(instruction: tuple[int, int, int, int]) -> bool:
    code, _, _, answer = instruction
    return code == _RET_K and answer & RET_ACTION == RET_ERRNO and answer & RET_DATA != 0


def syscall_name(number: int) -> str:
    """Name of a syscall of this machine; its number as text where nobody knows it."""
    for name, known in NUMBERS.items():
        if known == number:
            return name
    binding = _binding()
    try:
        found = binding.resolve_syscall(binding.Arch.NATIVE, number)
    except ValueError:
        return str(number)
    return found.decode() if isinstance(found, bytes) else found


def _cache_key(profile: Profile) -> str | None:
    """None when libseccomp is not where distributions put it: nothing says then which version compiled a program."""
    folders = (f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
    for folder in folders:
        library = Path(folder, "libseccomp.so.2")
        if library.exists():
            state = library.stat()
            version = f"{library.resolve().name} {state.st_size} {state.st_mtime_ns} {os.uname().machine}"
            code = b"".join(Path(__file__).with_name(name).read_bytes() for name in _SOURCES)
            return hashlib.sha256(b"\0".join([profile.sha256.encode(), version.encode(), code])).hexdigest()
    return None


def _read_cached(path: Path) -> bytes | None:
    """The program, when the file is ours alone and whole (its first 32 bytes are the hash of the rest)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        state = os.fstat(fd)
        if state.st_uid != os.geteuid() or state.st_mode & 0o022:
            return None
        content = file.read(32 + INSTRUCTIONS_MAX * INSTRUCTION.size + 1)
    digest, program = content[:32], content[32:]
    return program if program and hashlib.sha256(program).digest() == digest else None


def _write_cached(path: Path, program: bytes) -> None:
    """Atomically, mode 0600. A cache that cannot be written costs time, not safety: the next start compiles again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(hashlib.sha256(program).digest() + program)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _compile(profile: Profile) -> bytes:
    binding = _binding()
    denials = [rule for rule in profile.rules if rule.args and rule.action is not Action.ALLOW]
    allowances = [rule for rule in profile.rules if rule.action is Action.ALLOW]
    fallbacks = [rule for rule in profile.rules if not rule.args and rule.action is not Action.ALLOW]
    no_answer = binding.TRACE(_NO_ANSWER_DATA)
    programs = [
        _export(binding, profile.name, no_answer, denials),
        _export(binding, profile.name, no_answer, allowances),
        _export(binding, profile.name, _action(binding, profile.default_action, profile.default_errno), fallbacks),
    ]
    program = _link(programs)
    if len(program) > INSTRUCTIONS_MAX * INSTRUCTION.size:
        raise PolicyError(f"{profile.name}.json", f"compiles to more than {INSTRUCTIONS_MAX} instructions")
    return program


def _binding() -> _Binding:
    """Debian's binding when this Python sees it (0.9 ms to import), else the one from PyPI."""
    try:
        import seccomp

        return cast(_Binding, seccomp)
    except ImportError:
        pass
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:  # RuntimeError: it found no libseccomp.so
        raise HostError("libseccomp", str(error), "apt-get install libseccomp2 && pip install pyseccomp") from error
    return cast(_Binding, pyseccomp)


def _action(binding: _Binding, action: Action, errno: int) -> int:
    if action is Action.ALLOW:
        return binding.ALLOW
    return binding.KILL_PROCESS if action is Action.KILL_PROCESS else binding.ERRNO(errno)


def syscall_number(name: str) -> int | None:
    """Number of the syscall on this machine; None when nobody knows the name, or it is another machine's."""
    number = _resolve(name)
    return number if number is not None and number >= 0 else None


def is_known(name: str) -> bool:
    """Whether any machine has a syscall of this name, as far as libseccomp and our table know."""
    return _resolve(name) is not None


def _resolve(name: str) -> int | None:
    """libseccomp numbers the calls of other machines below zero, and what it does not know -1."""
    if name in NUMBERS:
        return NUMBERS[name]
    binding = _binding()
    try:
        number = binding.resolve_syscall(binding.Arch.NATIVE, name)
    except ValueError:
        return None
    return None if number == -1 else number


def _export(binding: _Binding, name: str, default: int, rules: list[Rule]) -> list[tuple[int, int, int, int]]:
    """One filter of libseccomp as instructions."""
    program = binding.SyscallFilter(default)
    program.set_attr(binding.Attr.ACT_BADARCH, binding.KILL_PROCESS)
    # A binary tree: loads in half the time and answers argument rules faster than a list.
    program.set_attr(binding.Attr.CTL_OPTIMIZE, 2)
    operators = {Operator.EQ: binding.EQ, Operator.MASKED_EQ: binding.MASKED_EQ}
    for rule in rules:
        answer = _action(binding, *rule.verdict)
        conditions = [binding.Arg(a.index, operators[a.op], a.value, a.value_two) for a in rule.args]
        for syscall in rule.names:
            number = syscall_number(syscall)
            # Unknown here: the default denies it, which is never wider than the rule. `policy lint` reports it.
            if number is None or answer == default:
                continue
            try:
                program.add_rule(answer, number, *conditions)
            except (OSError, RuntimeError, ValueError) as error:
                raise PolicyError(f"{name}.json", f"libseccomp refuses the rule for {syscall}: {error}") from error
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return list(INSTRUCTION.iter_unpack(file.read()))


def _link(programs: list[list[tuple[int, int, int, int]]]) -> bytes:
    """Concatenates the programs; "no answer" becomes a jump to the next one's first instruction.

    Safe to do after compilation: conditional jumps stay inside their program, each program reloads what it compares,
    and an unconditional jump reaches 2^32 instructions.
    """
    linked: list[tuple[int, int, int, int]] = []
    for program in programs:
        end = len(linked) + len(program)
        for instruction in program:
            if instruction == (_RET_K, 0, 0, _RET_NO_ANSWER):
                instruction = (_JUMP_ALWAYS, 0, 0, end - len(linked) - 1)
            linked.append(instruction)
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in linked)
