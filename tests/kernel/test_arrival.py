"""What a filter must allow so that a job can start under it: just that, and all of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from faultrig import FailingWorkshop, a_stage, in_loop, launch

from sandboxd.jail.admission import Admission
from sandboxd.policy.lint import ARRIVAL
from sandboxd.policy.load import policy_folder
from sandboxd.spec import InputFile

pytestmark = pytest.mark.root

ALL = "arrival"
STATUS = 7
PROGRAM = f"""
void _start(void) {{
#if defined(__x86_64__)
    __asm__ volatile("syscall" :: "a"(231), "D"({STATUS})); /* exit_group */
#else
    register long x8 __asm__("x8") = 94, x0 __asm__("x0") = {STATUS};
    __asm__ volatile("svc 0" :: "r"(x8), "r"(x0));
#endif
    __builtin_unreachable();
}}
"""
"""Makes one system call, so that all others are those of a job's arrival."""


def policy(syscall: str) -> str:
    return syscall.replace("_", "-")


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """The shipped ones, one that allows what an arrival needs, and one without each of that."""
    folder = tmp_path / "policies"
    shutil.copytree(policy_folder(), folder)
    shipped = json.loads((folder / "seccomp" / "default.json").read_text())
    for name in (ALL, *ARRIVAL):
        kept = [[each for each in rule["names"] if each in ARRIVAL and each != name] for rule in shipped["syscalls"]]
        rules = [{**rule, "names": names} for rule, names in zip(shipped["syscalls"], kept, strict=True) if names]
        profile = {**shipped, "syscalls": rules}
        (folder / "seccomp" / f"{name}.json").write_text(json.dumps(profile))
        (folder / f"{policy(name)}.toml").write_text(f'description = "a test"\nextends = "base"\nseccomp = "{name}"\n')
    return folder


def test_what_is_told_as_needed_is_enough_and_each_of_it_is_needed(workshop: FailingWorkshop, tmp_path: Path) -> None:
    (tmp_path / "program.c").write_text(PROGRAM)
    binary = tmp_path / "program"
    flags = ["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"]
    subprocess.run(["gcc", *flags, "-o", str(binary), str(tmp_path / "program.c")], check=True)
    stage = msgspec.structs.replace(
        a_stage(workshop),
        argv=("./program",),
        files=(
            InputFile(path="program", content=binary.read_bytes(), executable=True),
            InputFile(path="a/b/c", content=b"content"),
            InputFile(path="empty", content=b""),
        ),
        stdin=b"input",
    )

    async def run(admission: Admission) -> None:
        for name in (ALL, *ARRIVAL):
            facts = await launch(admission, msgspec.structs.replace(stage, policy=policy(name)))
            if name == ALL:
                assert facts.exit_code == STATUS, facts
            elif name == "exit_group":
                assert facts.signal is not None, "the program ran, and had no way to end"
            else:
                assert facts.failure is not None, f"without {name}: {facts}"
                assert facts.exit_code is None, f"without {name}: {facts}"

    in_loop(workshop, run)
