"""The compiled filters say what their profiles say: asked of the program itself, at the borders of every rule."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.policy import bpf
from sandboxd.policy.load import policy_folder, profile_path
from sandboxd.policy.profile import Action, Profile, Rule, load_profile, policy_profile
from sandboxd.policy.seccomp import INSTRUCTION, compile_profile, syscall_number

SHIPPED = ("default", "init")
ARCH = bpf.AUDIT_ARCH[os.uname().machine]
Args = tuple[int, ...]


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> tuple[Profile, bytes]:
    profile = load_profile(profile_path(policy_folder(), request.param))
    return profile, compile_profile(profile)[0]


@pytest.fixture(scope="module")
def payload_filter() -> bytes:
    return compile_profile(load_profile(profile_path(policy_folder(), "default")))[0]


def expected(profile: Profile, name: str, args: Args) -> int:
    """The documented meaning of a profile, written as simply as it is told: the oracle of these tests."""

    def matches(rule: Rule) -> bool:
        return name in rule.names and all(
            args[a.index] & mask == value for a in rule.args for mask, value in [a.mask_and_value()]
        )

    matching = [rule for rule in profile.rules if matches(rule)]
    groups = (
        [rule for rule in matching if rule.args and rule.action is not Action.ALLOW],
        [rule for rule in matching if rule.action is Action.ALLOW],
        [rule for rule in matching if not rule.args and rule.action is not Action.ALLOW],
    )
    for group in groups:
        if group:
            return answer(*group[0].verdict)
    return answer(profile.default_action, profile.default_errno)


def answer(action: Action, errno: int) -> int:
    return {Action.ALLOW: bpf.ALLOW, Action.KILL_PROCESS: bpf.KILL_PROCESS, Action.ERRNO: bpf.ERRNO | errno}[action]


def test_a_policy_without_a_network_has_sockets_of_its_own_processes_alone(payload_filter: bytes) -> None:
    path = profile_path(policy_folder(), "default")
    program = compile_profile(policy_profile(path, "none"))[0]
    assert policy_profile(path, "loopback") == load_profile(path)
    number = syscall_number("socket")
    assert number is not None
    for family, kind, protocol in ((2, 1, 0), (2, 2, 17), (10, 1, 6), (10, 2, 0), (16, 3, 0)):
        assert bpf.evaluate(program, number, (family, kind, protocol), arch=ARCH) == bpf.ERRNO | errno.EAFNOSUPPORT
        assert bpf.evaluate(payload_filter, number, (family, kind, protocol), arch=ARCH) == bpf.ALLOW
        assert (
            bpf.evaluate(program, number, (2**32 | family, kind, protocol), arch=ARCH) == bpf.ERRNO | errno.EAFNOSUPPORT
        )
    for kind in (1, 2, 5):
        assert bpf.evaluate(program, number, (1, kind, 0), arch=ARCH) == bpf.ALLOW


def boundary_values(profile: Profile, name: str, index: int) -> set[int]:
    """For one argument: 0, all ones, and for each rule its value, the neighbours, every single bit flipped, bit 32
    and above set."""
    values = {0, 1, 2**64 - 1, 2**32 - 1, 2**32, 2**63}
    for rule in profile.rules:
        for argument in rule.args if name in rule.names else ():
            if argument.index == index:
                mask, value = argument.mask_and_value()
                values |= {value, value - 1, value + 1, value | ~mask, value | 2**32, value | 0xDEAD << 32}
                values |= {value ^ (1 << bit) for bit in range(64)}
    return {value & (2**64 - 1) for value in values}


def argument_tuples(profile: Profile, name: str) -> Iterator[Args]:
    """Every rule's own arguments, and around them each argument in turn at each of its boundary values."""
    bases: set[Args] = {(0,) * 6, (2**64 - 1,) * 6}
    used: set[int] = set()
    for rule in profile.rules:
        if name in rule.names:
            base = [0] * 6
            for argument in rule.args:
                base[argument.index] = argument.mask_and_value()[1]
                used.add(argument.index)
            bases.add(tuple(base))
    yield from bases
    for base in bases:
        for index in used or {0}:
            for value in boundary_values(profile, name, index):
                yield (*base[:index], value, *base[index + 1 :])


def test_every_rule_holds_at_and_around_its_borders(shipped: tuple[Profile, bytes]) -> None:
    profile, program = shipped
    names = {name for rule in profile.rules for name in rule.names}
    asked = 0
    for name in names:
        number = syscall_number(name)
        if number is None:
            continue
        for args in argument_tuples(profile, name):
            got = bpf.evaluate(program, number, args, arch=ARCH)
            assert got == expected(profile, name, args), (name, [hex(arg) for arg in args])
            asked += 1
    assert asked > len(names)


def test_a_call_without_a_rule_gets_the_default(shipped: tuple[Profile, bytes]) -> None:
    profile, program = shipped
    ruled = {syscall_number(name) for rule in profile.rules for name in rule.names}
    for number in [*range(1024), 0x3FFFFFFF]:
        if number not in ruled:
            default = answer(profile.default_action, profile.default_errno)
            assert bpf.evaluate(program, number, arch=ARCH) == default, number


def test_any_other_architecture_ends_the_process(shipped: tuple[Profile, bytes]) -> None:
    _, program = shipped
    for number in range(512):
        for arch in (bpf.ARCH_I386, bpf.AUDIT_ARCH["aarch64" if ARCH == bpf.AUDIT_ARCH["x86_64"] else "x86_64"], 0):
            assert bpf.evaluate(program, number, arch=arch) == bpf.KILL_PROCESS


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="host fact: not an x86_64 machine")
def test_no_x32_call_is_allowed(shipped: tuple[Profile, bytes]) -> None:
    _, program = shipped
    for number in range(1024):
        assert bpf.evaluate(program, bpf.X32_BIT | number, arch=ARCH) == bpf.KILL_PROCESS


def test_the_program_fits_into_the_kernel(shipped: tuple[Profile, bytes]) -> None:
    _, program = shipped
    assert len(program) % INSTRUCTION.size == 0
    assert 0 < len(program) // INSTRUCTION.size <= 1024


ENOSYS, EPERM, EINVAL, EAFNOSUPPORT, EOPNOTSUPP = 38, 1, 22, 97, 95
GARBAGE = 0xDEADBEEF << 32
# What threats taught, as literals: the profile's file itself could be wrong.
REFUSED = [
    ("clone3", (), ENOSYS),
    *[("clone", (flag | 0x3D0F00,), EPERM) for flag in (0x20000, *(1 << bit for bit in range(25, 31)))],
    *[("clone", (GARBAGE | flag,), EPERM) for flag in (0x10000000, 0x7E020000)],
    *[("socket", (family, 3, 0), EAFNOSUPPORT) for family in (38, 40, 17, 15, 33, 44, 29, 31, 5, 4)],
    *[("socket", (16, 3, protocol), EAFNOSUPPORT) for protocol in (1, 6, 9, 12, 15, 16)],
    *[("socket", (family, kind, 0), EPERM) for family in (2, 10) for kind in (3, 3 | 0x80000)],
    *[("socket", (2, 1, protocol), EAFNOSUPPORT) for protocol in (132, 262)],
    *[("socket", (2, kind, protocol), EAFNOSUPPORT) for kind, protocol in ((2, 136), (2, 1), (5, 132), (10, 0))],
    ("socketpair", (2, 1, 0), EOPNOTSUPP),
    *[("ioctl", (0, request), EPERM) for request in (0x5412, 0x541C, 0x5423, 0x5412 | GARBAGE, 0x5412 | 1 << 32)],
    *[("fcntl", (0, command), EINVAL) for command in (1024, 1026, 1024 | GARBAGE)],
    *[("prctl", (option,), EPERM) for option in (35, 62, 67, 35 | 1 << 32)],
    *[("personality", (value,), EPERM) for value in (8, 0x0400000, 0x20000, 0x40001)],
    ("prlimit64", (1, 7, 0), EPERM),
    ("prlimit64", (0, 4, 0x7FFF0000), EPERM),
    ("prlimit64", (0, 4 | 1 << 32, 0x7FFF0000), EPERM),
    ("prlimit64", (0, 4, 1 << 32), EPERM),
    ("setrlimit", (4,), EPERM),
    ("setrlimit", (4 | GARBAGE,), EPERM),
    ("seccomp", (1, 8), EPERM),
    ("seccomp", (1, 9), EPERM),
    *[("sendto", (0, 0, 0, flags), EOPNOTSUPP) for flags in (1, 1 | 0x4000, 1 | 1 << 32)],
    *[("recvmsg", (0, 0, flags), EOPNOTSUPP) for flags in (1, 3)],
    *[("mknodat", (0, 0, mode), EPERM) for mode in (0o020666, 0o060600, 0o040000)],
    ("sync", (), 0),
    *[(name, (), EPERM) for name in ("mount", "umount2", "unshare", "setns", "pivot_root", "chroot")],
    *[(name, (), EPERM) for name in ("ptrace", "bpf", "reboot", "process_vm_readv", "kcmp", "pidfd_getfd")],
    *[(name, (), EPERM) for name in ("perf_event_open", "init_module", "kexec_load", "open_by_handle_at")],
    *[(name, (), EPERM) for name in ("clock_settime", "settimeofday", "swapon", "quotactl", "syslog", "acct")],
    *[(name, (), ENOSYS) for name in ("io_uring_setup", "userfaultfd", "add_key", "request_key", "keyctl")],
    *[(name, (), ENOSYS) for name in ("memfd_secret", "vmsplice", "tee", "io_setup", "mbind", "statmount")],
]  # fmt: skip
GRANTED = [
    ("clone", (0x3D0F00,)),
    ("clone", (0x01200011,)),
    ("clone", (0x4111,)),
    *[("socket", (family, kind, 0)) for family in (1, 2, 10) for kind in (1, 2, 1 | 0x80000, 2 | 0x800)],
    ("socket", (1, 5, 0)),
    ("socket", (2, 1, 6)),
    ("socket", (10, 2, 17)),
    ("socket", (16, 3 | 0x80000, 0)),
    ("socketpair", (1, 1, 0)),
    *[("ioctl", (0, request)) for request in (0x5401, 0x5413, 0x541B, 0x5421)],
    *[("fcntl", (0, command)) for command in (0, 1, 2, 3, 4, 5, 6, 7, 37, 1030, 1031)],
    *[("prctl", (option,)) for option in (1, 4, 15, 22, 38)],
    *[("personality", (value,)) for value in (0, 0xFFFFFFFF, 0x40000)],
    ("prlimit64", (0, 4, 0)),
    ("prlimit64", (0, 7, 0x7FFF0000)),
    ("prlimit64", (0, 3, 0)),
    ("setrlimit", (3,)),
    ("sendto", (0, 0, 0, 0x4000)),
    *[("mknodat", (0, 0, mode)) for mode in (0o100644, 0o644, 0o010644)],
    *[(name, ()) for name in ("read", "execve", "futex", "mmap", "openat", "getrandom", "rseq", "mseal", "futex_wait")],
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "errno"), REFUSED, ids=str)
def test_the_payload_is_refused(payload_filter: bytes, name: str, args: Args, errno: int) -> None:
    number = syscall_number(name)
    assert number is not None
    assert bpf.evaluate(payload_filter, number, args, arch=ARCH) == bpf.ERRNO | errno


@pytest.mark.parametrize(("name", "args"), GRANTED, ids=str)
def test_the_payload_is_granted(payload_filter: bytes, name: str, args: Args) -> None:
    number = syscall_number(name)
    assert number is not None
    assert bpf.evaluate(payload_filter, number, args, arch=ARCH) == bpf.ALLOW


def test_init_may_do_nothing_but_reap_and_report() -> None:
    program = compile_profile(load_profile(profile_path(policy_folder(), "init")))[0]
    allowed = {number for number in range(1024) if bpf.evaluate(program, number, (1,), arch=ARCH) == bpf.ALLOW}
    names = (
        "read write close sendmsg sendto recvmsg recvfrom wait4 waitid poll ppoll clock_gettime restart_syscall "
        "rt_sigreturn exit exit_group getppid prctl"
    )
    assert allowed == {syscall_number(name) for name in names.split()} - {None}
    prctl = syscall_number("prctl")
    assert prctl is not None
    for option in (0, 2, 4, 15, 22, 38):
        assert bpf.evaluate(program, prctl, (option,), arch=ARCH) == bpf.KILL_PROCESS


def test_a_compiled_program_is_cached_by_content(tmp_path: Path) -> None:
    source = profile_path(policy_folder(), "init")
    cache = tmp_path / "cache"
    first = compile_profile(load_profile(source), cache)
    (cached,) = cache.iterdir()
    assert cached.stat().st_mode & 0o777 == 0o600
    assert compile_profile(load_profile(source), cache) == first
    assert list(cache.iterdir()) == [cached]

    changed = tmp_path / "init.json"
    changed.write_text(source.read_text().replace('"getppid"', '"getppid", "getpid"'))
    second = compile_profile(load_profile(changed), cache)
    assert second != first
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"\x06\x00\x00\x00\x00\x00\xff\x7f", b"\0" * 40])
def test_a_damaged_cache_entry_is_compiled_again(tmp_path: Path, damage: bytes) -> None:
    profile = load_profile(profile_path(policy_folder(), "init"))
    program = compile_profile(profile, tmp_path)
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(damage)
    assert compile_profile(profile, tmp_path) == program


def test_a_cache_entry_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    profile = load_profile(profile_path(policy_folder(), "init"))
    program = compile_profile(profile, tmp_path)
    (cached,) = tmp_path.iterdir()
    other = compile_profile(load_profile(profile_path(policy_folder(), "default")), tmp_path / "other")
    (planted,) = (tmp_path / "other").iterdir()
    assert other != program
    cached.write_bytes(planted.read_bytes())
    cached.chmod(0o622)
    assert compile_profile(profile, tmp_path) == program
