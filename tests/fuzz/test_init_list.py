"""Init's reading of its step lists, with the address and undefined behaviour sanitizers: each check of `map_list` and
`pointers` has inputs that it alone keeps out, and lists changed at random find no way past all of them.

libFuzzer looks for such ways by coverage; where there is no clang, a plain mutator still does. `make fuzz` goes on for
longer. What is found becomes one of `NEAR_MISSES`.
"""

from __future__ import annotations

import base64
import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from fuzzrig import SECONDS, TIMEOUT_S
from jailrig import SCALE

from sandboxd.cli import explain
from sandboxd.jail import plan, wire
from sandboxd.jail.facts import host_facts
from sandboxd.jail.steps import Exec, InstallSeccomp
from sandboxd.jail.wire import Phase, PlannedStep
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.merge import effective_limits
from sandboxd.spec import InputFile, StageSpec, input_sizes

MUTATIONS = 300_000
COVERAGE_S = 8
"""Of libFuzzer in a test run."""
INIT = Path(__file__).resolve().parents[2] / "sandboxd" / "jail" / "init"
STRICT = ["-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-D_GNU_SOURCE"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

MAGIC, VERSION, SIZE, STEPS, ARGC, ARGV, ENVC, ENVP = range(0, wire.HEADER.size, 4)
SLOT, LENGTH, STRINGS = wire.HEADER.size + 3, wire.HEADER.size + 4, wire.HEADER.size + 40
"""Of the first step."""
SMALL_STEPS = [PlannedStep(Phase.PAYLOAD, InstallSeccomp("x", bytes(16))), PlannedStep(Phase.EXEC, Exec("/a"))]
SMALL = b"".join(wire.encode(SMALL_STEPS, ["a"], ["A=1"]))
SMALL_ARGV = struct.unpack_from("=I", SMALL, ARGV)[0]
END = len(SMALL)


def edited(content: bytes, *changes: tuple[int, str, int]) -> bytes:
    changed = bytearray(content)
    for at, form, value in changes:
        struct.pack_into(f"={form}", changed, at, value)
    return bytes(changed)


def of_size(content: bytes, size: int) -> bytes:
    """Cut short or made longer, and its head says so."""
    content = content[:size].ljust(size, b"\0")
    return edited(content, (SIZE, "I", size)) if size >= SIZE + 4 else content


def with_steps(count: int, size: int) -> bytes:
    """Steps of zeros that end before argv's and envp's place, which is the list's end."""
    vectors = ((ARGC, "I", 0), (ARGV, "I", size - 8), (ENVC, "I", 0), (ENVP, "I", size - 8))
    return edited(of_size(SMALL[: wire.HEADER.size], size), (STEPS, "I", count), *vectors)


NEAR_MISSES = {
    "shorter-than-a-head": ("end < (off_t)sizeof(struct list)", of_size(SMALL, 7)),
    "longer-than-allowed": ("end > (off_t)WIRE_BYTES_MAX", of_size(SMALL, (64 << 20) + 1)),
    "magic": ("head->magic != WIRE_MAGIC", edited(SMALL, (MAGIC, "I", wire.MAGIC + 1))),
    "version": ("head->version != WIRE_VERSION", edited(SMALL, (VERSION, "I", wire.VERSION - 1))),
    "size-of-another-list": ("head->size != size", edited(SMALL, (SIZE, "I", END + 64))),
    "no-final-nul": (
        "base[size - 1] != 0",
        edited(SMALL, (STRINGS, "I", END - 1), (LENGTH, "I", 0), (END - 1, "B", 1)),
    ),
    "too-many-steps": ("head->steps > WIRE_STEPS_MAX", with_steps(16385, 16386 * wire.STEP.size)),
    "steps-beyond-the-end": ("steps_end > size", with_steps(3, wire.HEADER.size + 2 * wire.STEP.size + 8)),
    "slot": ("steps[i].slot >= SLOT_COUNT", edited(SMALL, (SLOT, "B", max(wire.Slot) + 1))),
    "slot-of-all-ones": ("steps[i].slot >= SLOT_COUNT", edited(SMALL, (SLOT, "B", 0xFF))),
    "string-at-the-end": ("steps[i].str[k] >= size", edited(SMALL, (STRINGS + 12, "I", END))),
    "string-far-away": ("steps[i].str[k] >= size", edited(SMALL, (STRINGS + 4, "I", 0xFFFFFFFF))),
    "data-beyond-the-end": (
        "steps[i].len && (uint64_t)steps[i].str[0] + steps[i].len > size",
        edited(SMALL, (STRINGS, "I", END - 4), (LENGTH, "I", 5)),
    ),
    "data-whose-end-wraps": (
        "steps[i].len && (uint64_t)steps[i].str[0] + steps[i].len > size",
        edited(SMALL, (LENGTH, "I", 0xFFFFFFFF)),
    ),
    "argv-between-words": ("vectors[v][0] % sizeof(uint64_t)", edited(SMALL, (ARGV, "I", SMALL_ARGV + 4))),
    "argv-in-the-steps": (  # what pointers() writes would stand where strings were checked
        "vectors[v][0] < steps_end",
        edited(SMALL, (ARGV, "I", STRINGS + 64), (STRINGS + 64, "Q", 0)),
    ),
    "argv-at-the-end": (
        "(uint64_t)vectors[v][0] + ((uint64_t)vectors[v][1] + 1) * sizeof(uint64_t) > size",
        edited(of_size(SMALL, (END + 7) // 8 * 8), (ARGV, "I", (END + 7) // 8 * 8), (ARGC, "I", 0)),
    ),
    "more-environment-than-there-is": (
        "(uint64_t)vectors[v][0] + ((uint64_t)vectors[v][1] + 1) * sizeof(uint64_t) > size",
        edited(SMALL, (ENVC, "I", 0xFFFFFFFF)),
    ),
    "argument-beyond-the-end": ("at[i] >= in->head->size", edited(SMALL, (SMALL_ARGV, "Q", END))),
    "argument-far-away": ("at[i] >= in->head->size", edited(SMALL, (SMALL_ARGV, "Q", 2**63))),
}  # fmt: skip
"""By name: the check of init.c that refuses the list, and the list."""


def compiled(output: Path, *command: str) -> Path:
    source = Path(__file__).with_name("init_list.c")
    subprocess.run([*command, *STRICT, *SANITIZERS, f"-I{INIT}", str(source), "-o", str(output)], check=True)
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("init_list")


@pytest.fixture(scope="module")
def reader(folder: Path) -> Path:
    return compiled(folder / "reader", "gcc")


@pytest.fixture(scope="module")
def lists(folder: Path) -> list[Path]:
    """The lists of a real sandbox: to build one, and to give it a job with files."""
    policy = load_policies(policy_folder())["default"]
    inputs = explain._inputs(policy_folder(), policy, host_facts(), "/run/sandboxd/x")
    stage = StageSpec(
        name="run", policy="default", image="host", argv=("./a", "b" * 100), env={"A": "1"},
        limits=effective_limits(policy, {}, {}),
        files=(InputFile(path="d/e.txt", content=b"content" * 50), InputFile(path="a", content=b"x", executable=True)),
    )  # fmt: skip
    (folder / "corpus").mkdir()
    written = []
    for name, pieces in (
        ("build", wire.encode(plan.build_plan(inputs))),
        ("job", wire.encode(plan.job_plan(stage, input_sizes(stage)), stage.argv, ("A=1",))),
    ):
        written.append(folder / "corpus" / name)
        written[-1].write_bytes(b"".join(pieces))
    return written


@pytest.fixture(scope="module")
def near_misses(folder: Path) -> dict[str, Path]:
    (folder / "near").mkdir()
    for name, (_, content) in NEAR_MISSES.items():
        (folder / "near" / name).write_bytes(content)
    return {name: folder / "near" / name for name in NEAR_MISSES}


def read(reader: Path, *lists: Path, rounds: int = 0, without_check: int = 0) -> subprocess.CompletedProcess[str]:
    """Reads each list, and then `rounds` that are made of them."""
    seed = str(int.from_bytes(os.urandom(8), "little"))
    return subprocess.run(
        [reader, str(rounds), seed, *lists], env={**ENVIRONMENT, "WITHOUT_CHECK": str(without_check)},
        capture_output=True, text=True, check=False, timeout=max(100, rounds / 1000) * SCALE,
    )  # fmt: skip


def test_true_lists_are_accepted_and_each_near_miss_is_refused(
    reader: Path, lists: list[Path], near_misses: dict[str, Path], folder: Path
) -> None:
    small = folder / "small"
    small.write_bytes(SMALL)
    done = read(reader, small, *lists, *near_misses.values())
    assert done.returncode == 0, done.stderr
    *answers, _ = map(int, done.stdout.split())
    assert answers[:3] == [0, 0, 0], "a true list is refused"
    assert dict(zip(near_misses, answers[3:], strict=True)) == dict.fromkeys(near_misses, errno.EINVAL)


def test_each_check_is_needed(near_misses: dict[str, Path], folder: Path) -> None:
    """Without it its near miss is accepted, or makes init read where nothing of the list is."""
    source = (INIT / "init.c").read_text()
    checks = list(dict.fromkeys(check for check, _ in NEAR_MISSES.values()))
    for number, check in enumerate(checks, 1):
        assert source.count(check) == 1, f"not a check of init.c: {check}"
        source = source.replace(check, f"(without_check != {number} && ({check}))")
    patched = folder / "patched"
    patched.mkdir()
    (patched / "init.c").write_text(source)
    reader = compiled(folder / "patched" / "reader", "gcc", f"-I{patched}")
    for name, (check, _) in NEAR_MISSES.items():
        done = read(reader, near_misses[name], without_check=checks.index(check) + 1)
        assert "Sanitizer" in done.stderr or "runtime error" in done.stderr or done.stdout.split()[0] == "0", (
            f"{name} is refused without `{check}` too"
        )


def test_no_change_of_a_list_makes_init_read_where_it_must_not(reader: Path, lists: list[Path]) -> None:
    done = read(reader, *lists, rounds=MUTATIONS)
    assert done.returncode == 0, f"{done.args}: {done.stderr[-3000:]}"
    assert MUTATIONS / 50 < int(done.stdout.split()[-1]) < MUTATIONS, "some are accepted, some refused"


@pytest.mark.timeout(TIMEOUT_S)
def test_coverage_leads_to_no_list_that_makes_init_read_where_it_must_not(
    lists: list[Path], near_misses: dict[str, Path], folder: Path
) -> None:
    if not shutil.which("clang"):
        pytest.skip("no libFuzzer: clang and libclang-rt-dev are not installed")
    fuzzer = compiled(folder / "fuzzer", "clang", "-fsanitize=fuzzer", "-DLIBFUZZER")
    found, evolved = folder / "found", folder / "evolved"
    evolved.mkdir()
    seconds = int(SECONDS or COVERAGE_S)
    done = subprocess.run(
        [fuzzer, evolved, lists[0].parent, near_misses["magic"].parent, "-max_len=65536", f"-max_total_time={seconds}",
         "-use_value_profile=1", "-print_final_stats=1", f"-exact_artifact_path={found}"],
        env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, check=False, timeout=seconds + 60 * SCALE,
    )  # fmt: skip
    content = base64.b64encode(found.read_bytes()).decode() if found.exists() else ""
    assert done.returncode == 0, f"{done.stderr[-4000:]}\nthe list, in base64: {content}"
    assert int(done.stderr.partition("stat::number_of_executed_units:")[2].split()[0]) > 1000 * seconds / SCALE
