"""The whole audit: every case with all walls, each control with its walls taken away, and one wall off at a time."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sandboxd
from sandboxd.audit import calls, host, image, neighbours, soak
from sandboxd.audit.corpus import GRAVE, Case, Severity
from sandboxd.audit.judge import NO_FINDING, Judged, Observation, State, judge, judge_control, judge_without
from sandboxd.audit.peer import PeerTarget
from sandboxd.audit.target import LauncherTarget, Routed
from sandboxd.document import now_rfc3339
from sandboxd.errors import InternalError
from sandboxd.jail.plan import LAYERS
from sandboxd.spec import Struct

ALL_WALLS = "all walls"
CONTROL = "control"
DEPTH = "without"
SOAK = "soak"
NEIGHBOURS = "neighbours"
IMAGE = "image"
FILTER = "filter"
_FINDINGS = {
    SOAK: (Severity.PEER_DENIAL, "many jobs at once"),
    NEIGHBOURS: (Severity.PEER_DENIAL, "what runs beside a job"),
    IMAGE: (Severity.ESCAPE, "a write to a shared page of a file, as of CVE-2016-5195 and CVE-2022-0847"),
    FILTER: (Severity.INTERNAL, "the compiled filter, evaluated for each call with all arguments -1 and with all 0"),
}
"""Topics whose rows are no runs of cases: how bad it is, and where it comes from."""
_AT_ONCE = min(2, os.cpu_count() or 1)
"""Launchers that work at the same time."""


class Row(Struct, frozen=True, kw_only=True):
    """One run of one case."""

    case: str
    topic: str
    severity: str
    source: str
    walls: str
    """`all walls`, `control: LAYERS`, `without: LAYER`, or the name of what is no sandbox of ours."""
    decided_by: tuple[str, ...] = ()
    """The walls without which the attack works, as its control shows."""
    uncontrolled: str = ""
    """Why there is no control."""
    state: State
    evidence: str


class Report(Struct, frozen=True, kw_only=True):
    """All that an audit found."""

    version: str
    against: str
    quick: bool
    prepared: bool
    """Jobs got sandboxes that were built before, as far as the launcher kept up."""
    date: str
    kernel: str
    machine: str
    cpu: str
    cgroup: str
    isolation: dict[str, object]
    rows: tuple[Row, ...]
    changes: tuple[str, ...]
    """What all jobs together changed of the host."""
    unseen: tuple[str, ...] = ()
    """What could not be looked at on this host."""
    seconds: float

    @property
    def is_green(self) -> bool:
        """Nothing escaped, leaked or stayed but what is told as not defended; no control failed."""
        return not self.changes and all(row.state in NO_FINDING for row in self.rows)


class Run(Struct, frozen=True, kw_only=True):
    """One run that is to be made."""

    case: Case
    kind: str
    without: tuple[str, ...]

    @property
    def walls(self) -> str:
        if self.kind not in (CONTROL, DEPTH):
            return self.kind
        return f"{self.kind}: {', '.join(self.without)}" if self.without else f"{self.kind}: in one sandbox"


def plan(cases: Sequence[Case], *, quick: bool, layers: Sequence[str] = LAYERS) -> list[Run]:
    """Every run, those of one launcher together."""
    chosen = [case for case in cases if not (quick and case.table.slow)]
    runs = [Run(case=case, kind=ALL_WALLS, without=()) for case in chosen]
    runs += [
        Run(case=case, kind=CONTROL, without=case.table.control)
        for case in chosen
        if case.table.control or case.table.control_args is not None
    ]
    for layer in layers:
        runs += [
            Run(case=case, kind=DEPTH, without=(layer,))
            for case in chosen
            if layer in case.table.also_without or (case.table.depth and case.table.severity in GRAVE)
        ]
    return sorted(runs, key=lambda run: run.without)


def audit(
    cases: Sequence[Case],
    *,
    quick: bool,
    prepared: bool = False,
    together: bool = False,
    soak_jobs: int = 0,
    on_run: Callable[[Run, Row | None], None] = lambda _run, _row: None,
    on_job: Callable[[], None] = lambda: None,
) -> Report:
    """Attack our own sandbox. `on_run` is called before and after each run, `on_job` after each job of a soak and each
    of `neighbours.STEPS`. `together`: also what no single case shows, noisy neighbours and the image's content.

    Raises HostError, LauncherUnavailable.
    """
    begin, machine = time.monotonic(), host.machine()
    groups = sorted(_grouped(plan(cases, quick=quick)), key=len, reverse=True)
    with (
        host.adopting(),
        _state_root() as state_root,
        Routed() as routed,
        ThreadPoolExecutor(_AT_ONCE) as threads,
        ExitStack() as stack,
    ):
        orphans = set(host.orphans())
        log = stack.enter_context(contextlib.closing(host.KernelLog()))
        auditor = stack.enter_context(_Auditor(state_root, routed, on_run, prepared=prepared))
        unseen = [f"was there before: {what}" for what in host.found_before()]
        unseen += [] if host.KernelLog().is_readable else ["the kernel's log: /dev/kmsg may not be read"]
        tree, files = image.tree_digest(), host.foreign_files()
        content = image.content_digest() if together else ""
        done = list(threads.map(auditor.audit, range(len(groups)), groups))
        findings = soak.soak(state_root, routed, cases, soak_jobs, on_job, prepared=prepared) if soak_jobs else ()
        beside = neighbours.neighbours(state_root, routed, on_job, prepared=prepared) if together else ()
        left = sorted(set(host.orphans()) - orphans)
        lines = len(log.new_lines())
    rows = [row for group in done for row in group.rows]
    rows += [_finding_row(finding, SOAK) for finding in findings]
    rows += [_finding_row(finding, NEIGHBOURS) for finding in beside]
    rows += [_finding_row(_image_finding(content), IMAGE)] if together else []
    rows.append(_finding_row(_filter_finding(), FILTER))
    found = [change for group in done for change in group.changes]
    found += [f"a launcher left a process: {orphan}" for orphan in left]
    if lines > host.KERNEL_LOG_MAX_LINES + host.KERNEL_LOG_LINES_OF_A_RUN * (len(rows) + soak_jobs):
        found.append(f"{lines} lines in the kernel's log")
    found += ["the image changed: a file's inode, times or mode"] if image.tree_digest() != tree else []
    found += host.machine_changes(machine, host.machine(), len(rows) + soak_jobs)
    found += [f"a job's user left {path}" for path in sorted(host.foreign_files() - files)]
    return _report("sandboxd", quick, done[0].isolation, rows, found, begin, prepared=prepared, unseen=unseen)


class _Group(Struct, frozen=True, kw_only=True):
    """What came of the runs on one launcher."""

    rows: tuple[Row, ...]
    changes: tuple[str, ...]
    isolation: dict[str, object]


class _Auditor:
    """Runs groups, several at once: each has a launcher of its own. All of them stand in the namespace with routes."""

    def __init__(
        self, state_root: Path, routed: Routed, on_run: Callable[[Run, Row | None], None], *, prepared: bool
    ) -> None:
        self._prepared = prepared
        self._state_root = state_root
        self._routed = routed
        self._on_run = on_run
        self._stopped = threading.Event()
        self._cached = threading.Event()

    def __enter__(self) -> _Auditor:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Whoever still audits in another thread ends after its run."""
        self._stopped.set()
        self._cached.set()

    def audit(self, number: int, runs: Sequence[Run]) -> _Group:
        """The runs of one set of walls. Digests and versions of languages are found out by the first launcher, for all
        others."""
        if number > 0:
            self._cached.wait()
        try:
            return self._audit(number, runs)
        finally:
            self._cached.set()

    def _audit(self, number: int, runs: Sequence[Run]) -> _Group:
        walls = ", ".join(runs[0].without) or "none"
        with (
            contextlib.closing(host.KernelLog()) as log,
            LauncherTarget(
                number, self._state_root, without=runs[0].without, routed=self._routed, prepared=self._prepared
            ) as target,
        ):
            self._cached.set()
            target.warm_up([run.case for run in runs])
            before = host.host_state(target)
            watch = host.Watch(target)
            rows = []
            for run in runs:
                if self._stopped.is_set():
                    break
                self._on_run(run, None)
                rows.append(_row(run, target, watch, log))
                self._on_run(run, rows[-1])
            found = [f"without {walls}: {change}" for change in host.changes(before, host.host_state(target))]
            beside = next((run.case for run in runs if run.case.table.beside), None)
            if beside is not None and not runs[0].without:
                with target.beside(beside):
                    found += [f"a process in a sandbox has rights: {right}" for right in host.rights(target)]
        if target.run_dir.exists():
            found.append(f"without {walls}: the launcher left {target.run_dir}")
        return _Group(rows=tuple(rows), changes=tuple(found), isolation=target.isolation)


def comparable(cases: Sequence[Case]) -> list[Case]:
    """Those that one program alone can tell of, and that need no measurement."""
    return [
        case
        for case in cases
        if not (case.table.beside or case.table.before or case.table.slow or case.table.ours_alone)
        and case.table.verdicts == ("ok",)
    ]


def compare(name: str, cases: Sequence[Case], *, on_run: Callable[[Run, Row | None], None]) -> Report:
    """The same programs in another sandbox, or in none: what it stops, by what its programs say."""
    begin = time.monotonic()
    rows = []
    with Routed() as routed, PeerTarget(name, routed) as target:
        for case in comparable(cases):
            run = Run(case=case, kind=name, without=())
            on_run(run, None)
            rows.append(_row_of(run, judge_without(case, "", target.observe(case, case.args))))
            on_run(run, rows[-1])
    return _report(name, False, {}, rows, [], begin)


def _row(run: Run, target: LauncherTarget, watch: host.Watch, log: host.KernelLog) -> Row:
    """One run, and what it left."""
    case = run.case
    before = watch.before()
    log.new_lines()
    try:
        if case.table.before and run.kind != CONTROL:
            target.run_before(case)
            if left := watch.left_behind(before):
                return _row_of(run, Judged(state=State.LEFT, evidence=left))
        judged = _judged(run, target)
    except InternalError as error:
        judged = Judged(state=State.FAILED, evidence=str(error))
    if judged.state in NO_FINDING and (left := watch.left_behind(before)):
        judged = Judged(state=State.LEFT, evidence=left)
    lines = log.new_lines()
    if any(host.GLOBAL_OOM in line for line in lines):
        judged = Judged(state=State.LEFT, evidence="the host ran out of memory")
    if len(lines) > host.KERNEL_LOG_MAX_LINES:
        judged = Judged(state=State.LEFT, evidence=f"{len(lines)} lines in the kernel's log")
    return _row_of(run, judged)


def _judged(run: Run, target: LauncherTarget) -> Judged:
    case = run.case
    if run.kind == ALL_WALLS:
        return judge(case, target.observe(case, case.args))
    if run.kind == DEPTH:
        return judge_without(case, run.without[0], target.observe(case, case.args))
    if case.table.control_args is None:
        return judge_control(case, target.observe(case, case.args))
    return judge_control(case, _alone(target, case))


def _alone(target: LauncherTarget, case: Case) -> Observation:
    """Both halves of a case in one sandbox: nobody beside it."""
    return target.observe(case.alone(), case.role(case.table.control_args or ""))


def _row_of(run: Run, judged: Judged) -> Row:
    return Row(
        case=run.case.id,
        topic=run.case.topic,
        severity=run.case.table.severity,
        source=run.case.table.source,
        walls=run.walls,
        decided_by=run.case.table.control,
        uncontrolled=run.case.table.uncontrolled,
        state=judged.state,
        evidence=judged.evidence,
    )


def _image_finding(before: str) -> soak.Finding:
    wrong = [
        where
        for where, direct in (("in the page cache", False), ("on the disk", True))
        if image.content_digest(direct=direct) != before
    ]
    told = "as before, in the page cache and past it" if image.reads_past_the_cache() else "as before in the page cache"
    return soak.finding("content of the image", f"changed {' and '.join(wrong)}" if wrong else "", told)


def _filter_finding() -> soak.Finding:
    return soak.finding("decisions about every call", "; ".join(calls.differences()), "as was reviewed")


def _finding_row(finding: soak.Finding, topic: str) -> Row:
    severity, source = _FINDINGS[topic]
    return Row(
        case=finding.what,
        topic=topic,
        severity=severity,
        source=source,
        walls=ALL_WALLS,
        state=finding.state,
        evidence=finding.evidence,
    )


def _grouped(runs: Sequence[Run]) -> Iterator[list[Run]]:
    group: list[Run] = []
    for run in runs:
        if group and run.without != group[0].without:
            yield group
            group = []
        group.append(run)
    if group:
        yield group


@contextmanager
def _state_root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandboxd-audit-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def _report(
    against: str,
    quick: bool,
    isolation: dict[str, object],
    rows: list[Row],
    found: list[str],
    begin: float,
    *,
    prepared: bool = False,
    unseen: Sequence[str] = (),
) -> Report:
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return Report(
        version=sandboxd.__version__,
        against=against,
        quick=quick,
        prepared=prepared,
        date=now_rfc3339()[:10],
        kernel=platform.release(),
        machine=platform.machine(),
        cpu=f"{os.cpu_count()} x {cpus[0].partition(':')[2].strip() if cpus else 'unknown'}",
        cgroup=str(isolation.get("cgroup", "")),
        isolation=isolation,
        rows=tuple(rows),
        changes=tuple(found),
        unseen=tuple(unseen),
        seconds=round(time.monotonic() - begin, 1),
    )
