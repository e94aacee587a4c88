"""Seccomp profiles: OCI JSON in, one classic BPF program out, compiled through libseccomp and cached by content.

What a profile means here, in this order:

1. a denial with argument conditions that matches wins;
2. else a matching `SCMP_ACT_ALLOW`, with conditions or without;
3. else the syscall's denial without conditions ("allowed like this, otherwise this errno");
4. else `defaultAction`, which is never to allow.

libseccomp cannot say this in one filter: beside a rule without conditions it silently drops those with conditions. So each of the
three groups is compiled to a filter of its own, and the programs are linked: where one has no answer, it jumps to the next.

Only equality (`SCMP_CMP_EQ`, `SCMP_CMP_MASKED_EQ`) is taken: ranges are miscompiled by the libseccomp 2.5.4 of Debian 12
(GHSA-4q85-33p6-j5g6). Only the native architecture is served; all others, and x32, end the process.

seccomp(2), seccomp_rule_add(3); https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
import struct
import tempfile
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sandboxd.errors import HostError, PolicyError
from sandboxd.policy.syscall_numbers import NUMBERS, check_machine

INSTRUCTION = struct.Struct("<HBBI")
"""`struct sock_filter`: code, jt, jf, k."""
INSTRUCTIONS_MAX = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""
_RET_K, _JUMP_ALWAYS = 0x06, 0x05
# "No answer here": SECCOMP_RET_TRACE, which no profile can ask for; replaced when programs are linked.
_NO_ANSWER_DATA = 0xFFFE
_RET_NO_ANSWER = 0x7FF00000 | _NO_ANSWER_DATA
ERRNO_MAX = 4095
_EPERM = 1


class Action(enum.StrEnum):
    """What the kernel does; the rest of OCI's actions would log, trace or leave a half-dead process behind."""

    ALLOW = "SCMP_ACT_ALLOW"
    ERRNO = "SCMP_ACT_ERRNO"
    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"


class Operator(enum.StrEnum):
    """`EQ`: arg == value. `MASKED_EQ`: arg & value == valueTwo. All 64 bits count: an `int` needs the mask 0xffffffff."""

    EQ = "SCMP_CMP_EQ"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """OCI's spelling of names; unknown keys are refused rather than overlooked."""


class Argument(_Frozen, kw_only=True):
    """A condition on one argument of a syscall."""

    index: int
    value: int
    value_two: int = 0
    op: Operator

    def mask_and_value(self) -> tuple[int, int]:
        """The condition as `arg & mask == value`, over 64 bits."""
        return (2**64 - 1, self.value) if self.op is Operator.EQ else (self.value, self.value_two)


class Rule(_Frozen, kw_only=True):
    """`args` are all true together. `comment` says why the rule is there."""

    names: tuple[str, ...]
    action: Action
    errno_ret: int | None = None
    args: tuple[Argument, ...] = ()
    comment: str = ""

    @property
    def verdict(self) -> tuple[Action, int]:
        """Action and errno (0 when the action gives none)."""
        return self.action, (_EPERM if self.errno_ret is None else self.errno_ret) if self.action is Action.ERRNO else 0


class _Document(_Frozen, kw_only=True):
    """The JSON file. `architectures` and `archMap` are read over: the native one alone is served."""

    default_action: Action
    default_errno_ret: int = _EPERM
    syscalls: tuple[Rule, ...] = ()
    architectures: Any = None
    arch_map: Any = None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A checked profile. `name` is the file's, `sha256` the hash of its bytes."""

    name: str
    sha256: str
    default_action: Action
    default_errno: int
    rules: tuple[Rule, ...]


def load_profile(path: Path) -> Profile:
    """Reads and checks an OCI seccomp profile.

    Raises:
        PolicyError: `FILE: KEY` and what is wrong: not JSON, an unknown key or action, a range, a rule without a comment, two
            conditions on one argument, a default that allows, a syscall both allowed and denied without conditions.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(path.name, f"cannot be read: {error.strerror}") from error
    try:
        document = msgspec.json.decode(content, type=_Document)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        raise PolicyError(f"{path.name}: {where.rstrip('`').lstrip('.')}", text) from error
    except msgspec.DecodeError as error:
        raise PolicyError(path.name, f"not valid JSON: {error}") from error
    _check(path.name, document)
    return Profile(
        name=path.stem,
        sha256=hashlib.sha256(content).hexdigest(),
        default_action=document.default_action,
        default_errno=document.default_errno_ret if document.default_action is Action.ERRNO else 0,
        rules=document.syscalls,
    )


def _check(file: str, document: _Document) -> None:
    if document.default_action is Action.ALLOW:
        raise PolicyError(f"{file}: defaultAction", "must deny: a syscall that the next kernel adds would be allowed")
    if not 0 <= document.default_errno_ret <= ERRNO_MAX:
        raise PolicyError(f"{file}: defaultErrnoRet", f"must be between 0 and {ERRNO_MAX}")
    plain: dict[str, tuple[Action, int]] = {}
    for number, rule in enumerate(document.syscalls):
        where = f"{file}: syscalls[{number}]"
        if not rule.names or not all(rule.names):
            raise PolicyError(f"{where}.names", "names no syscall")
        if not rule.comment.strip():
            raise PolicyError(f"{where}.comment", f"missing: say why {rule.names[0]} has a rule")
        if rule.errno_ret is not None and (rule.action is not Action.ERRNO or not 0 <= rule.errno_ret <= ERRNO_MAX):
            raise PolicyError(f"{where}.errnoRet", f"goes with {Action.ERRNO} alone and must be between 0 and {ERRNO_MAX}")
        _check_arguments(where, rule.args)
        for name in rule.names if not rule.args else ():
            if plain.setdefault(name, rule.verdict) != rule.verdict:
                raise PolicyError(f"{where}.names", f"{name} has two different answers without conditions")


def _check_arguments(where: str, arguments: tuple[Argument, ...]) -> None:
    if len({argument.index for argument in arguments}) != len(arguments):
        raise PolicyError(f"{where}.args", "two conditions on one argument: write two rules, or one mask")
    for number, argument in enumerate(arguments):
        at = f"{where}.args[{number}]"
        if not 0 <= argument.index <= 5:
            raise PolicyError(f"{at}.index", "must be between 0 and 5")
        if not (0 <= argument.value < 2**64 and 0 <= argument.value_two < 2**64):
            raise PolicyError(f"{at}.value", "must be between 0 and 2^64 - 1")
        if argument.op is Operator.EQ and argument.value_two:
            raise PolicyError(f"{at}.valueTwo", f"has no meaning with {Operator.EQ}")
        if argument.op is Operator.MASKED_EQ and argument.value_two & ~argument.value:
            raise PolicyError(f"{at}.valueTwo", "can never match: it has bits outside of the mask in `value`")


def wider_than(profile: Profile, base: Profile) -> tuple[str, ...]:
    """Syscalls that `profile` allows and `base` does not, as far as rules can tell: empty means proved not wider.

    Each allowance needs one of `base` with the same conditions or fewer, and each of `base`'s conditional denials for it must be
    in `profile` too.
    """
    allowed: dict[str, list[frozenset[Argument]]] = {}
    for rule in base.rules:
        if rule.action is Action.ALLOW:
            for name in rule.names:
                allowed.setdefault(name, []).append(frozenset(rule.args))
    denied = {(name, frozenset(rule.args)) for rule in profile.rules if rule.action is not Action.ALLOW for name in rule.names}
    base_denied = [
        (name, frozenset(rule.args)) for rule in base.rules if rule.action is not Action.ALLOW and rule.args for name in rule.names
    ]
    wider: set[str] = set()
    for rule in profile.rules:
        for name in rule.names if rule.action is Action.ALLOW else ():
            covered = any(conditions <= frozenset(rule.args) for conditions in allowed.get(name, ()))
            guarded = all(entry in denied for entry in base_denied if entry[0] == name)
            if not (covered and guarded):
                wider.add(name)
    return tuple(sorted(wider))


class _Filter(Protocol):
    """What is used of the binding's `SyscallFilter`."""

    def set_attr(self, attr: int, value: int) -> None: ...
    def add_rule(self, action: int, syscall: int, *args: Any) -> None: ...
    def export_bpf(self, file: Any) -> None: ...


def compile_profile(profile: Profile, cache_dir: Path | None = None) -> tuple[bytes, ...]:
    """The programs to install, in order, each an array of little-endian `struct sock_filter`. Today always one.

    With `cache_dir` (a folder of ours alone) the program is kept there under the hash of the profile, of this code and of the
    installed libseccomp; libseccomp's binding is imported only when there is none.

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


def _cache_key(profile: Profile) -> str | None:
    """None when libseccomp's file is not where distributions put it: then nothing says which version compiled a program."""
    folders = (f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
    for folder in folders:
        library = Path(folder, "libseccomp.so.2")
        if library.exists():
            state = library.stat()
            version = f"{library.resolve().name} {state.st_size} {state.st_mtime_ns} {os.uname().machine}"
            code = Path(__file__).read_bytes() + Path(__file__).with_name("syscall_numbers.py").read_bytes()
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
    """Atomically, mode 0600. A cache that cannot be written costs time, not safety: the program is compiled again next time."""
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


def _binding() -> Any:
    """Debian's binding when this Python sees it (0.9 ms to import), else the one from PyPI."""
    try:
        import seccomp  # type: ignore[import-not-found,unused-ignore]

        return seccomp
    except ImportError:
        pass
    try:
        import pyseccomp  # type: ignore[import-not-found,unused-ignore]
    except (ImportError, RuntimeError) as error:  # RuntimeError: it found no libseccomp.so
        raise HostError("libseccomp", str(error), "apt-get install libseccomp2 && pip install pyseccomp") from error
    return pyseccomp


def _action(binding: Any, action: Action, errno: int) -> int:
    answer: int = {
        Action.ALLOW: binding.ALLOW,
        Action.KILL_PROCESS: binding.KILL_PROCESS,
        Action.ERRNO: binding.ERRNO(errno),
    }[action]
    return answer


def syscall_number(name: str) -> int | None:
    """Number of the syscall on this machine; None when neither libseccomp nor our table knows it, or it is another machine's."""
    if name in NUMBERS:
        return NUMBERS[name]
    binding = _binding()
    try:
        number: int = binding.resolve_syscall(binding.Arch.NATIVE, name)
    except ValueError:
        return None
    # libseccomp numbers the calls of other machines below zero.
    return number if number >= 0 else None


def _export(binding: Any, name: str, default: int, rules: list[Rule]) -> list[tuple[int, int, int, int]]:
    """One filter of libseccomp as instructions."""
    program: _Filter = binding.SyscallFilter(default)
    program.set_attr(binding.Attr.ACT_BADARCH, binding.KILL_PROCESS)
    # A binary tree: loads in half the time and answers argument rules faster than a list.
    program.set_attr(binding.Attr.CTL_OPTIMIZE, 2)
    operators = {Operator.EQ: binding.EQ, Operator.MASKED_EQ: binding.MASKED_EQ}
    for rule in rules:
        answer = _action(binding, *rule.verdict)
        conditions = [binding.Arg(a.index, operators[a.op], a.value, a.value_two) for a in rule.args]
        for syscall in rule.names:
            number = syscall_number(syscall)
            # Unknown here: the default denies it, which is never wider than what the rule says. `policy lint` reports it.
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

    Safe to do after compilation: conditional jumps stay inside their program, each program reloads what it compares, and an
    unconditional jump reaches 2^32 instructions.
    """
    linked: list[tuple[int, int, int, int]] = []
    for program in programs:
        end = len(linked) + len(program)
        for instruction in program:
            if instruction == (_RET_K, 0, 0, _RET_NO_ANSWER):
                instruction = (_JUMP_ALWAYS, 0, 0, end - len(linked) - 1)
            linked.append(instruction)
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in linked)
