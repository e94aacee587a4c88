"""The order of a plan is the wall. Pure: no root, no kernel."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from sandboxd.jail import abi, plan, wire
from sandboxd.jail import steps as st
from sandboxd.jail.plan import LAYERS, BuildInputs, HostFacts, Layer, Programs
from sandboxd.jail.rootfs import Image
from sandboxd.jail.wire import Phase, PlannedStep, Step
from sandboxd.policy.load import load_policies, policy_folder
from sandboxd.policy.model import Policy
from sandboxd.spec import InputFile, StageSpec, input_sizes

POLICIES = load_policies(policy_folder())
BASE = 0x70000000


def inputs(
    without: frozenset[Layer] = frozenset(), *, landlock_abi: int = 7, hybrid: bool = True, **changes: object
) -> BuildInputs:
    policy: Policy = msgspec.structs.replace(POLICIES["default"], **changes)
    return BuildInputs(
        policy=policy,
        image=Image(name="host", digest="", base="base", usr="/usr"),
        host=HostFacts(
            cgroup="hybrid" if hybrid else "v2",
            v1_controllers=("memory", "pids") if hybrid else (),
            landlock_abi=landlock_abi,
            last_capability=40,
            cpus=2,
        ),
        programs=Programs(payload=(b"12345678",), init=(b"87654321",)),
        run_dir="/run/sandboxd/x",
        id_base=BASE,
        without=without,
    )


def stage(**changes: object) -> StageSpec:
    spec = StageSpec(
        name="run", policy="default", image="host", argv=("true",), env={}, limits=POLICIES["default"].defaults
    )
    return msgspec.structs.replace(spec, **changes)


def job_plan(spec: StageSpec) -> tuple[PlannedStep, ...]:
    return plan.job_plan(spec, input_sizes(spec))


def of(phase: Phase, listed: tuple[PlannedStep, ...]) -> list[Step]:
    return [item.step for item in listed if item.phase is phase]


def first(listed: list[Step], kind: type[Step], where: Callable[[Step], bool] = lambda step: True) -> int:
    return next(index for index, step in enumerate(listed) if isinstance(step, kind) and where(step))


def last(listed: list[Step], kind: type[Step]) -> int:
    return max(index for index, step in enumerate(listed) if isinstance(step, kind))


def test_every_mount_and_node_comes_before_the_user_namespace() -> None:
    build = of(Phase.BUILD, plan.build_plan(inputs()))
    user = first(build, st.Unshare, lambda step: step.flags == abi.CLONE_NEWUSER)  # type: ignore[attr-defined]
    for kind in (st.Mount, st.MakeNode, st.PivotRoot, st.SendTree, st.LoopbackUp, st.SetHostname):
        assert last(build, kind) < user, kind.__name__


def test_namespaces_cannot_be_made_inside_before_anything_of_a_job_is_known() -> None:
    build = of(Phase.BUILD, plan.build_plan(inputs()))
    closed = {step.path for step in build if isinstance(step, st.WriteProc) and step.value == "0"}
    assert closed >= {
        f"sys/user/max_{name}_namespaces" for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
    }


def test_the_payload_loses_rights_in_this_order() -> None:
    payload = of(Phase.PAYLOAD, plan.build_plan(inputs()))
    order = [
        first(payload, st.SetGroups),
        first(payload, st.SetResgid),
        first(payload, st.SetResuid),
        first(payload, st.SetCapabilities),
        first(payload, st.Prctl, lambda step: step.option == abi.PR_SET_NO_NEW_PRIVS),  # type: ignore[attr-defined]
        first(payload, st.LandlockRestrict),
        first(payload, st.CloseRange),
        first(payload, st.InstallSeccomp),
    ]
    assert order == sorted(order)
    assert order[-1] == len(payload) - 1, "the filter comes last"


def test_pid_1_gives_up_its_rights_too() -> None:
    hold = of(Phase.HOLD, plan.build_plan(inputs()))
    uid = hold[first(hold, st.SetResuid)]
    assert isinstance(uid, st.SetResuid)
    assert uid.uid not in (0, plan.PAYLOAD_ID)
    assert first(hold, st.SetCapabilities) < last(hold, st.InstallSeccomp) == len(hold) - 1


def test_every_mount_is_nosuid_and_only_dev_has_devices() -> None:
    for step in of(Phase.BUILD, plan.build_plan(inputs())):
        if isinstance(step, st.Mount) and step.flags & (abi.MS_PRIVATE | abi.MS_BIND) == 0:
            assert step.flags & abi.MS_NOSUID, step.describe()
            assert bool(step.flags & abi.MS_NODEV) == (step.target != "stage/root/dev"), step.describe()


def test_nothing_of_the_host_is_bind_mounted() -> None:
    binds = [
        step
        for step in of(Phase.BUILD, plan.build_plan(inputs()))
        if isinstance(step, st.Mount) and step.flags & abi.MS_BIND
    ]
    for step in binds:
        assert not step.source.startswith("/"), step.describe()


def test_mount_options_hold_no_path_of_the_instance() -> None:
    for step in of(Phase.BUILD, plan.build_plan(inputs())):
        if isinstance(step, st.Mount):
            assert "/run/" not in f"{step.source} {step.data}", step.describe()


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6, 7])
def test_landlock_handles_what_its_version_knows_and_no_more(version: int) -> None:
    build = of(Phase.BUILD, plan.build_plan(inputs(landlock_abi=version, network="none")))
    made = build[first(build, st.LandlockCreate)]
    assert isinstance(made, st.LandlockCreate)
    bits = {2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16}[version]
    assert made.handled_fs == (1 << bits) - 1
    assert (made.handled_net, made.scoped) == (0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    rights = [step.allowed for step in build if isinstance(step, st.LandlockAdd)]
    assert all(allowed & ~made.handled_fs == 0 for allowed in rights)


def test_landlock_leaves_loopback_to_a_policy_that_has_it() -> None:
    build = of(Phase.BUILD, plan.build_plan(inputs()))
    made = build[first(build, st.LandlockCreate)]
    assert isinstance(made, st.LandlockCreate)
    assert made.handled_net == 0
    assert any(isinstance(step, st.LoopbackUp) for step in build)
    assert not any(isinstance(step, st.LoopbackUp) for step in of(Phase.BUILD, plan.build_plan(inputs(network="none"))))


def test_pure_v2_needs_no_attaching() -> None:
    assert not any(isinstance(item.step, st.AttachCgroup) for item in plan.build_plan(inputs(hybrid=False)))


GONE: dict[Layer, tuple[type[Step], ...]] = {
    "seccomp": (),
    "landlock": (st.LandlockCreate, st.LandlockAdd, st.LandlockRestrict),
    "userns": (st.WriteIdMap, st.SetEuid),
    "caps": (st.DropBounding,),
    "uid": (),
    "netns": (st.LoopbackUp,),
    "mount": (),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_control_run_changes_what_it_names_and_says_so(layer: Layer) -> None:
    whole, weak = plan.build_plan(inputs()), plan.build_plan(inputs(frozenset({layer})))
    assert whole != weak
    for kind in GONE[layer]:
        assert any(isinstance(item.step, kind) for item in whole)
        assert not any(isinstance(item.step, kind) for item in weak)
    told = plan.isolation(POLICIES["default"], inputs().host, frozenset({layer}))
    assert told.without == (layer,)
    others = {other for other in LAYERS if other != layer}
    kept = {
        "seccomp": any(isinstance(step, st.InstallSeccomp) for step in of(Phase.PAYLOAD, weak)),
        "landlock": any(isinstance(item.step, st.LandlockRestrict) for item in weak),
        "caps": any(isinstance(step, st.SetCapabilities) and not step.kept for step in of(Phase.PAYLOAD, weak)),
    }
    assert all(present for name, present in kept.items() if name in others)


CHANGED: dict[Layer, set[str]] = {
    "seccomp": {"InstallSeccomp"},
    "landlock": {"LandlockCreate", "LandlockAdd", "LandlockRestrict"},
    "caps": {"Prctl", "DropBounding", "SetCapabilities", "SetResuid", "RaiseAmbient"},
    "uid": {"SetResuid", "SetResgid", "Mkdir"},
    "netns": {"Clone", "LoopbackUp"},
    "mount": {"LeakRoot"},
}
"""The steps that may differ without a layer; userns apart, since every id is written otherwise then."""


@pytest.mark.parametrize("layer", CHANGED)
def test_a_control_run_changes_nothing_else(layer: Layer) -> None:
    def described(without: frozenset[Layer]) -> Counter[tuple[Phase, str]]:
        return Counter((item.phase, item.step.describe()) for item in plan.build_plan(inputs(without)))

    whole, weak = described(frozenset()), described(frozenset({layer}))
    changed = {text.split()[0] for _, text in (*(whole - weak), *(weak - whole))}
    assert changed
    assert changed <= CHANGED[layer]
    if layer != "caps":  # that one keeps rights by steps of its own
        order = [(item.phase, item.step.name) for item in plan.build_plan(inputs())]
        kept = [(item.phase, item.step.name) for item in plan.build_plan(inputs(frozenset({layer})))]
        assert [step for step in order if step[1] not in CHANGED[layer]] == [
            step for step in kept if step[1] not in CHANGED[layer]
        ]


def test_a_plan_is_the_same_each_time_and_takes_no_root() -> None:
    digest = hashlib.sha256(b"".join(wire.encode(plan.build_plan(inputs())))).hexdigest()
    program = (
        "import hashlib, os, sys; sys.path.insert(0, sys.argv[1]); import test_plan; "
        "from sandboxd.jail import plan, wire; os.setuid(65534); "
        "print(hashlib.sha256(b''.join(wire.encode(plan.build_plan(test_plan.inputs())))).hexdigest())"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-I", "-c", program, folder], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (digest, "")


def test_files_come_after_their_folders_and_limits_after_files() -> None:
    files = (InputFile(path="a/b/c", content=b"1"), InputFile(path="a/d", content=b"2", executable=True))
    job = of(Phase.JOB, job_plan(stage(files=files)))
    assert [step.describe() for step in job[:4]] == [
        "Mkdir a (0755)",
        "Mkdir a/b (0755)",
        "CopyFile /box/a/b/c (1 bytes, 0644)",
        "CopyFile /box/a/d (1 bytes, 0755)",
    ]
    assert {step.name for step in job[4:]} == {"SetRlimit"}


@pytest.mark.parametrize("stdin", [b"", b"text", None])
def test_stdin_is_taken_where_a_job_has_one(stdin: bytes | None) -> None:
    job = of(Phase.JOB, job_plan(stage(stdin=stdin)))
    assert any(isinstance(step, st.TakeStdin) for step in job) == (stdin != b"")


@pytest.mark.parametrize(
    ("argv", "env", "candidates"),
    [
        (("prog",), {}, ["/usr/local/bin/prog", "/usr/bin/prog", "/bin/prog"]),
        (("prog",), {"PATH": "/a:/b"}, ["/a/prog", "/b/prog"]),
        (("prog",), {"PATH": "relative::/b"}, ["/b/prog"]),
        (("./prog",), {"PATH": "/a"}, ["./prog"]),
        (("/x/prog",), {}, ["/x/prog"]),
    ],
)
def test_a_command_is_looked_up_along_path(argv: tuple[str, ...], env: dict[str, str], candidates: list[str]) -> None:
    steps = of(Phase.EXEC, job_plan(stage(argv=argv, env=env)))
    assert [step.subject() for step in steps] == candidates


def test_the_requests_environment_lies_over_the_fixed_one() -> None:
    assert plan.environment(stage(env={"LANG": "de_DE.UTF-8", "X": "1"})) == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "de_DE.UTF-8",
        "HOME": "/box",
        "USER": "sandbox",
        "LOGNAME": "sandbox",
        "X": "1",
    }


def test_each_step_says_what_it_does() -> None:
    for item in (*plan.build_plan(inputs()), *job_plan(stage())):
        text = item.step.describe()
        assert text.startswith(item.step.name)
        assert text == text.strip()
        assert "None" not in text
