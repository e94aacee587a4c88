"""The audit, as anybody runs it: every case holds, every control works, nothing stays on the host."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from jailrig import SCALE

from sandboxd.audit import corpus, host, image, neighbours, suite
from sandboxd.audit.corpus import Case
from sandboxd.audit.judge import NO_FINDING, State, judge_without
from sandboxd.audit.peer import PeerTarget
from sandboxd.audit.suite import Report
from sandboxd.audit.target import LauncherTarget, Routed
from sandboxd.jail import slots
from sandboxd.jail.sweeper import RECORD
from sandboxd.result import Verdict

pytestmark = pytest.mark.root

AUDIT = (sys.executable, "-I", "-m", "sandboxd", "audit")


def report_of(done: subprocess.CompletedProcess[bytes]) -> Report:
    """What --json printed; that it is green says the exit status, too."""
    printed = json.loads(done.stdout)
    assert printed.pop("is_green") == (done.returncode == 0)
    return msgspec.convert(printed, Report)


@pytest.mark.slow
@pytest.mark.timeout(300 * SCALE)
@pytest.mark.parametrize("options", [[], ["--prepared"]], ids=["cold", "prepared"])
def test_everything_holds_and_every_control_works(tmp_path: Path, options: list[str]) -> None:
    """The quick part: every case but the slow ones."""
    page = tmp_path / "audit.md"
    done = subprocess.run(
        [*AUDIT, "--quick", "--json", "--report", page, *options], capture_output=True, check=False, timeout=300 * SCALE
    )
    found = report_of(done)
    wrong = [(row.case, row.walls, row.state, row.evidence) for row in found.rows if row.state not in NO_FINDING]
    assert (wrong, found.changes) == ([], ())
    assert done.returncode == 0
    ran = {row.case for row in found.rows if row.topic != suite.FILTER}
    assert ran == {case.id for case in corpus.load() if not case.table.slow}
    text = page.read_text()
    assert all(f"`{row.case}`" in text for row in found.rows)
    assert "## What is not defended" in text


@pytest.mark.slow
@pytest.mark.timeout(150 * SCALE)
def test_most_attacks_work_where_there_is_no_wall(tmp_path: Path) -> None:
    """The control of the whole, and the host survives it."""
    page = tmp_path / "none.md"
    known = {folder: set(os.listdir(folder)) for folder in ("/", "/usr", "/etc", "/run", "/tmp", "/dev")}
    done = subprocess.run(
        [*AUDIT, "--json", "--against", "none", "--report", page],
        capture_output=True, check=False, timeout=150 * SCALE,
    )  # fmt: skip
    assert done.returncode == 1
    found = report_of(done)
    states = collections.Counter(row.state for row in found.rows)
    assert states[State.BROKEN] > 0.6 * len(found.rows)
    assert states[State.FAILED] <= 3, "the daemons hold its streams open"
    worked = {row.case.split()[0] for row in found.rows if row.state is State.BROKEN}
    assert worked >= {"write", "device", "secret", "names", "tree", "new", "pid", "gain", "call", "route"}
    for folder, names in known.items():
        assert "escaped" not in set(os.listdir(folder)) - names
    assert "It is not about sandboxd" in page.read_text()


@pytest.mark.parametrize(
    ("case", "args", "answer"),
    [
        ("files in C disk", ("disk",), "ENOSPC"),
        ("files in C names", ("names",), "ENOSPC"),
        ("memory in C memory", ("memory",), ""),
    ],
)
def test_in_somebody_elses_sandbox_a_flood_does_not_reach_the_host(
    case: str, args: tuple[str, ...], answer: str
) -> None:
    before = shutil.disk_usage("/").free
    with Routed() as routed, PeerTarget("none", routed) as target:
        assert target.observe(case_of(case), args).answer == answer
    assert before - shutil.disk_usage("/").free < 64 << 20
    assert not list(Path("/tmp").glob("sandboxd-audit-*/box"))


def test_a_sandbox_that_does_not_start_tells_nothing(tmp_path: Path) -> None:
    """Not: that the attack did not work there."""
    case = case_of("write create=/usr/escaped")
    with Routed() as routed, PeerTarget("none", routed) as target:
        wrong = msgspec.structs.replace(case, args=("no-such-attempt=",))
        assert judge_without(case, "", target.observe(wrong, ("no-such-attempt=",))).state is State.FAILED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_audit_that_is_stopped_tells_what_it_knows_and_leaves_nothing(number: signal.Signals) -> None:
    def traces() -> set[str]:
        return {str(path) for top in ("/tmp", "/run/sandboxd") for path in Path(top).glob("*audit-*")}

    before = traces()
    # Whoever runs the tests in the background may have SIGINT ignored.
    as_json = number is signal.SIGHUP
    heard = ("/usr/bin/env", "--default-signal=INT", *AUDIT, "--quick", *(["--json"] if as_json else []))
    audit = subprocess.Popen(heard, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while f"audit-{audit.pid}-0" not in slots.claimed().values():
        assert audit.poll() is None, audit.communicate()
        time.sleep(0.01)
    time.sleep(2 * SCALE)
    os.kill(audit.pid, number)
    said, complained = audit.communicate(timeout=60 * SCALE)
    assert audit.returncode == 128 + number, complained
    assert "of the others nothing is known" in complained
    assert "held" in said
    assert not as_json or json.loads(said)["rows"]
    assert traces() == before


def test_another_sandbox_is_compared_by_what_its_programs_say() -> None:
    done = subprocess.run(
        [*AUDIT, "--json", "--against", "bwrap", "secret", "call"],
        capture_output=True, check=False, timeout=60 * SCALE,
    )  # fmt: skip
    rows = report_of(done).rows
    unknown = [(row.case, row.evidence) for row in rows if row.state is State.FAILED]
    assert unknown == []
    assert {State.HELD, State.BROKEN} == {row.state for row in rows}, "it stops some of them, and not all"


MAKE_SHARED_MEMORY = "import ctypes; print(ctypes.CDLL(None).shmget(0, 4096, 0o1600))"


def test_what_others_leave_is_no_finding_of_a_run(state_root: Path) -> None:
    """Another launcher's job, in a slot that is free again at the next look."""
    known, number = set(host.found_before()), slots.COUNT - 1
    made = subprocess.run(
        [sys.executable, "-I", "-c", MAKE_SHARED_MEMORY], user=slots.first_id(number), capture_output=True, check=True
    )
    link = slots.SLOTS_DIR / str(number)
    try:
        with LauncherTarget(0, state_root) as target:
            link.symlink_to("another")
            earlier = host.before(target)
            link.unlink()
            assert host.left_behind(target, earlier) == ""
            assert set(host.found_before()) - known == {f"shm {int(made.stdout)}"}
    finally:
        link.unlink(missing_ok=True)
        subprocess.run(["ipcrm", "-m", made.stdout.decode().strip()], check=True)
    assert set(host.found_before()) <= known


def test_a_report_that_cannot_be_written_is_said_before_anything_runs() -> None:
    done = subprocess.run(
        [*AUDIT, "--report", "/nonexistent/page.md"], capture_output=True, text=True, check=False, timeout=20 * SCALE
    )
    assert done.returncode == 2
    assert "/nonexistent/page.md" in done.stderr


def test_what_is_of_our_own_sandbox_alone_is_refused_with_another() -> None:
    done = subprocess.run(
        [*AUDIT, "--against", "none", "--quick"], capture_output=True, text=True, check=False, timeout=20 * SCALE
    )
    assert (done.returncode, "of our own sandbox" in done.stderr) == (2, True)


@pytest.mark.timeout(300 * SCALE)
def test_among_hostile_jobs_an_honest_one_keeps_its_verdict_and_nothing_is_left() -> None:
    """A short soak. Two of its figures are those of a busy machine here: that they are measured is what is asked."""
    done = subprocess.run(
        [*AUDIT, "--quick", "--json", "--soak", "150", "namespaces"],
        capture_output=True,
        check=False,
        timeout=300 * SCALE,
    )
    rows = [row for row in report_of(done).rows if row.topic == "soak"]
    figures = {row.case: row.evidence for row in rows if row.case in ("their median CPU time", "CPU beyond its limit")}
    assert re.fullmatch(r"[0-9.]+ times that of the job alone \([0-9.]+ s\)", figures["their median CPU time"])
    assert re.fullmatch(r"-?[0-9.]+ ms, 95th percentile of 3", figures["CPU beyond its limit"])
    found = {row.case: row.state for row in rows if row.case not in figures}
    assert set(found) == {"142 hostile jobs", "8 honest jobs", "left behind", "changes of the host"}
    assert set(found.values()) == {State.HELD}, rows


def test_a_soak_notices_a_job_that_is_told_otherwise() -> None:
    """Control: a case of which something else is expected than what it does."""
    case = case_of("claims exit 137")
    wrong = msgspec.structs.replace(case, table=msgspec.structs.replace(case.table, verdicts=(Verdict.OK,)))
    found = suite.audit([wrong], quick=True, soak_jobs=20)
    (hostile,) = [row for row in found.rows if row.topic == "soak" and "hostile" in row.case]
    assert hostile.state is State.BROKEN
    assert "claims exit 137" in hostile.evidence


@pytest.mark.parametrize(
    ("noisy", "state"),
    [
        ([(Verdict.OK, 1.0)] * 3, State.HELD),
        ([(Verdict.OK, 1.09)] * 3, State.HELD),
        ([(Verdict.OK, 1.2)] * 3, State.BROKEN),
        ([(Verdict.OK, 1.0), (Verdict.OK, 1.0), (None, 1.0)], State.BROKEN),
        ([(Verdict.OK, 1.0), (Verdict.OK, 1.0), (Verdict.CPU_TIME_EXCEEDED, 1.0)], State.BROKEN),
    ],
)
def test_a_noisy_neighbour_is_noticed(noisy: list[neighbours.Observed], state: State) -> None:
    assert neighbours.compared("x", [(Verdict.OK, 1.0)] * 3, noisy).state is state


@pytest.mark.slow
@pytest.mark.timeout(120 * SCALE)
def test_beside_a_storm_and_at_the_memory_limit_jobs_are_told_the_truth(
    state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One storm of those that the whole audit makes. Its CPU time is that of a busy machine here."""
    monkeypatch.setattr(neighbours, "STORMS", ("membarrier",))
    with Routed() as routed:
        storm, *eaters = neighbours.neighbours(state_root, routed, lambda: None, prepared=False)
    assert "verdicts lost" not in storm.evidence
    assert [each.state for each in eaters] == 3 * [State.HELD]


def test_a_word_that_names_no_case_is_a_usage_error() -> None:
    done = subprocess.run([*AUDIT, "no such case"], capture_output=True, text=True, check=False, timeout=60 * SCALE)
    assert done.returncode == 2
    assert "no case has one of" in done.stderr


def test_an_attack_that_works_is_not_green() -> None:
    """Control of the audit itself: a program of which it is said that it must not work, and which does."""
    case = case_of("unknown number=600")
    assert suite.audit([case], quick=True).is_green
    works = msgspec.structs.replace(case, args=("number=39",))
    found = suite.audit([works], quick=True)
    assert not found.is_green
    assert [row.state for row in found.rows if row.case == case.id and row.walls == suite.ALL_WALLS] == [State.BROKEN]


@pytest.fixture(scope="module")
def target(state_root: Path) -> Iterator[LauncherTarget]:
    with LauncherTarget(9, state_root) as target:
        yield target


def case_of(name: str) -> Case:
    return next(case for case in corpus.load() if case.id == name)


USER = slots.first_id(slots.COUNT - 1) + 1000
"""A host id in a slot that nobody has."""


@contextlib.contextmanager
def process(user: int, *command: str) -> Iterator[int]:
    with subprocess.Popen(command or ("/bin/sleep", "60"), user=user, group=user, extra_groups=[]) as started:
        try:
            yield started.pid
        finally:
            started.kill()


@contextlib.contextmanager
def left_running(user: int) -> Iterator[None]:
    """A process whose parent has ended."""
    make = ("/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--")
    made = subprocess.run(
        [*make, "/bin/sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    try:
        yield
    finally:
        os.kill(int(made.stdout), signal.SIGKILL)


@contextlib.contextmanager
def adopted(user: int) -> Iterator[None]:
    """The same, and this process is told of it."""
    with host.adopting(), left_running(user):
        yield
    os.wait()


@contextlib.contextmanager
def file_of(path: Path, user: int = USER) -> Iterator[None]:
    path.touch()
    os.chown(path, user, user)
    try:
        yield
    finally:
        path.unlink()


@contextlib.contextmanager
def in_a_folder(folder: Path) -> Iterator[None]:
    folder.mkdir()
    try:
        with file_of(folder / "left-by-a-test"):
            yield
    finally:
        folder.rmdir()


@contextlib.contextmanager
def pinned_namespace(path: Path) -> Iterator[None]:
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)
        path.unlink()


@contextlib.contextmanager
def sysv_memory() -> Iterator[None]:
    make = f"import os; os.setresgid({USER}, {USER}, {USER}); os.setresuid({USER}, {USER}, {USER})\n"
    make += "import ctypes; print(ctypes.CDLL(None).shmget(0, 4096, 0o1600))"
    done = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["ipcrm", "-m", done.stdout.strip()], check=True)


@contextlib.contextmanager
def folder(path: Path) -> Iterator[None]:
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()


def cgroup_of(target: LauncherTarget, name: str) -> Path:
    record = msgspec.json.decode((target.run_dir / RECORD).read_bytes(), type=list[str])
    return Path(record[-1], name)


LEFT: dict[str, Callable[[LauncherTarget], contextlib.AbstractContextManager[object]]] = {
    "processes": lambda _: process(USER),
    "orphans": lambda _: adopted(0),
    "cgroups slot-4242": lambda target: folder(cgroup_of(target, "slot-4242")),
    "cgroups other": lambda target: folder(cgroup_of(target, "other")),
    "mounts": lambda target: pinned_namespace(target.run_dir.parent / "left-by-a-test"),
    "files shared memory": lambda _: file_of(Path("/dev/shm/left-by-a-test")),
    "files folder": lambda _: in_a_folder(Path("/dev/shm/folder-of-a-test")),
    "files run directory": lambda target: file_of(target.run_dir / "left-by-a-test", 0),
    "sysv": lambda _: sysv_memory(),
    "slots": lambda target: claimed(target.instance.name),
}


@contextlib.contextmanager
def claimed(owner: str) -> Iterator[None]:
    held = slots.Slots(owner)
    number = held.claim()
    try:
        yield
    finally:
        held.free(number)
        held.close()


@pytest.mark.parametrize("kind", LEFT)
def test_what_a_job_leaves_is_noticed(target: LauncherTarget, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Control of the post-conditions: something of each kind, made by hand."""
    before = host.before(target)
    assert host.left_behind(target, before) == ""
    monkeypatch.setattr(host, "SETTLE_S", 0.1)
    with LEFT[kind](target):
        assert kind.split()[0] in host.left_behind(target, before)
    assert host.left_behind(target, before) == ""


@pytest.mark.parametrize("kind", ["cgroups", "processes", "slots"])
def test_what_one_run_left_for_ever_is_no_finding_of_the_next(
    target: LauncherTarget, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(host, "SETTLE_S", 0.1)
    watch = host.Watch(target)
    before = watch.before()
    with next(make for name, make in LEFT.items() if name.startswith(kind))(target):
        assert kind in watch.left_behind(before)
        assert watch.left_behind(watch.before()) == ""
    assert watch.left_behind(watch.before()) == ""


def test_what_others_have_on_the_host_is_not_looked_at(target: LauncherTarget, tmp_path: Path) -> None:
    before = host.before(target)
    with (
        left_running(0),
        left_running(65534),
        file_of(Path("/dev/shm/left-by-a-test"), 65534),
        folder(tmp_path / "folder"),
    ):
        assert host.left_behind(target, before) == ""


def test_a_program_that_looks_like_init_does_not_look_like_one_that_waits(
    target: LauncherTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file has the same name, but cannot be the same file."""
    hides = (
        "import os, sys\n"
        "fd = os.memfd_create('sandboxd-init', 0)\n"
        "os.write(fd, open('/bin/sleep', 'rb').read())\n"
        "print('hidden', flush=True)\n"
        "os.execve(fd, ['sleep', '60'], {})\n"
    )
    stage = target._stage(corpus.load()[0].alone(), ())
    stage = msgspec.structs.replace(
        stage, argv=("/usr/bin/python3", "-c", hides), limits=msgspec.structs.replace(stage.limits, wall_time_ns=10**9)
    )
    before = host.before(target)
    monkeypatch.setattr(host, "SETTLE_S", 0.1)
    with ThreadPoolExecutor(1) as thread, target.another_client() as other:
        job = thread.submit(other._run, stage)
        time.sleep(0.5)
        assert host.waiting_slots(target.instance) == set()
        assert "processes" in host.left_behind(target, before)
        assert job.result().verdict is Verdict.WALL_TIME_EXCEEDED


def test_more_sandboxes_that_wait_than_may_are_noticed(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SETTLE_S", 0.1)
    with LauncherTarget(7, state_root, prepared=True) as target:
        before = host.before(target)
        target.warm_up([corpus.load()[0]])
        monkeypatch.setattr(target, "prepared_max", 0)
        assert "sandboxes wait, of at most 0" in host.left_behind(target, before)


def test_what_all_jobs_change_is_noticed(target: LauncherTarget) -> None:
    before = host.host_state(target)
    assert host.changes(before, before) == []
    changed = msgspec.structs.replace(
        before,
        sysctls={**before.sysctls, "kernel/hostname": "changed"},
        dying_cgroups=before.dying_cgroups + 65,
        launcher_resident_bytes=before.launcher_resident_bytes + (17 << 20),
        launcher_threads=before.launcher_threads + 1,
    )
    assert len(host.changes(before, changed)) == 4


@pytest.mark.parametrize(
    ("without", "told"),
    [((), ""), (("caps",), "sandboxd-init: CapBnd"), (("seccomp",), "Seccomp")],
)
def test_rights_that_a_process_in_a_sandbox_has_are_seen_from_outside(
    state_root: Path, without: tuple[str, ...], told: str
) -> None:
    case = next(case for case in corpus.load() if case.table.beside)
    with LauncherTarget(11, state_root, without=without, prepared=True) as target, target.beside(case):
        found = host.rights(target)
    assert any(told in words for words in found) if told else found == []


def test_what_root_is_left_with_by_every_job_is_noticed() -> None:
    """Not by its owner or its name, but by how much of it there is in the end."""
    before = host.machine()
    assert host.machine_changes(before, host.machine(), jobs=1) == []
    more = host.MACHINE_GROWTH_MAX + 1
    make = f"import ctypes\nfor _ in range({more}): print(ctypes.CDLL(None).shmget(0, 4096, 0o1600))"
    made = subprocess.run([sys.executable, "-I", "-c", make], capture_output=True, text=True, check=True)
    try:
        after = host.machine()
    finally:
        subprocess.run(["ipcrm", *(word for number in made.stdout.split() for word in ("-m", number))], check=True)
    assert host.machine_changes(before, after, jobs=10 * (more - 1)) == [f"{more} more sysv on the machine"]
    assert host.machine_changes(before, after, jobs=10 * more) == []


def test_a_pipe_that_nobody_reads_is_no_finding() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*AUDIT, "identity", "map"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_file_that_a_job_s_user_left_is_found(tmp_path: Path) -> None:
    before = host.foreign_files()
    with file_of(Path("/tmp/left-by-a-test")), file_of(Path("/var/tmp/of-somebody"), 65534):
        assert host.foreign_files() - before == {"/tmp/left-by-a-test"}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("changed"),
        lambda path: path.chmod(0o600),
        lambda path: path.touch(),
        lambda path: path.rename(path.with_name("another")),
        lambda path: (path.parent / "new").touch(),
    ],
    ids=["content", "mode", "times", "name", "new"],
)
def test_a_change_of_the_image_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(image, "ROOT", str(tmp_path))
    (tmp_path / "bash").write_text("original")
    before = image.tree_digest()
    assert image.tree_digest() == before
    change(tmp_path / "bash")
    assert image.tree_digest() != before


def test_a_change_of_content_is_noticed_through_the_page_cache_and_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bash"
    path.write_bytes(b"a" * 8192)
    monkeypatch.setattr(image, "ROOT", str(tmp_path))
    before = image.content_digest()
    assert image.content_digest(direct=True) == before
    path.write_bytes(b"b" * 8192)
    assert image.content_digest() != before
    assert image.content_digest(direct=True) != before


def test_the_kernels_log_is_counted() -> None:
    log = host.KernelLog()
    assert log.is_readable
    assert log.new_lines() == []
    Path("/dev/kmsg").write_text("a line of sandboxd's tests\n")
    assert b"a line of sandboxd's tests" in b"".join(log.new_lines())
    assert log.new_lines() == []
    log.close()


def test_a_run_without_walls_differs_in_what_it_says(state_root: Path, target: LauncherTarget) -> None:
    case = case_of("identity filter")
    assert target.observe(case, case.args).answer == "held"
    with LauncherTarget(8, state_root, without=("seccomp",)) as open_target:
        assert open_target.observe(case, case.args).answer == "succeeded"
    assert suite.plan([case], quick=True)[0].walls == "all walls"
