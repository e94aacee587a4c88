"""`sandboxd explain`: the plan for a program, step by step, without running it. Needs neither root nor a launcher."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import msgspec

from sandboxd.catalogue import Catalogue, ImageInfo
from sandboxd.cli.failure import reported
from sandboxd.cli.request import COMMAND_SETTINGS, JobOptions, job_options, make_request
from sandboxd.instance import Instance
from sandboxd.jail import facts, plan
from sandboxd.jail.images import HOST
from sandboxd.jail.offer import NO_VERSION
from sandboxd.jail.plan import BuildInputs, HostFacts, Programs
from sandboxd.jail.rootfs import Image, write_layer_options
from sandboxd.jail.slots import first_id
from sandboxd.jail.wire import Phase, PlannedStep
from sandboxd.languages import load_languages, offered, plan_stages
from sandboxd.policy.load import load_policies, policy_folder, profile_path
from sandboxd.policy.model import Policy
from sandboxd.policy.profile import load_profile, policy_profile
from sandboxd.policy.seccomp import compile_profile, reporting
from sandboxd.policy.units import describe, edge_name
from sandboxd.spec import LIMIT_NAMES, StageSpec, Struct, input_sizes

_WHO = {
    Phase.OUTER: "outer, in the host's namespaces",
    Phase.BUILD: "PID 1, building the sandbox",
    Phase.PAYLOAD: "PID 2, the loss of all rights",
    Phase.HOLD: "PID 1, while it holds the sandbox",
    Phase.JOB: "PID 2, with the job in hand",
    Phase.EXEC: "PID 2, the command",
}


@click.command(context_settings=COMMAND_SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@job_options
@reported
def command(options: JobOptions, instance: str | None, as_json: bool) -> None:
    """Print what would be done to run FILE: every step, in order, by process. Nothing is run.

    \b
    Example:  sandboxd explain hello.c
    """
    folder = policy_folder()
    policies = load_policies(folder)
    host = facts.host_facts()
    catalogue = _catalogue(folder, policies, host)
    request = make_request(options, catalogue)
    run_dir = str(Instance.from_environment(instance).run_dir)
    stages = [
        _explained(stage, _inputs(folder, policies[stage.policy], host, run_dir))
        for stage in plan_stages(request, catalogue)
    ]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(stages)))
    else:
        click.echo("\n\n".join(stage.text() for stage in stages))


def _catalogue(folder: Path, policies: dict[str, Policy], host: HostFacts) -> Catalogue:
    """What a launcher would offer here; versions, which take a sandbox to ask, do not matter to a plan."""
    definitions = load_languages(folder).values()
    present = [item for item in definitions if all(Path(tool).exists() for tool in item.tools)]
    return Catalogue(
        languages=tuple(offered(item, NO_VERSION, HOST) for item in present),
        policies=tuple(item.info() for item in policies.values()),
        images=(ImageInfo(name=HOST, digest=""),),
        isolation=plan.isolation(policies["default"], host, frozenset()),
        cpus=host.cpus,
    )


def _inputs(folder: Path, policy: Policy, host: HostFacts, run_dir: str) -> BuildInputs:
    payload = compile_profile(policy_profile(profile_path(folder, policy.seccomp), policy.network))
    if policy.report_denied:
        payload = tuple(reporting(program) for program in payload)
    return BuildInputs(
        policy=policy,
        image=Image(name=HOST, digest="", base="base", usr="/usr"),
        host=host,
        programs=Programs(payload=payload, init=compile_profile(load_profile(profile_path(folder, "init")))),
        run_dir=run_dir,
        id_base=first_id(0),
    )


class _Part(Struct, frozen=True, kw_only=True):
    """What one process does at a time."""

    process: str
    steps: tuple[str, ...]


class _Explained(Struct, frozen=True, kw_only=True):
    """One stage's plan in words."""

    stage: str
    argv: tuple[str, ...]
    policy: str
    image: str
    env: dict[str, str]
    limits: dict[str, str]
    plan: tuple[_Part, ...]

    def text(self) -> str:
        lines = [f"Stage {self.stage}: {shlex.join(self.argv)}", f"  policy {self.policy}, image {self.image}"]
        lines += [f"  {name} = {value}" for name, value in self.limits.items()]
        for part in self.plan:
            lines += ["", f"{part.process}:"]
            lines += [f"  {number:>3}. {step}" for number, step in enumerate(part.steps, 1)]
        return "\n".join(lines)


def _explained(stage: StageSpec, inputs: BuildInputs) -> _Explained:
    limits = stage.limits
    job, build = plan.job_plan(stage, input_sizes(stage)), plan.build_plan(inputs)
    write_layer = ", ".join(f"{key}={value}" for key, value in write_layer_options(limits.disk_bytes).items())
    last_id = inputs.id_base + plan.IDS_PER_SLOT - 1
    parts = (
        _Part(
            process="launcher",
            steps=(
                f"claim a free slot (say the first: host ids {inputs.id_base} to {last_id})",
                f"make a cgroup leaf ({inputs.host.cgroup}) with the defaults of policy {stage.policy}",
                "make pipes for stdout and stderr",
                "ask the spawner for a first process, with the build list in a sealed memfd",
            ),
        ),
        _part(Phase.OUTER, build),
        _part(Phase.BUILD, build),
        _part(Phase.PAYLOAD, build),
        _part(Phase.HOLD, build),
        _Part(
            process="launcher",
            steps=(
                f"set the cgroup to {limits.memory_bytes} bytes, {limits.processes} processes beside PID 1",
                f"resize the write layer: {write_layer}",
                "send the job list, and files and stdin in one sealed memfd, to PID 2",
            ),
        ),
        _part(Phase.JOB, job),
        _part(Phase.EXEC, job),
    )
    return _Explained(
        stage=stage.name,
        argv=stage.argv,
        policy=stage.policy,
        image=stage.image,
        env=plan.environment(stage),
        limits={edge_name(name): describe(name, getattr(limits, name)) for name in LIMIT_NAMES},
        plan=tuple(part for part in parts if part.steps),
    )


def _part(phase: Phase, listed: tuple[PlannedStep, ...]) -> _Part:
    return _Part(process=_WHO[phase], steps=tuple(item.step.describe() for item in listed if item.phase is phase))
