"""One live sandbox: its birth through init, its job, its end, its measurements.

States, in this order::

    BUILDING  init is spawned and executes the build list
    READY     built, and without rights: waits for a job
    RUNNING   the job is in, the payload runs
    ENDING    killed: by a limit, a cancellation, or since the main process ended and left others
    OVER      dead and measured; what it leaves is taken out, the owner gets the outcome, teardown goes on
    GONE      no process, cgroup, slot or descriptor is left

Everything happens in callbacks of the launcher's one event loop; nothing here blocks: what takes long (taking files
out, freeing what a job wrote) is a thread's. *Dead* means that init reported itself alone and the kernel counts one
process, or that PID 1 ended: the kernel reaps a pid namespace's processes before its PID 1 does (pid_namespaces(7)).
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from sandboxd.errors import InternalError, ProtocolError, StepError
from sandboxd.jail import plan, syscalls, wire
from sandboxd.jail.cgroups import Leaf
from sandboxd.jail.collect import Collected, collect
from sandboxd.jail.denied import DeniedCalls
from sandboxd.jail.inputs import Inputs
from sandboxd.jail.plan import BuildInputs
from sandboxd.jail.protocol import COLLECT_BYTES_MAX, COLLECT_FILES_MAX
from sandboxd.jail.reports import Report, ReportKind, ReportReader
from sandboxd.jail.rootfs import write_layer_options
from sandboxd.jail.streams import Stream, Streams
from sandboxd.jail.wire import JobPart, Phase
from sandboxd.jail.workshop import Workshop
from sandboxd.result import Ending, Facts, Failure, failure_of, no_facts
from sandboxd.spec import NANOSECONDS, InputSizes, Limits, StageSpec
from sandboxd.verdict import PROGRAM_EXEC_ERRNOS

log = structlog.get_logger()

BUILD_DEADLINE_S = 10.0
"""From spawn to READY, and again from the job to the payload's start."""
KILL_RETRY_S = 1.0
CPU_CHECK_MIN_S = 0.002
CPU_CHECK_IDLE_S = 0.005
CPU_UNCHARGED_NS = NANOSECONDS
"""What a running process has used and the kernel has not charged to its cgroup yet, at the very most."""
NEVER_NS = 1 << 64
OOM_CHECK_S = 0.001
OOM_CHECK_MAX_S = 0.1
TEAR_DOWN_DELAY_S = 0.003
REMOVE_RETRY_S = 0.005
REMOVE_DEADLINE_S = 5.0
STUCK_RETRY_S = 5.0
"""How often a cgroup that could not be removed until then is tried again."""


class State(enum.IntEnum):
    BUILDING = 0
    READY = 1
    RUNNING = 2
    ENDING = 3
    OVER = 4
    GONE = 5


class Owner(Protocol):
    """Whose job it is: a client's connection, or the launcher itself."""

    def on_admitted(self, sandbox: Sandbox) -> None:
        """There is room, and a sandbox: `run` it."""

    def on_output(self, stream: Stream, chunk: bytes) -> None: ...
    def on_stdin_taken(self, count: int) -> None: ...
    def on_over(self, facts: Facts, collected: Collected) -> None:
        """Takes `collected`."""

    def on_failed(self, error: InternalError) -> None:
        """No sandbox could be made."""


class Sandbox:
    """`build()`, `run()` whether it is READY or not, at any time `end()`. `on_built` is called when it is READY,
    `on_gone` when nothing is left."""

    def __init__(
        self,
        workshop: Workshop,
        inputs: BuildInputs,
        slot: int,
        leaf: Leaf,
        control: tuple[socket.socket, socket.socket],
        on_built: Callable[[], None],
        on_gone: Callable[[], None],
    ) -> None:
        """Takes `leaf`, whose limits are written, `slot`, and the pair to init; given back when the sandbox is gone."""
        self.state = State.BUILDING
        self._workshop = workshop
        self._inputs = inputs
        self._slot = slot
        self._leaf = leaf
        self._owner: Owner | None = None
        self._on_built, self._on_gone = on_built, on_gone
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reports = ReportReader()
        self._control, self._init_control = control
        self._control.setblocking(False)
        self._outer_fd = -1
        self._spawned = False
        self._pidfd = -1
        self._tree = -1
        self._freeing: asyncio.Future[None] | None = None
        self._limits: Limits = inputs.policy.defaults
        self._stage: StageSpec | None = None
        self._job_inputs = Inputs(InputSizes())
        self._job_fds: dict[JobPart, int] = {}
        self._streams: Streams | None = None
        self._awaited = {ReportKind.READY, ReportKind.HELD}
        self._held: Report | None = None
        self._started: Report | None = None
        self._ended: Report | None = None
        self._exec_errno: int | None = None
        self._failure: Failure | None = None
        self._ending = Ending.NONE
        self._given_ns = NEVER_NS
        self._end_ns = 0
        self._asked_to_die = False
        self._reports_ended = False
        self._cpu_checked_ns = -1
        self._cpu_check_s = CPU_CHECK_MIN_S
        self._oom_check_s = OOM_CHECK_S
        self._remove_deadline = 0.0
        self._is_stuck = False
        self._answered = False
        self._torn_down = False
        self._denied: DeniedCalls | None = None

    # --- birth

    def build(self) -> None:
        """Spawns init. A step that fails ends the sandbox with that failure."""
        if not self._attempt("Spawn", self._spawn):
            return
        self._watch(self._control, self._on_control)
        if self._leaf.oom_fd is not None:
            self._watch(self._leaf.oom_fd, self._on_oom)
        self._after(BUILD_DEADLINE_S, self._on_build_deadline, State.BUILDING)

    def _spawn(self) -> None:
        """In the order of `enum spawn_part`."""
        self._streams = Streams(self._inputs.id_base + plan.PAYLOAD_ID)
        with self._init_control as child:
            build_list = self._workshop.build_list(self._inputs)
            given = (*self._streams.ends, child.fileno(), self._leaf.v2_fd, build_list, *self._leaf.attach_fds)
            self._workshop.spawner.spawn(given)
            self._spawned = True
            self._streams.close_ends()

    # --- job

    def run(self, owner: Owner, stage: StageSpec, inputs: Inputs) -> None:
        """Gives it its one job, at once or when it is READY; builds it first where that was not begun. Takes `inputs`.
        Precondition: the stage was validated."""
        self._owner, self._stage, self._limits, self._job_inputs = owner, stage, stage.limits, inputs
        if not self._spawned:
            self.build()
        if self.state <= State.READY and self._attempt("Prepare", self._prepare) and self.state is State.READY:
            self._give()

    def _prepare(self) -> None:
        """Everything of a job that needs no sandbox: done while init builds, it delays nobody."""
        if self._stage is None or self._streams is None or self._owner is None:
            raise RuntimeError("no job to prepare")
        stage, inputs = self._stage, self._job_inputs
        env = (f"{name}={value}" for name, value in plan.environment(stage).items())
        job_list = wire.encode(plan.job_plan(stage, inputs.sizes), stage.argv, env)
        self._job_fds[JobPart.LIST] = syscalls.sealed_memfd("sandboxd-job", job_list)
        self._streams.connect(self._on_chunk, self._on_stdin_taken)
        if stage.stdin is None:
            self._job_fds[JobPart.STDIN] = self._streams.open_stdin()
        elif inputs.sizes.stdin:
            self._job_fds[JobPart.STDIN] = inputs.open_stdin()
        if inputs.fd >= 0:
            self._job_fds[JobPart.INPUTS] = inputs.fd

    def _give(self) -> None:
        """Hands the prepared job over, under its limits. Precondition: READY."""
        self.state = State.RUNNING
        self._given_ns = time.monotonic_ns()
        if self._attempt("Give", self._hand_over):
            self._after(BUILD_DEADLINE_S, self._on_start_deadline, State.RUNNING)

    def _hand_over(self) -> None:
        self._leaf.set_limits(self._limits.memory_bytes, self._limits.processes + 1)
        if self._limits.disk_bytes != self._inputs.policy.defaults.disk_bytes:
            syscalls.reconfigure_mount(self._tree, write_layer_options(self._limits.disk_bytes))
        parts = sorted(self._job_fds)
        socket.send_fds(self._control, [bytes([sum(parts)])], [self._job_fds[part] for part in parts])
        self._close_job()

    def _close_job(self) -> None:
        self._job_fds.pop(JobPart.INPUTS, None)
        self._job_inputs.close()
        for fd in self._job_fds.values():
            os.close(fd)
        self._job_fds.clear()

    def _attempt(self, step: str, action: Callable[[], None]) -> bool:
        """False when it failed: that is then the sandbox's failure."""
        try:
            action()
        except OSError as error:
            self._fail(StepError(step, str(error.filename or error.strerror), error.errno or 0))
            return False
        return True

    def write_stdin(self, chunk: bytes) -> None:
        """Queues a chunk for the payload. Precondition: it has a job."""
        if self._streams is not None:
            self._streams.write_stdin(chunk)

    def close_stdin(self) -> None:
        """The payload sees the end once it has read what is queued."""
        if self._streams is not None:
            self._streams.close_stdin()

    def pause_output(self, paused: bool) -> None:
        """Back-pressure from the owner."""
        if self._streams is not None and self.state < State.OVER:
            self._streams.pause(paused)

    def _on_stdin_taken(self, count: int) -> None:
        if self._owner is not None:
            self._owner.on_stdin_taken(count)

    def _on_chunk(self, stream: Stream, chunk: bytes) -> None:
        if self._owner is not None:
            self._owner.on_output(stream, chunk)
        if self._streams is not None:
            bound = self._limits.output_bytes * self._inputs.policy.output_kill_factor
            if self._streams.total_bytes[stream] > bound:
                self.end(Ending.OUTPUT)

    # --- reports

    def _on_control(self) -> None:
        try:
            while self._control.fileno() >= 0:
                report = self._reports.read(self._control)
                if report is None:
                    self._on_reports_ended()
                    return
                self._on_report(report)
        except BlockingIOError:
            return
        except (ConnectionError, ProtocolError) as error:
            self._fail(StepError("Report", str(error), errno.EPROTO))
            self._on_reports_ended()

    def _on_reports_ended(self) -> None:
        """Outer and PID 1 are gone, or will say no more; without a pidfd there is nobody whose end to wait for."""
        self._loop.remove_reader(self._control)
        self._reports_ended = True
        if self._pidfd < 0:
            self._fail(StepError("Spawn", "init ended before it made PID 1", errno.ECHILD))

    def _on_outer_ended(self) -> None:
        """Right after PID 1's birth, or without it. It is not in the leaf: nothing but its end is waited for."""
        self._loop.remove_reader(self._outer_fd)
        os.close(self._outer_fd)
        self._outer_fd = -1
        if self.state is State.OVER and self._pidfd < 0:
            self._remove()

    def _on_report(self, report: Report) -> None:
        match report.kind:
            case ReportKind.OUTER if report.fd is not None:
                self._outer_fd = report.fd
                self._watch(self._outer_fd, self._on_outer_ended)
            case ReportKind.PIDFD if report.fd is not None:
                self._pidfd = report.fd
                self._watch(self._pidfd, self._on_init_died)
                if self.state is State.ENDING:
                    self._kill_group()  # asked for while PID 1 was being born
            case ReportKind.TREE if report.fd is not None:
                self._tree = report.fd
            case ReportKind.READY:
                if report.fd is not None:
                    self._denied = DeniedCalls(report.fd, self._workshop.filter_program(self._inputs.policy))
                self._on_part_built(report.kind)
            case ReportKind.HELD:
                self._held = report
                self._on_part_built(report.kind)
            case ReportKind.STARTED:
                self._on_started(report)
            case ReportKind.ENDED:
                self._on_ended(report)
            case ReportKind.NOEXEC:
                self._on_not_executed(report.error)
            case _ if not self._asked_to_die:  # else nobody asks for the step, which takes a whole plan to name
                self._fail(self._step_error(report))

    def _on_part_built(self, part: ReportKind) -> None:
        self._awaited.discard(part)
        if not self._awaited and self.state is State.BUILDING:
            self.state = State.READY
            self._on_built()
            if self._stage is not None:
                self._give()

    def _on_started(self, report: Report) -> None:
        """Limits rest on what is told here, by a process that had the job's files in its hands: it must be possible."""
        if not self._given_ns <= report.exec_ns <= time.monotonic_ns():
            raise ProtocolError("init sent STARTED for another time than since it had its job")
        own_cpu_ns = report.payload_cpu_ns + (self._held.init_cpu_ns if self._held is not None else 0)
        if own_cpu_ns > CPU_UNCHARGED_NS and own_cpu_ns - CPU_UNCHARGED_NS > self._leaf.cpu_usage_ns():
            raise ProtocolError("init sent STARTED with more CPU time than was used")
        self._started = report
        if self.state is State.RUNNING:
            left_ns = self._limits.wall_time_ns - (time.monotonic_ns() - report.exec_ns)
            self._after(left_ns / NANOSECONDS, self._on_wall_limit, State.RUNNING)
            self._plan_cpu_check(0)

    def _on_not_executed(self, number: int) -> None:
        if number in PROGRAM_EXEC_ERRNOS:
            self._exec_errno = number
        else:
            self._started = None
            self._fail(StepError("Exec", self._stage.argv[0] if self._stage else "", number))

    def _on_ended(self, report: Report) -> None:
        """What ended our process before its program began is no deed of the program's. A memory limit that the job's
        files do not fit into may be the reason: the verdict looks at that first."""
        if report.end_ns > time.monotonic_ns():
            raise ProtocolError("init sent ENDED for a time to come")
        self._ended = report
        self._end_ns = report.end_ns
        if self.state < State.RUNNING:
            self._fail(StepError("Build", "the payload's process ended before it had a job", errno.ECHILD))
        elif self.state is State.RUNNING and self._started is None:
            self._fail(StepError("Start", "the payload's process ended before its program began", errno.ECHILD))
        elif self.state is State.RUNNING and report.alone and self._leaf.processes() == 1:
            self._finish()
        else:
            self._kill()

    def _step_error(self, report: Report) -> StepError:
        """The step that init names by its index, in the words of the plan."""
        of_job = report.phase in (Phase.JOB, Phase.EXEC)
        listed = (
            plan.job_plan(self._stage, self._job_inputs.sizes)
            if of_job and self._stage
            else plan.build_plan(self._inputs)
        )
        if report.step >= len(listed):
            return StepError("Init", f"phase {report.phase}", report.error)
        step = listed[report.step].step
        return StepError(step.name, step.subject(), report.error)

    # --- limits

    def _cpu_used_ns(self) -> int:
        """CPU time since execve of the payload and all its descendants: the leaf's, less what was ours."""
        payload_ns = self._started.payload_cpu_ns if self._started is not None else 0
        init = self._ended or self._held
        return max(0, self._leaf.cpu_usage_ns() - payload_ns - (init.init_cpu_ns if init is not None else 0))

    def _plan_cpu_check(self, used_ns: int) -> None:
        """Due when the limit could first be reached, with every core at work: tight, and idle costs nothing."""
        left_s = (self._limits.cpu_time_ns - used_ns) / NANOSECONDS / self._inputs.host.cpus
        idle = used_ns == self._cpu_checked_ns  # it sleeps just below its limit: no need to look so often
        self._cpu_check_s = min(2 * self._cpu_check_s, CPU_CHECK_IDLE_S) if idle else CPU_CHECK_MIN_S
        self._cpu_checked_ns = used_ns
        self._after(max(self._cpu_check_s, left_s), self._on_cpu_check, State.RUNNING)

    def _on_cpu_check(self) -> None:
        used_ns = self._cpu_used_ns()
        if used_ns > self._limits.cpu_time_ns:
            self.end(Ending.CPU_TIME)
        else:
            self._plan_cpu_check(used_ns)

    def _on_wall_limit(self) -> None:
        self.end(Ending.WALL_TIME)

    def _on_oom(self) -> None:
        """v1 only: the kernel ends one process, the rest is ours. The event may come before the kill is counted."""
        if self._leaf.oom_fd is not None:
            os.eventfd_read(self._leaf.oom_fd)
        if self.state is State.RUNNING:
            self._check_oom()

    def _check_oom(self) -> None:
        if self._leaf.oom().kills:
            self.end(Ending.OOM)
        else:
            self._oom_check_s = min(2 * self._oom_check_s, OOM_CHECK_MAX_S)
            self._after(self._oom_check_s, self._check_oom, State.RUNNING)

    def _on_build_deadline(self) -> None:
        self._fail(StepError("Build", f"not ready within {BUILD_DEADLINE_S:g} s", errno.ETIMEDOUT))

    def _on_start_deadline(self) -> None:
        if self._started is None:
            self._fail(StepError("Start", f"the payload did not start within {BUILD_DEADLINE_S:g} s", errno.ETIMEDOUT))

    # --- end

    def end(self, reason: Ending) -> None:
        """Kills the sandbox for `reason`; the first reason stands."""
        if self.state in (State.BUILDING, State.READY, State.RUNNING):
            self._ending = reason
            self._kill()

    def _kill(self) -> None:
        """Ends everything inside at once; the outcome follows when PID 1 has ended. One that is being born is killed
        as soon as it is known: without a pidfd nobody hears of its end."""
        if self.state >= State.OVER:
            return
        if self.state is not State.ENDING:
            self.state = State.ENDING
            self._end_ns = self._end_ns or time.monotonic_ns()
            self._asked_to_die = True
            self._after(KILL_RETRY_S, self._kill_again, State.ENDING)
        self._kill_group()
        if self._pidfd < 0 and (not self._spawned or self._reports_ended):
            self._finish()

    def _kill_group(self) -> None:
        """cgroup.kill reaches all at once. Should it fail (no free descriptor), PID 1 takes its namespace along."""
        try:
            self._leaf.kill()
        except OSError as error:
            log.error("cgroup.kill failed", slot=self._slot, error=str(error))
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _kill_again(self) -> None:
        log.warning("sandbox does not die", slot=self._slot)
        self._kill_group()
        if self._outer_fd >= 0:  # stuck before PID 1 was born
            signal.pidfd_send_signal(self._outer_fd, signal.SIGKILL)
        elif self._pidfd < 0:  # stuck before outer was
            self._workshop.spawner.close()
        self._after(KILL_RETRY_S, self._kill_again, State.ENDING)

    def _fail(self, error: StepError) -> None:
        if self.state >= State.OVER:
            return
        if not self._asked_to_die:  # what fails in one that is being killed is a consequence
            self._failure = failure_of(error)
            log.error("step failed", slot=self._slot, error=str(error))
        self._kill()

    def _on_init_died(self) -> None:
        """With PID 1 all of its pid namespace is gone. Reports that it sent before are read first."""
        self._loop.remove_reader(self._pidfd)
        if self.state < State.OVER:
            self._on_control()
        if self._started is None:
            step = "Start" if self.state is State.RUNNING else "Build"
            self._fail(StepError(step, "PID 1 ended before the program began", errno.ECHILD))
        os.close(self._pidfd)
        self._pidfd = -1
        if self.state < State.OVER:
            self._end_ns = self._end_ns or time.monotonic_ns()
            self._finish()
        else:
            self._remove()

    def _finish(self) -> None:
        """Dead: measure, take files out, answer; then take down. The answer comes first, teardown must not delay it."""
        self.state = State.OVER
        self._cancel_timers()
        try:
            if self._streams is not None:
                self._streams.drain()
            facts = self._facts()
            taking = self._taken()
        except Exception as error:  # whatever it is: the owner gets an answer, and the sandbox is taken down
            self._answer(self._unmeasured(error), Collected())
            return
        if taking is None:
            self._answer(facts, Collected())
        else:
            taking.add_done_callback(lambda _: self._guarded(self._on_collected, facts, taking))

    def _taken(self) -> asyncio.Future[Collected] | None:
        """A thread takes out what the stage leaves, if it leaves something."""
        if self._stage is None or not self._stage.collect or self._ended is None:
            return None
        box, patterns = plan.WORKING_DIRECTORY.lstrip("/"), self._stage.collect
        return self._loop.run_in_executor(
            None, collect, self._tree, box, patterns, COLLECT_FILES_MAX, COLLECT_BYTES_MAX
        )

    def _on_collected(self, facts: Facts, taking: asyncio.Future[Collected]) -> None:
        try:
            collected = taking.result()
        except Exception as error:
            facts, collected = self._unmeasured(error), Collected()
        self._answer(facts, collected)

    def _unmeasured(self, error: Exception) -> Facts:
        log.error("measuring failed", slot=self._slot, exc_info=error)
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        return no_facts(Failure(step="Measure", subject=str(error), errno=number), self._ending)

    def _answer(self, facts: Facts, collected: Collected) -> None:
        self._answered = True
        owner, self._owner = self._owner, None  # whatever comes now is not of his next stage
        try:
            if owner is not None:
                owner.on_over(facts, collected)
        finally:
            # A client that has its next job at hand is served first: teardown then runs while that one's init builds.
            self._after(TEAR_DOWN_DELAY_S, self._tear_down, State.OVER)

    def _facts(self) -> Facts:
        if self._tree < 0 or self._stage is None or self._streams is None:
            return no_facts(self._failure, self._ending)
        oom = self._leaf.oom()
        peak = self._leaf.processes_peak()
        layer = os.fstatvfs(self._tree)
        ran = self._started is not None and self._exec_errno is None
        status = os.waitstatus_to_exitcode(self._ended.status) if self._ended is not None else None
        if status is not None and status >= 0 and not ran:
            status = None  # our process's, not the program's
        exec_ns = self._started.exec_ns if self._started is not None and ran else self._end_ns
        return Facts(
            exit_code=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            exec_errno=self._exec_errno,
            ending=self._ending,
            cpu_time_ns=self._cpu_used_ns() if ran else 0,
            wall_time_ns=max(0, self._end_ns - exec_ns),
            memory_peak_bytes=self._leaf.memory_peak_bytes(),
            processes_peak=None if peak is None else max(0, peak - 1),  # PID 1 is ours
            oom_kills=oom.kills,
            own_limit_hit=oom.own_limit_hits > 0,
            init_died=self._ended is None and not self._asked_to_die,
            disk_full=layer.f_bfree == 0 or layer.f_ffree == 0,
            stdout_bytes=self._streams.total_bytes[Stream.STDOUT],
            stderr_bytes=self._streams.total_bytes[Stream.STDERR],
            denied=self._denied.counted() if self._denied is not None else None,
            failure=self._failure,
        )

    # --- teardown

    def _tear_down(self) -> None:
        """Lets PID 1 go (end of file on its control socket); when it has ended the cgroup and the slot follow."""
        self._torn_down = True
        self._close_job()
        if self._streams is not None:
            self._streams.close()
        # Sandbox and streams know each other: what they hold must not wait for the collector of cycles.
        self._stage = self._streams = None
        if self._denied is not None:
            self._denied.close()
        self._close_tree()
        self._loop.remove_reader(self._control)
        self._control.close()
        self._init_control.close()
        if self._leaf.oom_fd is not None:
            self._loop.remove_reader(self._leaf.oom_fd)
        self._remove_deadline = time.monotonic() + REMOVE_DEADLINE_S
        if self._pidfd < 0:
            self._remove()
        else:
            self._after(KILL_RETRY_S, self._insist, State.OVER)

    def _close_tree(self) -> None:
        """With PID 1 gone this is the last that holds the write layer: the kernel frees it in the close, half a second
        for a hundred thousand files. So a thread does it; close(2) lets others run meanwhile."""
        tree, self._tree = self._tree, -1
        if tree >= 0 and self._pidfd >= 0:
            os.close(tree)
        elif tree >= 0:
            try:
                self._freeing = self._loop.run_in_executor(None, os.close, tree)
            except RuntimeError:  # the loop is at its end, and nobody's limits wait for it
                os.close(tree)

    def _insist(self) -> None:
        log.warning("sandbox outlived its control socket", slot=self._slot)
        self._kill_again()
        self._after(KILL_RETRY_S, self._insist, State.OVER)

    def _remove(self) -> None:
        """rmdir of the cgroup proves that it is empty; only then is the slot free. One that stays is tried again."""
        self._cancel_timers()
        if not self._answered:  # a thread still takes its files out
            return
        if not self._torn_down:  # PID 1 died before it was let go
            self._tear_down()
            return
        if self._outer_fd >= 0:
            self._after(KILL_RETRY_S, self._insist, State.OVER)
            return
        if self._freeing is not None and not self._freeing.done():
            self._after(REMOVE_RETRY_S, self._remove, State.OVER)
            return
        try:
            removed = self._leaf.remove()
        except OSError as error:
            log.error("cgroup cannot be removed", slot=self._slot, error=str(error))
            removed = False
        if removed:
            self.state = State.GONE
            self._workshop.slots.free(self._slot)
            self._on_gone()
        elif time.monotonic() < self._remove_deadline:
            self._after(REMOVE_RETRY_S, self._remove, State.OVER)
        else:
            if not self._is_stuck:
                log.error("cgroup stays, and its uid slot stays taken", slot=self._slot)
            self._is_stuck = True
            self._after(STUCK_RETRY_S, self._remove, State.OVER)

    def _after(self, delay_s: float, callback: Callable[[], None], state: State) -> None:
        """Calls back after `delay_s` if the sandbox is still in `state`. One timer for each callback."""

        def due() -> None:
            if self.state is state:
                self._guarded(callback)

        earlier = self._timers.pop(callback.__name__, None)
        if earlier is not None:
            earlier.cancel()
        self._timers[callback.__name__] = self._loop.call_later(delay_s, due)

    def _watch(self, fd: int | socket.socket, callback: Callable[[], None]) -> None:
        self._loop.add_reader(fd, self._guarded, callback)

    def _guarded(self, callback: Callable[..., None], *arguments: object) -> None:
        """The edge of the event loop: what goes wrong in a callback ends this sandbox, with the reason, and no other.
        Out of descriptors or memory is what can be expected here."""
        try:
            callback(*arguments)
        except Exception as error:
            log.exception("callback failed", slot=self._slot, state=self.state.name)
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            self._fail(StepError(callback.__name__, f"{type(error).__name__}: {error}", number))

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
