"""The cases, read from `cases/*.toml`: one table there is one kind of attack, and makes one case for each of `each`."""

from __future__ import annotations

import enum
import platform
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sandboxd.errors import InputError
from sandboxd.jail.plan import LAYERS
from sandboxd.result import Verdict
from sandboxd.spec import Struct

FOLDER = Path(__file__).parent
CASES = FOLDER / "cases"
PROGRAMS = FOLDER / "programs"
ATTEMPTS = "attempts"
OWN = b"own"
"""What every file holds that a program leaves for the launcher to take out, unless it is a trap that worked."""
SUCCEEDED = "succeeded"
"""What a hostile program says last when its attack worked; anything else is why not."""


class Severity(enum.StrEnum):
    """How bad it is when a case's attack works, the worst first. After gVisor's published classes."""

    ESCAPE = "escape"
    """Code runs, or files change, outside of the sandbox."""
    HOST_LEAK = "host leak"
    """Something of the host's is read."""
    EXFILTRATION = "exfiltration"
    """Something leaves over a network."""
    LATERAL = "lateral"
    """Another job is read or changed."""
    HOST_DENIAL = "host denial"
    """The host runs out of something, or stays dirty."""
    PEER_DENIAL = "peer denial"
    """Another job suffers."""
    INTERNAL = "internal"
    """One wall falls; others still stand between the program and the host."""
    INTEGRITY = "integrity"
    """The verdict or a measurement is untrue."""


GRAVE = frozenset({Severity.ESCAPE, Severity.HOST_LEAK, Severity.EXFILTRATION})
"""What must not work even with any one wall taken away. Jobs that share a namespace, say, can meet in it."""


class Table(Struct, frozen=True, kw_only=True):
    """One table of a file, as written."""

    name: str
    severity: Severity
    source: str
    """Where the attack comes from: a CVE, a paper, a project's advisory, a man page."""
    program: str
    """A file of `programs/`."""
    files: tuple[str, ...] = ()
    """More files of `programs/` that lie beside it."""
    each: tuple[str, ...] = ("",)
    """The program's arguments, as in a shell; one case for each."""
    beside: str = ""
    """Arguments of the same program, run at the same time as another job: it says `ready` and waits for its stdin."""
    before: str = ""
    """Arguments of the same program, run as a job that has ended before, in the same slot where possible."""
    collect: tuple[str, ...] = ()
    """Patterns of files that the launcher takes out. The last word is then ours: `succeeded` where one holds anything
    but OWN, `nothing` where none came out, else `held`."""
    answers: tuple[str, ...] = ()
    """What the program may say last; empty: anything but `succeeded`."""
    at_least: int | None = None
    at_most: int | None = None
    """The word before the last is how many of something the program made: the flood must have been one, and ended."""
    verdicts: tuple[Verdict, ...] = (Verdict.OK,)
    exit_code_is_arg: int | None = None
    signal_is_arg: int | None = None
    """Which of the arguments is the exit code, or the number of the signal, that must be told."""
    signal: str | None = None
    cpu_time_s: tuple[float, float] | None = None
    wall_time_s: tuple[float, float] | None = None
    memory_peak_bytes: tuple[int, int] | None = None
    output_bytes: tuple[int, int] | None = None
    """Inclusive ranges of what is measured; of the output, that of the stream with more."""
    processes_peak_max: int | None = None
    limits: dict[str, int | float] = msgspec.field(default_factory=dict)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    control: tuple[str, ...] = ()
    """Layers without which the attack works."""
    control_args: str | None = None
    """Arguments (`{}` is the case's own) with which the program itself works: both halves in one sandbox, say."""
    unproven_answers: tuple[str, ...] = ()
    """What the control says where this kernel refuses everybody, or another wall does: nothing is shown then, and the
    audit says so."""
    uncontrolled: str = ""
    """Why there is no control."""
    depth: bool = True
    """Whether a grave case is tried with each wall taken away; not where the wall is what it asks for."""
    also_without: tuple[str, ...] = ()
    """Layers without which a case that is not grave is tried as well: another wall is meant to stop it there."""
    open_without: tuple[str, ...] = ()
    """Layers without which the attack works, as is told: with them alone taken away it is not defended."""
    machine: str = ""
    """`uname -m` where it means something at all."""
    no_network: bool = False
    """Under a policy whose network is `none`."""
    ours_alone: bool = False
    """It asks for what no other sandbox says of itself, and is not tried in one."""
    slow: bool = False
    """Not part of --quick."""


class Case(Struct, frozen=True, kw_only=True):
    """One attack."""

    id: str
    topic: str
    """The file it is from."""
    args: tuple[str, ...]
    table: Table

    @property
    def is_compiled(self) -> bool:
        """The program is static C, else Python."""
        return not self.table.program.endswith(".py")

    def alone(self) -> Case:
        """The case without what belongs beside and before it."""
        return msgspec.structs.replace(self, table=msgspec.structs.replace(self.table, beside="", before=""))

    def role(self, arguments: str) -> tuple[str, ...]:
        """The words of `beside`, `before` or `control_args`."""
        return tuple(shlex.split(arguments.replace("{}", shlex.join(self.args))))


def load(folder: Path = CASES) -> list[Case]:
    """Every case that means something on this machine. Raises InputError naming file and table."""
    cases = [case for path in sorted(folder.glob("*.toml")) for case in _read(path)]
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise InputError(case.topic, f"two cases are called {case.id!r}")
        seen.add(case.id)
    return [case for case in cases if case.table.machine in ("", platform.machine())]


def _read(path: Path) -> Iterator[Case]:
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["case"]
    for written in tables:
        table = _table(path.name, written)
        for arguments in table.each:
            yield Case(
                id=f"{table.name} {arguments}".strip(), topic=path.stem, args=tuple(shlex.split(arguments)), table=table
            )


def _table(file: str, written: dict[str, Any]) -> Table:
    where = f"{file}: {written.get('name')}"
    try:
        table = msgspec.convert(written, Table, strict=True)
    except msgspec.ValidationError as error:
        raise InputError(where, str(error)) from None
    for program in (table.program, *table.files):
        if not (PROGRAMS / program).exists():
            raise InputError(where, f"there is no program {program!r}")
    if unknown := {*table.control, *table.open_without, *table.also_without} - set(LAYERS):
        raise InputError(where, f"unknown layers: {', '.join(sorted(unknown))}")
    if sum((bool(table.control), table.control_args is not None, bool(table.uncontrolled))) != 1:
        raise InputError(where, "exactly one of control, control_args and uncontrolled must be given")
    if SUCCEEDED in (*table.answers, *table.unproven_answers):
        raise InputError(where, f"{SUCCEEDED!r} is no answer of an attack that fails")
    return table
