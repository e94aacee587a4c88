"""A language is one TOML file; a job of it becomes complete stages; whatever is wrong with a job names its field."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandboxd.catalogue import Catalogue, ImageInfo, Language
from sandboxd.errors import InputError, PolicyError
from sandboxd.languages import LanguageDefinition, load_languages, offered, plan_stages, with_outputs
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.result import Isolation
from sandboxd.spec import MIB, NANOSECONDS, InputFile, JobRequest

SHIPPED = load_languages(policy_folder())
ISOLATION = Isolation(
    namespaces=("mnt",), cgroup="v2", seccomp=True, landlock_abi=2, selinux=None, rootless=False, without=()
)


def language(name: str, image: str = "host", **changes: Any) -> Language:
    return offered(msgspec.structs.replace(SHIPPED[name], **changes), "1.0", image)


def catalogue(*languages: Language) -> Catalogue:
    return Catalogue(
        languages=languages or tuple(language(name) for name in SHIPPED),
        policies=tuple(policy.info() for policy in load_policies(policy_folder()).values()),
        images=(ImageInfo(name="host", digest="host-stat:1"), ImageInfo(name="other", digest="sha256:2")),
        isolation=ISOLATION,
        cpus=3,
    )


CATALOGUE = catalogue()


def file(path: str, content: bytes = b"x", *, executable: bool = False) -> InputFile:
    return InputFile(path=path, content=content, executable=executable)


def test_c_cpp_python_bash_and_executable_are_shipped() -> None:
    assert set(SHIPPED) >= {"c", "cpp", "python", "bash", "executable"}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_language_looks_for_its_tools_in_usr_alone(name: str) -> None:
    definition = SHIPPED[name]
    commands = [stage.command for stage in (definition.compile, definition.run) if stage is not None]
    if definition.version is not None:
        commands.append(definition.version.command)
    for command in commands:
        assert command[0].startswith(("/usr/", "./"))
        assert not command[0].startswith("/usr/") or command[0] in definition.tools


@pytest.mark.parametrize("name", sorted(name for name in SHIPPED if SHIPPED[name].version is not None))
def test_the_version_is_found_in_what_the_tool_prints(name: str) -> None:
    version = SHIPPED[name].version
    assert version is not None
    printed = subprocess.run(version.command, capture_output=True, text=True, check=True)
    found = version.find(printed.stdout + printed.stderr)
    assert found is not None
    assert found[0].isdigit()
    assert version.find("nothing of the kind") is None


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_self_test_passes_outside_of_a_sandbox_too(name: str, tmp_path: Path) -> None:
    definition = SHIPPED[name]
    source = file(definition.source_name, definition.self_test.source.encode())
    stages = plan_stages(
        JobRequest(language=name, files=(source,), stdin=definition.self_test.stdin.encode()), CATALOGUE
    )
    for stage in stages:
        for given in stage.files:
            (tmp_path / given.path).write_bytes(given.content)
            (tmp_path / given.path).chmod(0o755 if given.executable else 0o644)
        result = subprocess.run(stage.argv, cwd=tmp_path, input=stage.stdin, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == definition.self_test.stdout


# --- planning


def test_a_compiled_language_has_two_stages() -> None:
    job = JobRequest(language="c", files=(file("main.c"), file("util.h")), args=("a", "b"), stdin=b"in", env={"A": "1"})
    compiling, running = plan_stages(job, CATALOGUE)
    assert (compiling.name, compiling.policy, compiling.image) == ("compile", "compile", "host")
    assert compiling.argv == ("/usr/bin/gcc", "-O2", "-std=gnu17", "-o", "program", "main.c", "-lm")
    assert (compiling.stdin, compiling.env, compiling.files, compiling.collect) == (b"", {}, job.files, ("program",))
    assert compiling.limits.cpu_time_ns == 15 * NANOSECONDS
    assert (running.name, running.policy, running.argv) == ("run", "default", ("./program", "a", "b"))
    assert (running.stdin, running.env, running.files, running.collect) == (b"in", {"A": "1"}, job.files, ())
    assert running.limits.cpu_time_ns == 5 * NANOSECONDS


def test_an_interpreted_language_has_one_stage() -> None:
    (running,) = plan_stages(JobRequest(language="python", files=(file("main.py"),), stdin=None), CATALOGUE)
    assert running.argv == ("/usr/bin/python3", "main.py")
    assert running.env == {"PYTHONDONTWRITEBYTECODE": "1"}
    assert running.stdin is None


def test_the_request_s_environment_wins_over_the_language_s() -> None:
    job = JobRequest(language="python", files=(file("m.py"),), env={"PYTHONDONTWRITEBYTECODE": "", "X": "1"})
    assert plan_stages(job, CATALOGUE)[0].env == {"PYTHONDONTWRITEBYTECODE": "", "X": "1"}


@pytest.mark.parametrize(
    ("paths", "main"),
    [
        (("main.py",), "main.py"),
        (("a.py", "main.py"), "main.py"),
        (("a.py", "b.py"), "a.py"),
        (("x/main.py", "b"), "x/main.py"),
    ],
)
def test_the_main_file_is_the_one_named_so_else_the_first(paths: tuple[str, ...], main: str) -> None:
    job = JobRequest(language="python", files=tuple(file(path) for path in paths))
    assert plan_stages(job, CATALOGUE)[0].argv[1] == main


@pytest.mark.parametrize(
    ("path", "told"),
    [("-fplugin=x.c", "./-fplugin=x.c"), ("@x.c", "./@x.c"), ("{output}.c", "./{output}.c"), ("x.c", "x.c")],
)
def test_a_file_s_name_is_neither_an_option_nor_a_placeholder(path: str, told: str) -> None:
    compiling, _ = plan_stages(JobRequest(language="c", files=(file(path),)), CATALOGUE)
    assert compiling.argv[-2] == told


def test_an_executable_is_run_itself_and_becomes_executable() -> None:
    job = JobRequest(language="executable", files=(file("data"), file("program")), args=("x",))
    (running,) = plan_stages(job, CATALOGUE)
    assert running.argv == ("./program", "x")
    assert [given.executable for given in running.files] == [False, True]


def test_placeholders_tell_the_memory_limit_and_the_cpus() -> None:
    run = msgspec.structs.replace(SHIPPED["python"].run, command=("/usr/bin/java", "-Xmx{memory_mib}m", "-n={cpus}"))
    (running,) = plan_stages(
        JobRequest(language="python", files=(file("a"),), limits={"memory_bytes": 100 * MIB}),
        catalogue(language("python", run=run)),
    )
    assert running.argv == ("/usr/bin/java", "-Xmx100m", "-n=3")


def test_a_language_s_limits_are_defaults_and_the_request_s_win() -> None:
    run = msgspec.structs.replace(SHIPPED["python"].run, limits={"processes": 50, "memory_bytes": 512 * MIB})
    offered_languages = catalogue(language("python", run=run))
    job = JobRequest(language="python", files=(file("a"),), limits={"processes": 5})
    (running,) = plan_stages(job, offered_languages)
    assert (running.limits.processes, running.limits.memory_bytes) == (5, 512 * MIB)


def test_a_command_is_one_stage() -> None:
    job = JobRequest(command=("./a.out", "x"), args=("y",), files=(file("a.out", executable=True),), policy="compile")
    (running,) = plan_stages(job, CATALOGUE)
    assert (running.name, running.policy, running.image, running.argv) == (
        "run",
        "compile",
        "host",
        ("./a.out", "x", "y"),
    )
    assert running.files == job.files


def test_a_command_runs_in_the_image_that_it_asks_for() -> None:
    assert plan_stages(JobRequest(command=("x",), image="other"), CATALOGUE)[0].image == "other"


PY = (file("main.py"),)
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "language", "exactly one"),
    ({"language": "python", "command": ("x",), "files": PY}, "language", "exactly one"),
    ({"language": "cobol", "files": PY}, "language", "offered: bash, c, cpp, executable, python"),
    ({"language": "python"}, "files", "needs a source"),
    ({"language": "python", "files": PY, "policy": "nope"}, "policy", "offered: base, compile, default"),
    ({"language": "python", "files": PY, "image": "nope"}, "image", "offered: host, other"),
    ({"language": "python", "files": PY, "image": "other"}, "image", "is offered in image 'host' alone"),
    ({"command": ("x",), "image": "nope"}, "image", "offered: host, other"),
    ({"command": ("x",), "policy": "nope"}, "policy", "unknown policy 'nope'"),
    ({"command": ()}, "command", "must name a program"),
    ({"command": ("x",), "compile_limits": {"processes": 2}}, "compile_limits", "no compile stage"),
    ({"language": "python", "files": PY, "compile_limits": {"processes": 2}}, "compile_limits", "no compile stage"),
    (
        {"language": "python", "files": PY, "limits": {"cpu_time_ns": 61 * NANOSECONDS}},
        "limits.cpu_time_s",
        "at most 60",
    ),
    (
        {"language": "c", "files": PY, "compile_limits": {"cpu_time_ns": 31 * NANOSECONDS}},
        "compile_limits.cpu_time_s",
        "at most 30",
    ),
    (
        {"command": ("x",), "limits": {"memory_bytes": 8 * MIB, "disk_bytes": 5 * MIB}},
        "limits.disk_bytes",
        "half of memory_bytes",
    ),
    ({"command": ("x",), "files": (file("../x"),)}, "files[0].path", "'..'"),
    ({"command": ("x",), "args": ("\0",)}, "args[0]", "NUL"),
    ({"command": ("x",), "env": {"A=": ""}}, "env.A=", "'='"),
    (
        {"command": ("x",), "files": (file("a", b"x" * (3 * MIB)),), "limits": {"memory_bytes": 4 * MIB}},
        "limits.disk_bytes",
        "to hold the files",
    ),
    (
        {"command": ("x",), "files": (file("a", b"xy"),), "limits": {"file_size_bytes": 1}},
        "files[0].content",
        "file_size_bytes",
    ),
]


@pytest.mark.parametrize(("job", "field", "message"), MISTAKES)
def test_a_mistake_in_a_job_names_its_field(job: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_stages(JobRequest(**job), CATALOGUE)
    assert caught.value.field == field
    assert message in caught.value.message


def test_what_a_compiler_leaves_wins_over_what_was_sent() -> None:
    sent = (file("main.c"), file("program", b"old"), file("obj/a"), file("lib"))
    _, running = plan_stages(JobRequest(language="c", files=sent), CATALOGUE)
    outputs = (file("program", b"new", executable=True), file("obj", b"o"), file("lib/x", b"l"))
    merged = with_outputs(running, outputs)
    assert merged.files == (file("main.c"), *outputs)
    assert msgspec.structs.replace(merged, files=()) == msgspec.structs.replace(running, files=())


# --- definitions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(policy_folder(), tmp_path / "policies"))


SMALL = """
title = "Mine"
source_name = "main.my"
tools = ["/usr/bin/my"]
[version]
command = ["/usr/bin/my", "--version"]
pattern = '(.*)'
[compile]
command = ["/usr/bin/my", "-o", "{output}", "{source}"]
collect = ["{output}"]
limits = { cpu_time_s = 1.5 }
[run]
command = ["./{output}"]
[self_test]
source = "x"
stdout = "x"
"""


def load(folder: Path, text: str, name: str = "mine") -> LanguageDefinition:
    (folder / "languages" / f"{name}.toml").write_text(text)
    return load_languages(folder)[name]


def test_a_language_is_added_by_one_file(folder: Path) -> None:
    definition = load(folder, SMALL)
    compile_stage = definition.compile
    assert compile_stage is not None
    assert compile_stage.limits == {"cpu_time_ns": 1_500_000_000}
    assert compile_stage.collect == ("program",)
    compiling, _ = plan_stages(
        JobRequest(language="mine", files=(file("main.my"),)), catalogue(offered(definition, "1", "host"))
    )
    assert compiling.argv == ("/usr/bin/my", "-o", "program", "main.my")
    assert compiling.limits.cpu_time_ns == 1_500_000_000


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('title = "Mine"', 'title = ""', "mine.toml: title"),
        ('title = "Mine"', "", "mine.toml"),
        ('title = "Mine"', 'title = "Mine"\nnonsense = 1', "mine.toml"),
        ('"main.my"', '"../main.my"', "mine.toml: source_name"),
        ('tools = ["/usr/bin/my"]', 'tools = ["/home/me/my"]', "mine.toml: tools[0]"),
        ('tools = ["/usr/bin/my"]', 'tools = ["/usr/../etc/my"]', "mine.toml: tools[0]"),
        ('tools = ["/usr/bin/my"]', 'warm = ["/var/x"]', "mine.toml: warm[0]"),
        ('tools = ["/usr/bin/my"]', 'etc = ["../shadow"]', "mine.toml: etc[0]"),
        ("'(.*)'", "'('", "mine.toml: version.pattern"),
        ("'(.*)'", "'.*'", "mine.toml: version.pattern"),
        ('"{source}"]', '"{sauce}"]', "mine.toml: compile.command[3]"),
        ('collect = ["{output}"]', "", "mine.toml: compile.collect"),
        ('collect = ["{output}"]', 'collect = ["/etc/*"]', "mine.toml: compile.collect[0]"),
        ("cpu_time_s = 1.5", "cpu_time_s = nan", "mine.toml: compile.limits.cpu_time_s"),
        ("cpu_time_s = 1.5", "cpu_time = 1.5", "mine.toml: compile.limits.cpu_time"),
        ('command = ["./{output}"]', "command = []", "mine.toml: run.command"),
        ('command = ["./{output}"]', 'command = ["./{output}"]\ncollect = ["x"]', "mine.toml: run.collect"),
        ('command = ["./{output}"]', 'command = ["./{output}"]\nenv = { "A=" = "" }', "mine.toml: run.env.A="),
    ],
)
def test_a_broken_language_names_its_file_and_key(folder: Path, old: str, new: str, field: str) -> None:
    assert old in SMALL
    with pytest.raises(PolicyError) as caught:
        load(folder, SMALL.replace(old, new, 1))
    assert caught.value.field == field


def test_a_language_s_name_is_a_plain_word(folder: Path) -> None:
    with pytest.raises(PolicyError, match=r"My Lang\.toml"):
        load(folder, SMALL, name="My Lang")
