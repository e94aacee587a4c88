"""What the documentation names exists: commands, options, make targets, files, environment variables."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from sandboxd.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md", "policies/*.md", "tests/vm/*.md")
    for path in ROOT.glob(pattern)
)
UNITS = sorted((ROOT / "deploy").glob("*.service"))
COMMANDS = set(main.list_commands(click.Context(main)))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_of(page: Path) -> str:
    """The indented, fenced and quoted parts of a page: what a reader types."""
    text = page.read_text()
    blocks = re.findall(r"^(?: {4,}|\t).*$", text, re.MULTILINE)
    blocks += re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"`[^`\n]+`", text)
    return "\n".join(blocks)


def command_lines(text: str) -> list[list[str]]:
    """Each use of the `sandboxd` command as words, up to the end of the command."""
    found = re.findall(r"(?:^|[\s`$(;|&/]|bin/)sandboxd ([a-z][^`\n|;&#)]*)", text)
    return [line.split() for line in found]


@pytest.mark.parametrize("page", [*PAGES, *UNITS], ids=name_of)
def test_each_command_and_option_exists(page: Path) -> None:
    text = code_of(page) if page in PAGES else "\n".join(re.findall(r"^ExecStart=.*", page.read_text(), re.MULTILINE))
    for words in command_lines(text):
        assert words[0] in COMMANDS, f"there is no command sandboxd {words[0]}"
        command = main.get_command(click.Context(main), words[0])
        assert command is not None
        rest = words[1:]
        if isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command = command.commands[rest[0]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        known |= set(command.get_help_option_names(click.Context(command)))
        for word in rest:
            option = word.partition("=")[0].rstrip(".,:'\"")
            if option.startswith("--") and len(option) > 2:
                assert option in known, f"sandboxd {words[0]} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_make_target_exists(page: Path) -> None:
    named = set(re.findall(r"(?:^|[\s`])make +([a-z][a-z-]*)", code_of(page)))
    assert named <= TARGETS, f"there is no make {named - TARGETS}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_file_that_is_named_exists(page: Path) -> None:
    tops = "sandboxd|workers|policies|tests|docs|deploy|demo|benchmarks|scripts|requirements"
    for named in re.findall(rf"`((?:{tops})/[\w./{{}},*-]*)`", page.read_text()):
        for path in expand(named):
            assert list(ROOT.glob(path.rstrip("/"))), f"{name_of(page)} names {path}"


def expand(pattern: str) -> list[str]:
    """`a/{b,c}.py` as two paths; `...` in the braces stands for more of them and is left out."""
    braces = re.search(r"\{([^}]*)\}", pattern)
    if braces is None:
        return [pattern]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [path for part in braces.group(1).split(",") if part != "..." for path in expand(before + part + after)]


def test_each_target_of_the_makefile_says_what_it_is_for() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    silent = [line for line in lines if re.match(r"[a-z-]+:", line) and "##" not in line]
    assert {line.partition(":")[0] for line in silent} == {"bootstrap", "test-install"}, (
        "internal targets alone are not listed"
    )


@pytest.mark.parametrize("page", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=name_of)
def test_each_setting_that_is_named_exists(page: Path) -> None:
    from sandboxd.config import Settings

    known = {f"SANDBOXD_{name.upper()}" for name in Settings.model_fields}
    known |= set(re.findall(r"SANDBOXD_[A-Z_]+", "".join(path.read_text() for path in source_files())))
    assert set(re.findall(r"SANDBOXD_[A-Z_]+", page.read_text())) <= known


def source_files() -> list[Path]:
    return [*ROOT.glob("sandboxd/**/*.py"), *ROOT.glob("tests/vm/*.sh"), *ROOT.glob("scripts/*.sh")]
