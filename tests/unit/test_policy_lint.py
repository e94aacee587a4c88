"""`policy lint` finds what loads and still is a mistake; the shipped files have none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sandboxd.errors import PolicyError
from sandboxd.policy.lint import ARRIVAL, lint_folder, lint_profile, missing_for_arrival
from sandboxd.policy.load import policy_folder
from sandboxd.policy.profile import load_profile

ALLOW, ERRNO, KILL = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"
EQ, MASKED_EQ = "SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ"


def rule(names: str, action: str = ALLOW, **more: Any) -> dict[str, Any]:
    return {"names": names.split(), "action": action, "comment": f"why {names}", **more}


def argument(index: int, value: int, value_two: int = 0, op: str = MASKED_EQ) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": value_two, "op": op}


def write(folder: Path, *rules: dict[str, Any], **more: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps({"defaultAction": ERRNO, "defaultErrnoRet": 38, "syscalls": rules, **more}))
    return path


def findings(folder: Path, *rules: dict[str, Any]) -> list[str]:
    return [str(finding) for finding in lint_profile(load_profile(write(folder, *rules)))]


def test_the_shipped_policies_have_no_findings() -> None:
    assert lint_folder(policy_folder()) == ()


def test_an_unknown_syscall_is_found(tmp_path: Path) -> None:
    assert findings(tmp_path, rule("read raed")) == [
        "mine.json: syscalls[0].names: unknown syscall 'raed': the rule has no effect on it"
    ]


@pytest.mark.parametrize("name", ARRIVAL)
def test_a_filter_under_which_no_job_could_start_is_found(tmp_path: Path, name: str) -> None:
    profile = load_profile(write(tmp_path, rule(" ".join(other for other in ARRIVAL if other != name))))
    found = [str(finding) for finding in missing_for_arrival(profile)]
    assert found == [f"mine.json: syscalls: {name} is not allowed: no job would start"]


def test_a_call_of_another_architecture_is_known(tmp_path: Path) -> None:
    assert findings(tmp_path, rule("read socketcall mmap2 mseal")) == []


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([rule("read read")], "read is named twice"),
        ([rule("read"), rule("write read")], "read has the rule of syscalls[0] again"),
        ([rule("sync", ERRNO, errnoRet=0), rule("sync", ERRNO, errnoRet=0)], "sync has the rule of syscalls[0] again"),
        ([rule("ioctl"), rule("ioctl", args=[argument(1, 0xFFFFFFFF, 0x5401)])], "before by the rule 'why ioctl'"),
        (
            [
                rule("ioctl", ERRNO, args=[argument(1, 0xFFFFFFFF, 0x5412)]),
                rule("ioctl", ERRNO, args=[argument(1, 0xFFFFFFFF, 0x5412), argument(0, 0xFFFFFFFF, 0)]),
            ],
            "ioctl is answered before",
        ),
        ([rule("fcntl"), rule("fcntl", ERRNO, args=[argument(1, 1024, op=EQ)])], "comparing all 64 bits"),
    ],
)  # fmt: skip
def test_a_rule_without_effect_or_with_a_hole_is_found(
    tmp_path: Path, rules: list[dict[str, Any]], message: str
) -> None:
    found = findings(tmp_path, *rules)
    assert any(message in finding for finding in found), found


def test_a_denial_that_equals_the_default_by_accident_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, rule("ptrace", ERRNO), defaultErrnoRet=1)
    assert [finding.message for finding in lint_profile(load_profile(path))] == [
        "ptrace gets the default's answer: the rule has no effect"
    ]


REFUSED = [
    ({"syscalls": [{"names": ["read"], "action": ALLOW}]}, "mine.json: syscalls[0].comment"),
    ({"syscalls": [rule("read") | {"comment": "  "}]}, "mine.json: syscalls[0].comment"),
    ({"defaultAction": ALLOW}, "mine.json: defaultAction"),
    ({"defaultAction": "SCMP_ACT_LOG"}, "mine.json: defaultAction"),
    ({"defaultErrnoRet": 4096}, "mine.json: defaultErrnoRet"),
    ({"syscalls": [rule("read", "SCMP_ACT_TRACE")]}, "mine.json: syscalls[0].action"),
    ({"syscalls": [rule("read", "SCMP_ACT_KILL_THREAD")]}, "mine.json: syscalls[0].action"),
    ({"syscalls": [rule("read", ERRNO, errnoRet=4096)]}, "mine.json: syscalls[0].errnoRet"),
    ({"syscalls": [rule("read", ALLOW, errnoRet=1)]}, "mine.json: syscalls[0].errnoRet"),
    ({"syscalls": [rule("")]}, "mine.json: syscalls[0].names"),
    ({"syscalls": [rule("read", args=[argument(0, 5, op="SCMP_CMP_GE")])]}, "mine.json: syscalls[0].args[0].op"),
    ({"syscalls": [rule("read", args=[argument(0, 5, op="SCMP_CMP_NE")])]}, "mine.json: syscalls[0].args[0].op"),
    ({"syscalls": [rule("read", args=[argument(0, 1, op=EQ), argument(0, 2, op=EQ)])]}, "mine.json: syscalls[0].args"),
    ({"syscalls": [rule("read", args=[argument(6, 1, 1)])]}, "mine.json: syscalls[0].args[0].index"),
    ({"syscalls": [rule("read", args=[argument(0, 2**64, op=EQ)])]}, "mine.json: syscalls[0].args[0].value"),
    ({"syscalls": [rule("read", args=[argument(0, -1, op=EQ)])]}, "mine.json: syscalls[0].args[0].value"),
    ({"syscalls": [rule("read", args=[argument(0, 1, 2)])]}, "mine.json: syscalls[0].args[0].valueTwo"),
    ({"syscalls": [rule("read", args=[argument(0, 1, 2, op=EQ)])]}, "mine.json: syscalls[0].args[0].valueTwo"),
    ({"syscalls": [rule("sync", ERRNO, errnoRet=1), rule("sync", ERRNO, errnoRet=2)]}, "mine.json: syscalls[1].names"),
    ({"syscalls": [rule("read"), rule("read", KILL)]}, "mine.json: syscalls[1].names"),
    ({"syscalls": [rule("read", includes={"caps": ["CAP_SYS_ADMIN"]})]}, "mine.json: syscalls[0]"),
    ({"flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}, "mine.json"),
    ({"listenerPath": "/run/x"}, "mine.json"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "field"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_profile_that_means_something_else_than_it_says_is_refused(
    tmp_path: Path, more: dict[str, Any], field: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"defaultAction": ERRNO, "syscalls": [rule("read")]} | more))
    with pytest.raises(PolicyError) as caught:
        load_profile(path)
    assert caught.value.field == field


@pytest.mark.parametrize("content", ["", "{", "[]", '{"syscalls": []}', "\xff"])
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(PolicyError, match=r"mine\.json"):
        load_profile(path)


def test_an_oci_profile_with_its_usual_keys_drops_in(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        rule("read write"),
        architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    )
    assert load_profile(path).rules[0].names == ("read", "write")


def test_a_broken_file_and_an_unused_profile_are_findings(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(policy_folder(), tmp_path / "policies"))
    write(folder / "seccomp", rule("read"))
    (folder / "default.toml").write_text("nonsense")
    (folder / "languages" / "c.toml").write_text('title = "C"\n')
    found = [str(finding) for finding in lint_folder(folder)]
    assert any(text.startswith("default.toml: not valid TOML") for text in found)
    assert any(text.startswith("c.toml: ") for text in found)
    assert "mine.json: no policy uses it" in found
