"""SIGKILL in every phase: of what builds a sandbox, of what holds it, of the program's process, of the launcher."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultrig import FailingWorkshop, a_stage, in_loop, launch
from jailrig import SCALE, LauncherUnderTest

from sandboxd.errors import InternalError, LauncherUnavailable
from sandboxd.jail.admission import Admission
from sandboxd.jail.reports import Report, ReportKind
from sandboxd.jail.sandbox import Sandbox
from sandboxd.result import Facts, Verdict
from sandboxd.spec import Limits
from sandboxd.verdict import decide

MOMENTS = int(os.environ.get("KILL_MOMENTS", "16"))
"""At which a launcher is killed, a millisecond apart: a short job is over after some ten."""


def kill(sandbox: Sandbox, victim: str) -> None:
    if victim == "outer":
        os.close(os.dup(sandbox._outer_fd))
        signal.pidfd_send_signal(sandbox._outer_fd, signal.SIGKILL)
    elif victim == "init":
        signal.pidfd_send_signal(sandbox._pidfd, signal.SIGKILL)
    else:
        folder = Path(os.readlink(f"/proc/self/fd/{sandbox._leaf.v2_fd}"))
        pids = sorted(map(int, (folder / "cgroup.procs").read_text().split()))
        if len(pids) > 1:  # it may have ended by itself
            os.kill(pids[-1], signal.SIGKILL)


def killed_at(workshop: FailingWorkshop, monkeypatch: pytest.MonkeyPatch, victim: str, moment: ReportKind) -> Facts:
    """What is recorded of a job whose sandbox lost `victim` right when the launcher heard of `moment`."""
    found: list[Facts] = []
    heard = Sandbox._on_report

    def on_report(sandbox: Sandbox, report: Report) -> None:
        heard(sandbox, report)
        if report.kind is moment:
            kill(sandbox, victim)

    async def run(admission: Admission) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "_on_report", on_report)
            found.append(await launch(admission, a_stage(workshop)))
        after = await launch(admission, a_stage(workshop))
        assert after.exit_code == 0, "the next sandbox does not run"

    in_loop(workshop, run)
    return found[0]


@pytest.mark.parametrize(
    ("victim", "moment"),
    [
        ("outer", ReportKind.OUTER),
        ("init", ReportKind.PIDFD),
        ("init", ReportKind.TREE),
        ("init", ReportKind.READY),
        ("init", ReportKind.HELD),
        ("init", ReportKind.STARTED),
        ("payload", ReportKind.READY),
        ("payload", ReportKind.HELD),
    ],
)
def test_a_sandbox_that_loses_a_process_of_ours_is_our_fault_and_leaves_nothing(
    workshop: FailingWorkshop,
    monkeypatch: pytest.MonkeyPatch,
    victim: str,
    moment: ReportKind,
) -> None:
    facts = killed_at(workshop, monkeypatch, victim, moment)
    limits: Limits = workshop.policies["default"].defaults
    judged = decide(facts, limits)
    if facts.exit_code == 0:
        assert victim in ("outer", "payload"), "it had done its work already, or the job was over first"
        return
    if victim == "payload" and facts.failure is None:
        assert (judged.verdict, judged.signal) == (Verdict.SIGNALLED, "SIGKILL"), "it died with the job in its hands"
        return
    assert judged.verdict is Verdict.INTERNAL_ERROR
    assert judged.reason
    assert facts.exit_code is None


def test_init_that_is_killed_when_the_programs_end_was_told_changes_no_verdict(
    workshop: FailingWorkshop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = killed_at(workshop, monkeypatch, "init", ReportKind.ENDED)
    assert decide(facts, workshop.policies["default"].defaults).verdict is Verdict.OK


@pytest.fixture
def _launcher_of_its_own(state_root: Path) -> Iterator[LauncherUnderTest]:
    under_test = LauncherUnderTest(state_root, f"killed-{os.getpid()}", prepared=2)
    yield under_test
    under_test.stop()
    under_test.await_all_gone()


@pytest.mark.timeout(120 * SCALE)
def test_a_launcher_killed_at_any_moment_of_a_job_leaves_what_the_next_one_sweeps(
    _launcher_of_its_own: LauncherUnderTest,  # noqa: PT019  # it is used
) -> None:
    launcher = _launcher_of_its_own
    seen: set[str] = set()
    for moment in range(MOMENTS):
        stage = launcher.stage(("sh", "-c", "echo on; sleep 0.003"), files={"a": "b"})
        ended: list[str] = []

        def run(stage: object = stage, ended: list[str] = ended) -> None:
            try:
                ended.append(launcher.run_stage(stage).verdict)  # type: ignore[arg-type]
            except (LauncherUnavailable, InternalError) as error:
                ended.append(type(error).__name__)

        client = threading.Thread(target=run)
        client.start()
        time.sleep(moment / 1000)
        pids = launcher.sandbox_pids()
        launcher.kill()
        client.join(20 * SCALE)
        assert ended, f"the client still waits, {moment} ms after its request"
        seen.add(ended[0])
        deadline_s = time.monotonic() + 5 * SCALE
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        launcher.start()
        launcher.await_nothing_left()
        assert launcher.run(("true",)).verdict == "ok"
    assert seen <= {"ok", "LauncherUnavailable"}
    assert "LauncherUnavailable" in seen
