"""Limits at the edges and inside.

At the edges (HTTP, command line, TOML) times are float seconds and end in `_s`; inside they are integer nanoseconds
and end in `_ns`. Sizes are integer bytes and counts are integers on both sides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from sandboxd.errors import InputError
from sandboxd.spec import KIB, LIMIT_NAMES, MIB, NANOSECONDS, Limits

_TO_EDGE: dict[str, str] = {name: f"{name[:-3]}_s" if name.endswith("_ns") else name for name in LIMIT_NAMES}
_TO_INTERNAL: dict[str, str] = {edge: name for name, edge in _TO_EDGE.items()}
EDGE_NAMES: tuple[str, ...] = tuple(_TO_INTERNAL)
"""Names of the limits as a client writes them, in the order of `Limits`."""

# The largest value that `Limits` can hold, by kind; a policy's ceiling is far below.
_LARGEST = {"_ns": 86_400 * NANOSECONDS, "_bytes": 1 << 48}
_LARGEST_COUNT = 1 << 20

SMALLEST: dict[str, int] = {
    # Below a scheduler tick neither limit could be told from noise.
    "cpu_time_ns": NANOSECONDS // 100,
    "wall_time_ns": NANOSECONDS // 100,
    # Init's and the program's page tables, stacks and kernel objects alone take about 1 MiB.
    "memory_bytes": 4 * MIB,
    "processes": 1,
    "output_bytes": 0,
    "file_size_bytes": 0,
    # One inode per 4 KiB: the folders of the write layer and a few files. A tmpfs of size 0 would have no bound at all.
    "disk_bytes": 256 * KIB,
    # stdin, stdout, stderr, and what the dynamic loader opens.
    "open_files": 8,
    # The kernel grants a program 128 KiB of arguments however small its stack is.
    "stack_bytes": 128 * KIB,
}
"""The least value of each limit, by its internal name."""

_SUFFIXES = {"": 1, "K": KIB, "M": MIB, "G": KIB * MIB}
_SIZE = re.compile(r"(\d{1,18})(?:([KMG])(?:iB)?)?")


def edge_name(name: str) -> str:
    """`cpu_time_ns` -> `cpu_time_s`; other names are the same on both sides."""
    return _TO_EDGE[name]


def edge_value(name: str, value: int) -> float | int:
    """Value of the limit `name` (internal) in edge units."""
    return value / NANOSECONDS if name.endswith("_ns") else value


def describe(name: str, value: int) -> str:
    """The value as a person reads it: `2 s`, `64 MiB`, `32`."""
    if name.endswith("_ns"):
        return f"{round(value / NANOSECONDS, 3):g} s"
    if name.endswith("_bytes"):
        return describe_bytes(value)
    return str(value)


def describe_bytes(value: int) -> str:
    """The size in the largest binary unit that leaves no remainder below a tenth: `64 MiB`, `1.5 KiB`, `1 byte`."""
    for unit, size in (("GiB", KIB * MIB), ("MiB", MIB), ("KiB", KIB)):
        if value >= size:
            return f"{round(value / size, 1):.10g} {unit}"
    return f"{value} byte" if value == 1 else f"{value} bytes"


def to_edge(limits: Limits) -> dict[str, float | int]:
    """The limits by their edge names, in edge units."""
    return {edge_name(name): edge_value(name, getattr(limits, name)) for name in LIMIT_NAMES}


def from_edge(values: Mapping[str, object], field: str = "limits") -> dict[str, int]:
    """Limits in edge names and units -> internal names and units. Only what is there; ceilings are not looked at.

    A value that is too large for `Limits` becomes one that is just too large: every ceiling is below, and names itself.

    Raises:
        InputError: unknown name, or not a number, NaN, infinite, or below `SMALLEST`.
    """
    internal: dict[str, int] = {}
    for edge, value in values.items():
        name = _TO_INTERNAL.get(edge)
        if name is None:
            raise InputError(f"{field}.{edge[:64]}", f"unknown limit; known: {', '.join(EDGE_NAMES)}")
        internal[name] = _from_edge(name, value, f"{field}.{edge}")
    return internal


def _from_edge(name: str, value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(field, "must be a number" if name.endswith("_ns") else "must be an integer")
    # Compared before it is converted: 10**400 is no float, and NaN compares with nothing.
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(field, "must be a finite number")
    if isinstance(value, float) and not name.endswith("_ns"):
        raise InputError(field, "must be an integer")
    scale = NANOSECONDS if name.endswith("_ns") else 1
    number = round(min(max(value, -1), _largest(name) // scale + 1) * scale)
    check_smallest(name, number, field)
    return number


def check_smallest(name: str, number: int, field: str) -> None:
    """Raises InputError when the internal value is below what makes sense."""
    if number < SMALLEST[name]:
        raise InputError(
            field, f"must be at least {edge_value(name, SMALLEST[name]):.10g}{_readable(name, SMALLEST[name])}"
        )


def check_range(name: str, number: int, field: str) -> None:
    """Raises InputError when the internal value is outside of what any policy could allow."""
    check_smallest(name, number, field)
    if number > _largest(name):
        raise InputError(field, f"must be at most {edge_value(name, _largest(name)):.20g}")


def edge_bounds(name: str) -> tuple[float | int, float | int]:
    """The least and the largest value of a limit that any policy could allow, in edge units."""
    return edge_value(name, SMALLEST[name]), edge_value(name, _largest(name))


def _largest(name: str) -> int:
    return next((bound for unit, bound in _LARGEST.items() if name.endswith(unit)), _LARGEST_COUNT)


def _readable(name: str, value: int) -> str:
    """A readable size in brackets beside a big number of bytes."""
    return f" ({describe_bytes(value)})" if name.endswith("_bytes") and value >= KIB else ""


def at_most(name: str, value: int) -> str:
    """`must be at most 60` in edge units, sizes with a readable form: the text of every ceiling error."""
    edge = edge_value(name, value)
    number = f"{edge:.12g}" if isinstance(edge, float) else str(edge)
    return f"must be at most {number}{_readable(name, value)}"


def parse_assignments(assignments: Iterable[str], field: str = "limits") -> dict[str, int]:
    """`NAME=VALUE` texts of a command line -> internal limits; sizes may end in K, M or G (`memory_bytes=64M`).

    Raises:
        InputError: as `from_edge`, and for a text that is no assignment or a name given twice.
    """
    values: dict[str, object] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(field, f"{text[:64]!r} is not NAME=VALUE, as in memory_bytes=64M or cpu_time_s=2")
        if name in values:
            raise InputError(f"{field}.{name[:64]}", "given twice")
        values[name] = _number(name, value, f"{field}.{name[:64]}")
    return from_edge(values, field)


def _number(name: str, text: str, field: str) -> int | float:
    size = _SIZE.fullmatch(text)
    if size is not None and (size[2] is None or name.endswith("_bytes")):
        return int(size[1]) * _SUFFIXES[size[2] or ""]
    try:
        return float(text)
    except ValueError:
        nor_size = ", nor a size as in 64K, 64M or 2G" if name.endswith("_bytes") else ""
        raise InputError(field, f"{text[:64]!r} is not a number{nor_size}") from None
