"""Policies are TOML files; each extends `base`, may only tighten it, and says where each value came from."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from sandboxd.errors import PolicyError
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.units import EDGE_NAMES, to_edge
from sandboxd.spec import MIB, NANOSECONDS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped policies, to be broken."""
    return Path(shutil.copytree(policy_folder(), tmp_path / "policies"))


def write(folder: Path, text: str, name: str = "mine") -> None:
    (folder / f"{name}.toml").write_text(f'description = "mine"\nextends = "base"\n{text}')


def test_the_shipped_policies_are_base_default_and_compile() -> None:
    policies = load_policies(policy_folder())
    assert set(policies) >= {"base", "default", "compile"}
    compile_defaults = policies["compile"].defaults
    assert compile_defaults.cpu_time_ns == 15 * NANOSECONDS
    assert compile_defaults.memory_bytes == 512 * MIB
    assert compile_defaults.processes == 64
    assert policies["default"].output_kill_factor == 16
    assert policies["default"].network == "loopback"


def test_no_shipped_policy_is_wider_than_base() -> None:
    policies = load_policies(policy_folder())
    base = to_edge(policies["base"].ceilings)
    for policy in policies.values():
        for name, value in to_edge(policy.ceilings).items():
            assert value <= base[name]


def test_every_value_says_which_file_it_came_from(folder: Path) -> None:
    write(folder, "output_kill_factor = 1\n[ceilings]\ncpu_time_s = 30.0\n[defaults]\nprocesses = 7\n")
    provenance = load_policies(folder)["mine"].provenance
    limits = {f"{part}.{name}" for part in ("defaults", "ceilings") for name in EDGE_NAMES}
    assert set(provenance) == limits | {"image", "network", "seccomp", "output_kill_factor", "report_denied"}
    mine = {key for key, file in provenance.items() if file == "mine.toml"}
    assert mine == {"output_kill_factor", "ceilings.cpu_time_s", "defaults.processes"}
    assert set(provenance.values()) == {"mine.toml", "base.toml"}


def test_what_a_policy_does_not_say_is_what_base_says(folder: Path) -> None:
    write(folder, "[defaults]\nprocesses = 7\n")
    policies = load_policies(folder)
    assert policies["mine"].defaults == msgspec.structs.replace(policies["base"].defaults, processes=7)
    assert policies["mine"].ceilings == policies["base"].ceilings


WIDER = [
    ("[ceilings]\nmemory_bytes = 2147483648\n", "ceilings.memory_bytes", ("2 GiB", "1 GiB")),
    ("[ceilings]\ncpu_time_s = 60.001\n", "ceilings.cpu_time_s", ("60.001 s", "60 s")),
    ("[ceilings]\nprocesses = 257\n", "ceilings.processes", ("257", "256")),
    ("output_kill_factor = 17\n", "output_kill_factor", ("17", "16")),
]


@pytest.mark.parametrize(("text", "key", "told"), WIDER)
def test_a_policy_wider_than_base_is_refused_with_key_and_both_values(
    folder: Path, text: str, key: str, told: tuple[str, ...]
) -> None:
    write(folder, text)
    with pytest.raises(PolicyError) as caught:
        load_policies(folder)
    assert caught.value.field == f"mine.toml: {key}"
    assert all(value in caught.value.message for value in told)


def test_a_network_wider_than_that_of_base_is_refused(folder: Path) -> None:
    base = folder / "base.toml"
    base.write_text(base.read_text().replace('network = "loopback"', 'network = "none"'))
    write(folder, 'network = "loopback"\n')
    with pytest.raises(PolicyError, match=r"mine\.toml: network"):
        load_policies(folder)
    write(folder, 'network = "none"\n')
    assert load_policies(folder)["mine"].network == "none"


def tightened_profile(folder: Path, old: str, new: str) -> None:
    text = (folder / "seccomp" / "default.json").read_text()
    assert old in text
    (folder / "seccomp" / "mine.json").write_text(text.replace(old, new))


def test_a_seccomp_profile_that_allows_less_is_tighter(folder: Path) -> None:
    tightened_profile(folder, '"fork", "vfork",', "")
    write(folder, 'seccomp = "mine"\n')
    assert load_policies(folder)["mine"].seccomp == "mine"


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"fork", "vfork"', '"fork", "ptrace", "vfork"', "ptrace"),
        ('"index": 0, "value": 2114060288, "valueTwo": 0', '"index": 0, "value": 131072, "valueTwo": 0', "clone"),
        ('"value": 4294967295, "valueTwo": 21522', '"value": 4294967295, "valueTwo": 21521', "ioctl"),
    ],
)
def test_a_seccomp_profile_that_allows_more_than_that_of_base_is_refused(
    folder: Path, old: str, new: str, name: str
) -> None:
    tightened_profile(folder, old, new)
    write(folder, 'seccomp = "mine"\n')
    with pytest.raises(PolicyError) as caught:
        load_policies(folder)
    assert caught.value.field.startswith("mine.")
    assert name in caught.value.message


BROKEN = [
    ("unknown_key = 1\n", "mine.toml"),
    ("[defaults]\nmemory = 1\n", "mine.toml: defaults.memory"),
    ("[defaults]\ncpu_time_s = nan\n", "mine.toml: defaults.cpu_time_s"),
    ("[defaults]\ncpu_time_s = inf\n", "mine.toml: defaults.cpu_time_s"),
    ("[defaults]\nprocesses = true\n", "mine.toml: defaults.processes"),
    ("[defaults]\nmemory_bytes = 1\n", "mine.toml: defaults.memory_bytes"),
    ("[defaults]\ncpu_time_s = 61.0\n", "mine.toml: defaults.cpu_time_s"),
    ("[ceilings]\ncpu_time_s = 4.0\n", "mine.toml: defaults.cpu_time_s"),
    ("[defaults]\ndisk_bytes = 268435456\n", "mine.toml: defaults.disk_bytes"),
    ('network = "internet"\n', "mine.toml: network"),
    ("output_kill_factor = 0\n", "mine.toml: output_kill_factor"),
    ('output_kill_factor = "1"\n', "mine.toml: output_kill_factor"),
    ('seccomp = "nowhere"\n', "nowhere.json"),
    ("this is no TOML\n", "mine.toml"),
]


@pytest.mark.parametrize(("text", "field"), BROKEN)
def test_a_broken_policy_names_its_file_and_key(folder: Path, text: str, field: str) -> None:
    write(folder, text)
    with pytest.raises(PolicyError) as caught:
        load_policies(folder)
    assert caught.value.field == field


def test_a_policy_that_does_not_extend_base_is_refused(folder: Path) -> None:
    (folder / "mine.toml").write_text('description = "mine"\n')
    with pytest.raises(PolicyError, match=r"mine\.toml: extends"):
        load_policies(folder)


def test_a_policy_name_is_a_plain_word(folder: Path) -> None:
    write(folder, "", name="My Policy")
    with pytest.raises(PolicyError, match=r"My Policy\.toml"):
        load_policies(folder)


@pytest.mark.parametrize("line", ["network", "output_kill_factor", "image", "seccomp", "report_denied"])
def test_base_sets_every_key(folder: Path, line: str) -> None:
    base = folder / "base.toml"
    base.write_text("".join(kept for kept in base.read_text().splitlines(True) if not kept.startswith(f"{line} =")))
    with pytest.raises(PolicyError) as caught:
        load_policies(folder)
    assert caught.value.field == f"base.toml: {line}"


def test_a_folder_without_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"base\.toml"):
        load_policies(tmp_path)


def test_the_digest_changes_with_a_value_and_with_the_profile_and_with_nothing_else(folder: Path) -> None:
    write(folder, "[defaults]\nprocesses = 64\n")
    digest = load_policies(folder)["mine"].digest
    assert digest.startswith("sha256:")
    assert len(digest) == len("sha256:") + 64

    write(folder, "# a remark\n[defaults]\nprocesses = 64\nopen_files = 256\n")
    assert load_policies(folder)["mine"].digest == digest

    write(folder, "[defaults]\nprocesses = 63\n")
    assert load_policies(folder)["mine"].digest != digest

    write(folder, "[defaults]\nprocesses = 64\n")
    profile = folder / "seccomp" / "default.json"
    profile.write_text(profile.read_text().replace('"vfork", ', ""))
    assert load_policies(folder)["mine"].digest != digest


def test_the_folder_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SANDBOXD_POLICIES", str(tmp_path))
    with pytest.raises(PolicyError, match=r"base\.toml"):
        policy_folder()
    (tmp_path / "base.toml").touch()
    assert policy_folder() == tmp_path
