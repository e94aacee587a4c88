"""Every language that is offered works: its own self-test, through the stages that a job of it would have."""

from __future__ import annotations

import pytest
from jailrig import SCALE, LauncherUnderTest

from sandboxd.execution import run_job
from sandboxd.languages import load_languages
from sandboxd.policy.load import policy_folder
from sandboxd.policy.units import from_edge
from sandboxd.result import Verdict
from sandboxd.spec import InputFile, JobRequest

DEFINED = sorted(load_languages(policy_folder()))
COMPILED = [name for name, definition in load_languages(policy_folder()).items() if definition.compile is not None]


def request_for(launcher: LauncherUnderTest, name: str, source: str, stdin: str = "") -> JobRequest:
    language = launcher.catalogue().language(name)
    return JobRequest(
        language=name,
        files=(InputFile(path=language.source_name, content=source.encode()),),
        stdin=stdin.encode(),
        limits=from_edge({"wall_time_s": min(10 * SCALE, 120)}),
    )


@pytest.mark.parametrize("name", DEFINED)
def test_its_self_test_passes(launcher: LauncherUnderTest, name: str) -> None:
    test = launcher.catalogue().language(name).self_test
    with launcher.client() as client:
        ended = run_job(request_for(launcher, name, test.source, test.stdin), client.catalogue(), client)
    assert ended.judgement is not None
    assert ended.judgement.verdict is Verdict.OK, ended.judgement.reason
    assert ended.stages[-1].stdout.text().content == test.stdout


@pytest.mark.parametrize("name", DEFINED)
def test_its_version_is_the_one_that_the_tool_tells(launcher: LauncherUnderTest, name: str) -> None:
    definition = load_languages(policy_folder())[name]
    offered = launcher.catalogue().language(name)
    if definition.version is None:
        assert offered.version == "-"
    else:
        ran = launcher.run(definition.version.command)
        assert definition.version.find((ran.stdout + ran.stderr).decode()) == offered.version


@pytest.mark.parametrize("name", COMPILED)
def test_what_does_not_compile_is_a_compile_error_with_the_compilers_words(
    launcher: LauncherUnderTest, name: str
) -> None:
    with launcher.client() as client:
        ended = run_job(request_for(launcher, name, "this is no program"), client.catalogue(), client)
    assert ended.judgement is not None
    assert ended.judgement.verdict is Verdict.COMPILE_ERROR
    assert [stage.name for stage in ended.stages] == ["compile"]
    assert "error" in ended.stages[0].stderr.text().content


@pytest.mark.parametrize("name", ["c", "cpp"])
def test_a_compiler_cannot_include_what_is_not_the_jobs(launcher: LauncherUnderTest, name: str) -> None:
    with launcher.client() as client:
        source = '#include "/etc/shadow"\nint main() { return 0; }\n'
        ended = run_job(request_for(launcher, name, source), client.catalogue(), client)
    assert ended.judgement is not None
    assert ended.judgement.verdict is Verdict.COMPILE_ERROR
    assert "No such file" in ended.stages[0].stderr.text().content


def test_a_program_names_users_and_hosts_without_a_network(launcher: LauncherUnderTest) -> None:
    program = (
        "import getpass, socket; print(getpass.getuser(), socket.gethostname(), socket.gethostbyname('localhost'))"
    )
    assert launcher.python(program).text == "sandbox sandbox 127.0.0.1\n"
