"""The two ends of the list and report formats agree: C's `wire.h` against Python's `wire.py` and `reports.py`."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.jail import reports, wire
from sandboxd.jail.steps import Chdir, Exec, InstallSeccomp, Mkdir, Mount, SetRlimit
from sandboxd.jail.wire import Op, Phase, PlannedStep, Slot
from sandboxd.spec import ARGS_MAX, FILES_MAX, PATH_MAX_BYTES, PATH_MAX_LEVELS

INIT = Path(__file__).resolve().parents[2] / "sandboxd" / "jail" / "init"
WIRE_H = (INIT / "wire.h").read_text()


def c_enum(name: str, prefix: str) -> dict[str, int]:
    body = re.search(rf"enum {name} {{(.*?)}};", WIRE_H, re.DOTALL)
    assert body is not None
    return {key: int(value) for key, value in re.findall(rf"{prefix}_(\w+) = (\d+),", body[1])}


@pytest.mark.parametrize(
    ("enum", "name", "prefix"),
    [(Op, "op", "OP"), (Phase, "phase", "PHASE"), (reports.ReportKind, "report_kind", "REPORT")],
)
def test_each_enum_is_the_same_on_both_sides(enum: type, name: str, prefix: str) -> None:
    assert {member.name: member.value for member in enum} == c_enum(name, prefix)  # type: ignore[attr-defined]


def test_each_slot_is_the_same_on_both_sides() -> None:
    in_c = c_enum("slot", "SLOT")
    assert in_c.pop("COUNT") == max(Slot) + 1
    assert {slot.name: slot.value for slot in Slot} == in_c


def test_the_records_have_the_sizes_that_c_gives_them(tmp_path: Path) -> None:
    source = tmp_path / "sizes.c"
    source.write_text(
        '#include <stdio.h>\n#include "wire.h"\n'
        'int main(void) { printf("%zu %zu %zu", sizeof(struct step), sizeof(struct list), sizeof(struct report)); }\n'
    )
    subprocess.run(["gcc", f"-I{INIT}", "-o", tmp_path / "sizes", source], check=True)
    sizes = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    assert sizes.split() == [str(size) for size in (wire.STEP.size, wire.HEADER.size, reports.SIZE_BYTES)]


def test_the_longest_job_that_the_bounds_allow_fits_into_a_list() -> None:
    steps_max = int(re.search(r"WIRE_STEPS_MAX (\d+)u", WIRE_H)[1])  # type: ignore[index]
    files, folders = 2 * FILES_MAX, 2 * FILES_MAX * (PATH_MAX_LEVELS - 1)
    # PATH is one variable: two bytes name a folder at the shortest.
    assert files + folders + 4096 // 2 + 100 <= steps_max
    assert PATH_MAX_BYTES < 4096
    assert ARGS_MAX > 0


class Decoded:
    """A list as init reads it."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.raw = b"".join(pieces)
        magic, version, size, count, argc, argv, envc, envp = wire.HEADER.unpack_from(self.raw)
        assert (magic, version, size) == (wire.MAGIC, wire.VERSION, len(self.raw))
        assert self.raw[-1] == 0
        self.steps = [
            wire.STEP.unpack_from(self.raw, wire.HEADER.size + number * wire.STEP.size) for number in range(count)
        ]
        self.argv, self.envp = self.vector(argv, argc), self.vector(envp, envc)

    def vector(self, at: int, count: int) -> list[bytes]:
        assert at % 8 == 0
        *offsets, end = struct.unpack_from(f"={count + 1}Q", self.raw, at)
        assert end == 0
        return [self.string(offset) for offset in offsets]

    def string(self, offset: int) -> bytes:
        assert offset < len(self.raw)
        return self.raw[offset : self.raw.index(b"\0", offset)]


def test_steps_arrive_with_their_arguments_and_strings() -> None:
    listed = [
        PlannedStep(Phase.BUILD, Mount("source", "target", None, 5, "data")),
        PlannedStep(Phase.BUILD, Mkdir("target", 0o755, 7, 8)),
        PlannedStep(Phase.PAYLOAD, SetRlimit("stack", 3, -1, -1)),
    ]
    decoded = Decoded(wire.encode(listed, ["a", ""], ["X=1"]))
    mount, mkdir, rlimit = decoded.steps
    assert mount[:4] == (Op.MOUNT, Phase.BUILD, 0, 0)
    assert mount[4] == 5
    assert [decoded.string(offset) if offset else None for offset in mount[8:12]] == [
        b"source",
        b"target",
        None,
        b"data",
    ]
    assert mkdir[4:7] == (0o755, 7, 8)
    assert mkdir[8] == mount[9], "a string is stored once"
    assert rlimit[5:7] == (2**64 - 1, 2**64 - 1)
    assert (decoded.argv, decoded.envp) == ([b"a", b""], [b"X=1"])


@given(st.lists(st.binary(min_size=8, max_size=300).filter(lambda data: len(data) % 8 == 0), max_size=8))
def test_data_arrives_byte_for_byte_and_aligned(programs: list[bytes]) -> None:
    listed = [
        *(PlannedStep(Phase.PAYLOAD, InstallSeccomp("x", program)) for program in programs),
        PlannedStep(Phase.EXEC, Exec("/bin/true")),
        PlannedStep(Phase.BUILD, Chdir("/")),
    ]
    decoded = Decoded(wire.encode(listed, ["true"]))
    for step, program in zip(decoded.steps, programs, strict=False):
        length, at = step[3], step[8]
        assert at % 8 == 0, "the kernel reads the program where it lies"
        assert decoded.raw[at : at + length] == program
