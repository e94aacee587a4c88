"""Languages: TOML in, values out, and what a job of a language runs. A new language is one file, and no code.

A definition says how sources are compiled and run and which tools of the image that takes; the launcher turns it into
an offered `catalogue.Language` once the tools were found and the version was asked inside a sandbox. `plan_stages`
turns a job into stages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from sandboxd.bounds import STAGE_FILES_MAX, check_args, check_argv, check_env, check_files, check_path
from sandboxd.catalogue import Catalogue, Language, SelfTest, Stage
from sandboxd.errors import InputError, PolicyError
from sandboxd.policy.load import read_toml
from sandboxd.policy.merge import effective_limits, from_edge
from sandboxd.policy.units import describe_bytes
from sandboxd.spec import MIB, InputFile, JobRequest, Limits, StageSpec, Struct

OUTPUT_NAME = "program"
"""What `{output}` stands for: the file that a compile stage makes and the run stage gets."""
COMPILE_POLICY = "compile"
PLACEHOLDERS = ("source", "output", "memory_mib", "cpus")
# What a file takes of the write layer beside its content: whole pages, its inode and its directory entry.
_PAGE_BYTES = 4096
_NAME = re.compile(r"[a-z][a-z0-9+#-]{0,31}")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class Version(Struct, frozen=True, kw_only=True):
    """How the version is asked: `command` runs in a sandbox, the first group of `pattern` in its output is it."""

    command: tuple[str, ...]
    pattern: str

    def find(self, output: str) -> str | None:
        """The version in what `command` printed (stdout and stderr); None when there is none."""
        found = re.search(self.pattern, output, re.MULTILINE)
        return found[1] if found else None


class LanguageDefinition(Struct, frozen=True, kw_only=True):
    """One file of `policies/languages/`, checked. Limits are internal names and units."""

    name: str
    title: str
    source_name: str
    tools: tuple[str, ...] = ()
    """Absolute paths below /usr that must exist in the image, or the language is not offered."""
    version: Version | None = None
    """None: the language has no tool of its own to ask; it is then offered as version `-`."""
    compile: Stage | None = None
    run: Stage
    etc: tuple[str, ...] = ()
    """Names below the image's /etc that the language's tools need."""
    warm: tuple[str, ...] = ()
    """Globs of files that the launcher reads into the page cache at start, so that no job is charged for them."""
    self_test: SelfTest


class _StageFile(Struct, frozen=True, kw_only=True):
    command: tuple[str, ...]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    limits: dict[str, float | int] = msgspec.field(default_factory=dict)
    collect: tuple[str, ...] = ()


class _LanguageFile(Struct, frozen=True, kw_only=True):
    title: str
    source_name: str
    tools: tuple[str, ...] = ()
    version: Version | None = None
    compile: _StageFile | None = None
    run: _StageFile
    etc: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    self_test: SelfTest


def load_languages(folder: Path) -> dict[str, LanguageDefinition]:
    """The definitions in `folder`/languages, `folder` being the policies' folder, by name.

    Raises:
        PolicyError: `FILE: KEY` and what is wrong with it.
    """
    definitions = {}
    for path in sorted((folder / "languages").glob("*.toml")):
        definitions[path.stem] = _definition(path)
    return definitions


def _definition(path: Path) -> LanguageDefinition:
    file = read_toml(path, _LanguageFile)
    try:
        if not _NAME.fullmatch(path.stem):
            raise InputError("", "a language's name is 1 to 32 of a-z, 0-9, '+', '#' and '-', and starts with a letter")
        if not file.title.strip():
            raise InputError("title", "must not be empty")
        check_path(file.source_name, "source_name")
        for key in ("tools", "warm"):
            for number, value in enumerate(getattr(file, key)):
                if not value.startswith("/usr/") or ".." in value.split("/"):
                    raise InputError(
                        f"{key}[{number}]", "must be an absolute path below /usr: languages are looked up there alone"
                    )
        for number, value in enumerate(file.etc):
            check_path(value, f"etc[{number}]")
        if file.version is not None:
            check_argv(file.version.command, "version.command")
            _check_pattern(file.version.pattern)
        compile_stage = None if file.compile is None else _stage("compile", file.compile)
        if compile_stage is not None and not compile_stage.collect:
            raise InputError("compile.collect", "must name what the compile stage leaves for the run stage")
        run = _stage("run", file.run)
        if run.collect:
            raise InputError("run.collect", "only a compile stage leaves files for another")
    except InputError as error:
        raise PolicyError(f"{path.name}: {error.field}" if error.field else path.name, error.message) from error
    return LanguageDefinition(
        name=path.stem,
        title=file.title,
        source_name=file.source_name,
        tools=file.tools,
        version=file.version,
        compile=compile_stage,
        run=run,
        etc=file.etc,
        warm=file.warm,
        self_test=file.self_test,
    )


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise InputError("version.pattern", f"no regular expression: {error}") from error
    if groups < 1:
        raise InputError("version.pattern", "must have a group around the version")


def _stage(key: str, file: _StageFile) -> Stage:
    check_argv(file.command, f"{key}.command")
    check_env(file.env, f"{key}.env")
    for number, part in enumerate(file.command):
        for name in _PLACEHOLDER.findall(part):
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                raise InputError(f"{key}.command[{number}]", f"unknown placeholder {{{name}}}; known: {known}")
    for number, pattern in enumerate(file.collect):
        check_path(pattern, f"{key}.collect[{number}]")
    collect = tuple(pattern.replace("{output}", OUTPUT_NAME) for pattern in file.collect)
    return Stage(command=file.command, env=file.env, limits=from_edge(file.limits, f"{key}.limits"), collect=collect)


def offered(definition: LanguageDefinition, version: str, image: str) -> Language:
    """The language as clients see it, once its tools were found in `image` and gave `version`."""
    return Language(
        name=definition.name,
        title=definition.title,
        version=version,
        image=image,
        source_name=definition.source_name,
        compile=definition.compile,
        run=definition.run,
        self_test=definition.self_test,
    )


def plan_stages(job: JobRequest, catalogue: Catalogue) -> tuple[StageSpec, ...]:
    """The stages of a job, complete: the compile stage where the language has one, then the run stage.

    The run stage's files are the job's; what the compile stage leaves is added with `with_outputs` when it has ended.
    A stage's `env` is the language's and over it the request's; the launcher puts the usual variables (`PATH`, `HOME`
    ...) below.

    Raises:
        InputError: whatever is wrong with the request, by the field that a client wrote.
    """
    if (job.language is None) == (job.command is None):
        raise InputError("language", "exactly one of language and command must be given")
    check_files(job.files)
    check_args(job.args)
    check_env(job.env)
    if job.command is not None:
        return _plan_command(job, job.command, catalogue)
    assert job.language is not None  # noqa: S101 - for the type checker: one of the two is there
    return _plan_language(job, catalogue.language(job.language), catalogue)


def _plan_command(job: JobRequest, command: tuple[str, ...], catalogue: Catalogue) -> tuple[StageSpec, ...]:
    check_argv(command)
    if job.compile_limits:
        raise InputError("compile_limits", "a command has no compile stage")
    policy = catalogue.policy(job.policy)
    image = catalogue.image(policy.image if job.image is None else job.image).name
    limits = effective_limits(policy, {}, job.limits)
    _check_fit(job.files, limits, "limits")
    return (
        StageSpec(
            name="run",
            policy=policy.name,
            image=image,
            argv=command + job.args,
            env=job.env,
            limits=limits,
            files=job.files,
            stdin=job.stdin,
        ),
    )


def _plan_language(job: JobRequest, language: Language, catalogue: Catalogue) -> tuple[StageSpec, ...]:
    policy = catalogue.policy(job.policy)
    if job.image is not None and catalogue.image(job.image).name != language.image:
        raise InputError("image", f"language {language.name!r} is offered in image {language.image!r} alone")
    if not job.files:
        raise InputError(
            "files", f"language {language.name!r} needs a source: its main file is {language.source_name!r}"
        )
    main = main_file(job.files, language.source_name)
    stages: list[StageSpec] = []
    if language.compile is not None:
        stages.append(_compile_stage(job, language, language.compile, main, catalogue))
    elif job.compile_limits:
        raise InputError("compile_limits", f"language {language.name!r} has no compile stage")
    limits = effective_limits(policy, language.run.limits, job.limits)
    argv = _expand(language.run.command, main.path, limits, catalogue.cpus)
    files = job.files
    # A language that runs the file itself: a client need not say that it is executable.
    if argv[0].removeprefix("./") == main.path.removeprefix("./"):
        files = tuple(msgspec.structs.replace(file, executable=True) if file is main else file for file in files)
    _check_fit(files, limits, "limits")
    stages.append(
        StageSpec(
            name="run",
            policy=policy.name,
            image=language.image,
            argv=argv + job.args,
            env={**language.run.env, **job.env},
            limits=limits,
            files=files,
            stdin=job.stdin,
        )
    )
    return tuple(stages)


def _compile_stage(
    job: JobRequest, language: Language, stage: Stage, main: InputFile, catalogue: Catalogue
) -> StageSpec:
    policy = catalogue.policy(COMPILE_POLICY)
    limits = effective_limits(policy, stage.limits, job.compile_limits, field="compile_limits")
    _check_fit(job.files, limits, "compile_limits")
    return StageSpec(
        name="compile",
        policy=policy.name,
        image=language.image,
        argv=_expand(stage.command, main.path, limits, catalogue.cpus),
        env=stage.env,
        limits=limits,
        files=job.files,
        stdin=b"",
        collect=stage.collect,
    )


def main_file(files: Sequence[InputFile], source_name: str) -> InputFile:
    """The file named `source_name`, else the first. `files` is not empty."""
    return next((file for file in files if file.path == source_name), files[0])


def with_outputs(stage: StageSpec, outputs: Sequence[InputFile]) -> StageSpec:
    """The run stage with what the compile stage left. An output wins over an input of the same path, or above or
    below it.

    Raises:
        InputError: more files than a stage may have.
    """
    kept = [file for file in stage.files if not any(_collide(file.path, output.path) for output in outputs)]
    files = (*kept, *outputs)
    check_files(files, maximum=STAGE_FILES_MAX)
    return msgspec.structs.replace(stage, files=files)


def _collide(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _expand(command: tuple[str, ...], source: str, limits: Limits, cpus: int) -> tuple[str, ...]:
    """The command with its placeholders replaced, once: what a file's name contains is not looked at again."""
    values: Mapping[str, str] = {
        # A name like -fplugin=x.c would be read as an option, and one like @x as a file of options.
        "source": source if source[0].isalnum() else f"./{source}",
        "output": OUTPUT_NAME,
        "memory_mib": str(limits.memory_bytes // MIB),
        "cpus": str(cpus),
    }
    return tuple(_PLACEHOLDER.sub(lambda found: values[found[1]], part) for part in command)


def _check_fit(files: Sequence[InputFile], limits: Limits, field: str) -> None:
    """The job's files are copied into the write layer before the program starts; it must be able to hold them."""
    folders = {file.path[:end] for file in files for end in range(len(file.path)) if file.path[end] == "/"}
    need = sum(_PAGE_BYTES * -(-len(file.content) // _PAGE_BYTES) for file in files)
    inodes = len(files) + len(folders)
    if need > limits.disk_bytes or inodes * _PAGE_BYTES > limits.disk_bytes:
        need = max(need, inodes * _PAGE_BYTES)
        raise InputError(
            f"{field}.disk_bytes",
            f"must be at least {need} ({describe_bytes(need)}) to hold the files, not {limits.disk_bytes}",
        )
    too_big = next((number for number, file in enumerate(files) if len(file.content) > limits.file_size_bytes), None)
    if too_big is not None:
        size = len(files[too_big].content)
        raise InputError(
            f"files[{too_big}].content",
            f"is {size} bytes long, above the limit file_size_bytes of {limits.file_size_bytes}",
        )
