"""How a list of steps crosses to init: fixed-size records and a table of strings, in a sealed memfd.

The C side is `init/wire.h`; `tests/unit/test_wire.py` holds the two against each other.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import ClassVar

import msgspec

MAGIC = 0x64786273
VERSION = 1
STEP = struct.Struct("=HBBI4Q4IQ")
HEADER = struct.Struct("=8I")


class Phase(enum.IntEnum):
    """Which process executes a step, and when (`enum phase`)."""

    OUTER = 0
    BUILD = 1
    JOB = 2
    PAYLOAD = 3
    HOLD = 4
    EXEC = 5
    ENTER = 6


class Slot(enum.IntEnum):
    """A descriptor known only at run time (`enum slot`)."""

    CONTROL = 0
    LEAF = 1
    BUILD = 2
    ATTACH = 3
    PROC = 7
    LANDLOCK = 8
    BOX = 9
    STDIN = 10
    STDOUT = 11
    STDERR = 12


class Op(enum.IntEnum):
    """What init can do (`enum op`)."""

    CLONE = 1
    ATTACH_CGROUP = 2
    SEND_PIDFD = 3
    WRITE_ID_MAP = 4
    NOTIFY = 5
    WAIT = 6
    PRCTL = 7
    SETSID = 8
    UMASK = 9
    UNSHARE = 10
    OPEN_PROC = 11
    ZERO_CLOCKS = 12
    MOUNT = 13
    MKDIR = 14
    SYMLINK = 15
    MKNOD = 16
    SEND_TREE = 17
    CHDIR = 18
    PIVOT_ROOT = 19
    LOOPBACK_UP = 20
    SETHOSTNAME = 21
    SETDOMAINNAME = 22
    JOIN_KEYRING = 23
    SETPRIORITY = 24
    OPEN_DIR = 25
    LANDLOCK_CREATE = 26
    LANDLOCK_ADD = 27
    LANDLOCK_RESTRICT = 28
    WRITE_AT = 29
    SETGROUPS = 30
    SETRESGID = 31
    SETRESUID = 32
    SETFSID = 33
    DROP_BOUNDING = 34
    CAPSET = 35
    RAISE_AMBIENT = 36
    SECCOMP = 37
    SETRLIMIT = 38
    STDIO = 39
    CLOSE_RANGE = 40
    MAKE_DIR_AT = 41
    WRITE_FILE_AT = 42
    EXEC = 43
    FAIL = 44
    SIGNALS = 45
    LEAK_ROOT = 46


class Record(msgspec.Struct, frozen=True):
    """A step as init reads it: numbers, and up to four strings."""

    args: tuple[int, ...] = ()
    strings: tuple[str | bytes | None, ...] = ()
    slot: int = 0
    data: bytes | None = None
    """Bytes of known length: the content of a file, a compiled program. Stored at the position that its op expects."""


class Step(msgspec.Struct, frozen=True):
    """One kernel action. Subclasses hold what it needs and say how it reads."""

    OP: ClassVar[Op]
    """What init does."""

    def record(self) -> Record:
        """Arguments in the order of `enum op`'s comments."""
        return Record()

    def subject(self) -> str:
        """What the step acts on, for messages; empty where the name says it all."""
        return ""

    @property
    def name(self) -> str:
        return type(self).__name__

    def describe(self) -> str:
        return f"{self.name} {self.subject()}".rstrip()


class PlannedStep(msgspec.Struct, frozen=True):
    """A step and the process that executes it."""

    phase: Phase
    step: Step


def encode(planned: Sequence[PlannedStep], argv: Iterable[str] = (), envp: Iterable[str] = ()) -> bytes:
    """The list as init maps it: header, records, string table, argv and envp; the last byte is 0."""
    table = bytearray()
    table_at = HEADER.size + STEP.size * len(planned)
    known: dict[bytes, int] = {}

    def place(value: str | bytes | None) -> int:
        if value is None:
            return 0
        raw = value if isinstance(value, bytes) else value.encode("utf-8")
        if raw not in known:
            known[raw] = table_at + len(table)
            table.extend(raw)
            table.append(0)
        return known[raw]

    records = bytearray()
    for item in planned:
        record = item.step.record()
        op = item.step.OP
        strings = list(record.strings)
        if record.data is not None:
            if len(table) % 8:
                table.extend(bytes(8 - len(table) % 8))
            strings.insert(0 if op is Op.SECCOMP else 1, record.data)
        offsets = [place(value) for value in strings] + [0] * (4 - len(strings))
        args = list(record.args) + [0] * (4 - len(record.args))
        records += STEP.pack(op, item.phase, record.slot, len(record.data or b""), *args, *offsets, 0)

    vectors: list[int] = []
    for vector in (argv, envp):
        offsets = [place(value) for value in vector]
        if len(table) % 8:
            table.extend(bytes(8 - len(table) % 8))
        vectors += [len(offsets), table_at + len(table)]
        table += struct.pack(f"={len(offsets) + 1}Q", *offsets, 0)
    table.append(0)
    header = HEADER.pack(MAGIC, VERSION, table_at + len(table), len(planned), *vectors)
    return header + bytes(records) + bytes(table)
