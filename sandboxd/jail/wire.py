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
VERSION = 3
STEP = struct.Struct("=HBBI4Q4IQ")
HEADER = struct.Struct("=8I")
_ALIGNMENT = 8


class Phase(enum.IntEnum):
    """Which process executes a step, and when (`enum phase`)."""

    OUTER = 0
    BUILD = 1
    PAYLOAD = 2
    HOLD = 3
    JOB = 4
    EXEC = 5


class Slot(enum.IntEnum):
    """A descriptor known only at run time (`enum slot`)."""

    CONTROL = 0
    LEAF = 1
    BUILD = 2
    ATTACH = 3
    PROC = 7
    LANDLOCK = 8
    INPUTS = 9
    STDIN = 10


class JobPart(enum.IntFlag):
    """What comes with a job, in this order (`enum job_part`); the message's one byte is their sum."""

    LIST = 1
    INPUTS = 2
    STDIN = 4


class Op(enum.IntEnum):
    """What init can do (`enum op`)."""

    CLONE = 1
    ATTACH_CGROUP = 2
    SETEUID = 3
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
    LANDLOCK_CREATE = 26
    LANDLOCK_ADD = 27
    LANDLOCK_RESTRICT = 28
    WRITE_AT = 29
    SETGROUPS = 30
    SETRESGID = 31
    SETRESUID = 32
    DROP_BOUNDING = 34
    CAPSET = 35
    RAISE_AMBIENT = 36
    SECCOMP = 37
    SETRLIMIT = 38
    STDIN = 39
    CLOSE_RANGE = 40
    COPY_FILE = 42
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
    """Bytes of known length, a compiled program: stands where the first string would."""


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


class _Table:
    """Strings, each once, and big data behind them, which is never copied."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._strings = bytearray()
        self._known: dict[bytes, int] = {}
        self.data: list[bytes] = []
        self._data_at: list[int] = []
        self._data_bytes = 0

    def string(self, value: str | bytes | None) -> int:
        """Offset of a string that ends in NUL; 0 for none."""
        if value is None:
            return 0
        raw = value if isinstance(value, bytes) else value.encode("utf-8")
        offset = self._known.get(raw)
        if offset is None:
            offset = self._known[raw] = self._start + len(self._strings)
            self._strings += raw
            self._strings.append(0)
        return offset

    def vector(self, values: Iterable[str]) -> tuple[int, int]:
        """Count and offset of an array of string offsets, ended by 0."""
        offsets = [self.string(value) for value in values]
        self._strings += bytes(-len(self._strings) % _ALIGNMENT)
        at = self._start + len(self._strings)
        self._strings += struct.pack(f"={len(offsets) + 1}Q", *offsets, 0)
        return len(offsets), at

    def add_data(self, content: bytes) -> int:
        """Takes content for behind the strings; returns its number."""
        self._data_at.append(self._data_bytes)
        padding = bytes(-len(content) % _ALIGNMENT)
        self.data += [content, padding] if padding else [content]
        self._data_bytes += len(content) + len(padding)
        return len(self._data_at) - 1

    def finish(self) -> bytes:
        """The strings, ended so that data is aligned."""
        self._strings += bytes(-len(self._strings) % _ALIGNMENT)
        return bytes(self._strings)

    def data_offset(self, number: int) -> int:
        """Precondition: finished."""
        return self._start + len(self._strings) + self._data_at[number]

    @property
    def end(self) -> int:
        return self._start + len(self._strings) + self._data_bytes


def encode(planned: Sequence[PlannedStep], argv: Iterable[str] = (), envp: Iterable[str] = ()) -> list[bytes]:
    """The list as init maps it, in pieces: header, records, strings, argv and envp, data; the last byte is 0.

    Contents of files are handed on as they are: a copy of a big one costs more than a sandbox's mounts.
    """
    table = _Table(HEADER.size + STEP.size * len(planned))
    records = [item.step.record() for item in planned]
    offsets = [[table.string(value) for value in record.strings] for record in records]
    numbers = [None if record.data is None else table.add_data(record.data) for record in records]
    vectors = (*table.vector(argv), *table.vector(envp))
    strings = table.finish()
    packed = bytearray()
    for item, record, placed, number in zip(planned, records, offsets, numbers, strict=True):
        if number is not None:
            placed.insert(0, table.data_offset(number))
        args = (*record.args, 0, 0, 0, 0)[:4]
        at = (*placed, 0, 0, 0, 0)[:4]
        packed += STEP.pack(item.step.OP, item.phase, record.slot, len(record.data or b""), *args, *at, 0)
    header = HEADER.pack(MAGIC, VERSION, table.end + 1, len(planned), *vectors)
    return [header + packed + strings, *table.data, b"\0"]
