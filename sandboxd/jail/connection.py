"""One client of the launcher: frames in, frames out, at most one sandbox at a time. Its end of file kills the
sandbox."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import structlog

from sandboxd.catalogue import Catalogue
from sandboxd.errors import InputError, InternalError, ProtocolError
from sandboxd.jail import plan, protocol
from sandboxd.jail.admission import Admission
from sandboxd.jail.collect import Collected
from sandboxd.jail.inputs import Inputs, received
from sandboxd.jail.protocol import (
    BUFFERED_BYTES,
    CHUNK_BYTES,
    COUNT,
    STDIN_WINDOW_BYTES,
    Frames,
    Kind,
    Over,
    Refusal,
    Run,
    frame,
)
from sandboxd.jail.sandbox import Sandbox
from sandboxd.jail.streams import Stream
from sandboxd.result import Ending, Facts, StageOutcome, failure_of, no_facts
from sandboxd.spec import MIB, StageSpec

log = structlog.get_logger()

_OUTGOING_PAUSE_BYTES = 1 * MIB
OUTPUT_DELAY_S = 0.001
_DECODED_TIMES = 2
"""A stage as objects against its message, at most about."""
_STREAM_KINDS = {Stream.STDOUT: Kind.STDOUT, Stream.STDERR: Kind.STDERR}


class Buffered:
    """Bytes that the launcher keeps for all clients together: unfinished frames, stages that wait or run, stdin that no
    program took yet, and answers that are not read."""

    def __init__(self, bound: int = BUFFERED_BYTES) -> None:
        self._bound = bound
        self._bytes = 0

    def add(self, count: int) -> None:
        """Raises ProtocolError, for the client whose bytes these are, when it is too much."""
        self._bytes += count
        if count > 0 and self._bytes > self._bound:
            raise ProtocolError(f"more than {self._bound} bytes of all clients' messages, stages and stdin")


class Connection:
    """Owner of a sandbox on behalf of a client; validates by the launcher's policies, trusts nothing that the client
    says."""

    def __init__(
        self,
        admission: Admission,
        catalogue: Catalogue,
        buffered: Buffered,
        sock: socket.socket,
        on_closed: Callable[[Connection], None],
    ) -> None:
        self._admission = admission
        self._catalogue = catalogue
        self._sock = sock
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._frames = Frames(protocol.TO_LAUNCHER)
        self._buffered = buffered
        self._counted_bytes = 0
        self._outgoing = bytearray()
        self._outgoing_fd = -1
        self._flush_timer: asyncio.TimerHandle | None = None
        self._writing = False
        self._stage: StageSpec | None = None
        self._stage_bytes = 0
        self._descriptors: list[int] = []
        self._inputs: Inputs | None = None
        self._sandbox: Sandbox | None = None
        self._stdin_open = False
        self._early_stdin = bytearray()
        self._window = 0
        self._closed = False
        self._loop.add_reader(self._sock, self._on_readable)

    # --- incoming

    def _on_readable(self) -> None:
        try:
            frames = self._frames.receive(self._sock, self._descriptors)
            if frames is None:
                self.close()
                return
            for kind, body in frames:
                self._on_frame(kind, body)
                if self._closed:  # while it was answered: what else it sent must start nothing
                    return
            if len(self._descriptors) > 1:
                raise ProtocolError("more than one descriptor for a stage")
            self._count_buffered()
        except BlockingIOError:
            return
        except ConnectionError:
            self.close()
        except ProtocolError as error:
            self._cut_off(error)

    def _cut_off(self, error: ProtocolError) -> None:
        log.warning("client cut off", reason=str(error))
        self.close()

    def _count_buffered(self) -> None:
        untaken_stdin = STDIN_WINDOW_BYTES - self._window if self._stage is not None else 0
        held_bytes = self._frames.pending_bytes + len(self._outgoing) + self._stage_bytes + untaken_stdin
        now_bytes = 0 if self._closed else held_bytes
        change, self._counted_bytes = now_bytes - self._counted_bytes, now_bytes
        self._buffered.add(change)

    def _count_or_close(self) -> None:
        """Outside of the client's own messages, whose edge catches what is raised."""
        try:
            self._count_buffered()
        except ProtocolError as error:
            self._cut_off(error)

    def _on_frame(self, kind: Kind, body: bytes | bytearray) -> None:
        match kind:
            case Kind.CATALOGUE if self._stage is None:
                if len(self._outgoing) > _OUTGOING_PAUSE_BYTES:
                    raise ProtocolError("asks, and does not read the answers")
                self._send(Kind.OFFER, protocol.encode(self._catalogue))
            case Kind.RUN if self._stage is None:
                self._on_run(protocol.decode(body, Run), len(body))
            case Kind.STDIN if self._stdin_open:
                self._window -= len(body)
                if self._window < 0:
                    raise ProtocolError(f"more than {STDIN_WINDOW_BYTES} bytes of stdin that were not taken yet")
                self._early_stdin += body
                self._feed_stdin()
            case Kind.STDIN_END if self._stdin_open:
                self._stdin_open = False
                self._feed_stdin()
            case Kind.STDIN | Kind.STDIN_END | Kind.KILL if self._stage is None:
                pass  # crossed with our OUTCOME
            case Kind.KILL:
                self._cancel()
            case _:
                raise ProtocolError(f"{kind.name} does not fit here")

    def _feed_stdin(self) -> None:
        """What came before the stage was admitted waits here."""
        if self._sandbox is not None:
            chunk = bytes(self._early_stdin)
            self._early_stdin.clear()
            self._sandbox.write_stdin(chunk)
            if not self._stdin_open:
                self._sandbox.close_stdin()

    def _on_run(self, run: Run, size: int) -> None:
        try:
            self._inputs = received(run, self._descriptors.pop() if self._descriptors else None)
            self._admission.check(run.stage, run.sizes)
        except InputError as error:
            self._drop_inputs()
            self._send(Kind.REFUSED, protocol.encode(Refusal(field=error.field, message=error.message)))
            return
        self._stage = run.stage
        self._stage_bytes = _DECODED_TIMES * size
        self._stdin_open = run.stage.stdin is None
        self._window = STDIN_WINDOW_BYTES
        self._early_stdin.clear()
        self._admission.admit(self, run.stage)

    # --- sandbox's owner

    def on_admitted(self, sandbox: Sandbox) -> None:
        if self._stage is None or self._inputs is None:
            raise RuntimeError("admitted without a stage")
        self._sandbox = sandbox
        inputs, self._inputs = self._inputs, None
        sandbox.run(self, self._stage, inputs)
        if self._stage is not None and self._stage.stdin is None:  # it did not end at once
            self._feed_stdin()

    def on_stdin_taken(self, count: int) -> None:
        if self._stage is not None and count:
            self._window += count
            self._send(Kind.TAKEN, COUNT.pack(count))
            self._count_or_close()

    def on_output(self, stream: Stream, chunk: bytes) -> None:
        """Sent a moment later: most programs end in it, and their outcome wakes the client anyway."""
        if self._closed:
            return
        self._outgoing += frame(_STREAM_KINDS[stream], chunk)
        if self._writing:
            self._count_or_close()
        elif len(self._outgoing) >= CHUNK_BYTES:
            self._flush()
        elif self._flush_timer is None:
            self._flush_timer = self._loop.call_later(OUTPUT_DELAY_S, self._flush)
        if self._sandbox is not None and len(self._outgoing) > _OUTGOING_PAUSE_BYTES:
            self._sandbox.pause_output(True)

    def on_over(self, facts: Facts, collected: Collected) -> None:
        self._answer(facts, collected)

    def on_failed(self, error: InternalError) -> None:
        """No sandbox could be made at all."""
        self._answer(no_facts(failure_of(error), Ending.NONE), Collected())

    def _answer(self, facts: Facts, collected: Collected) -> None:
        stage, self._stage, self._sandbox, self._stdin_open = self._stage, None, None, False
        self._stage_bytes = 0
        if stage is None:
            raise RuntimeError("an outcome without a stage")
        self._drop_inputs()
        workshop = self._admission.workshop
        policy = workshop.policies[stage.policy]
        outcome = StageOutcome(
            facts=facts,
            limits=stage.limits,
            isolation=plan.isolation(policy, workshop.host, workshop.without),
            policy_digest=policy.digest,
            image_digest=workshop.image.digest,
            files=collected.files,
            files_omitted=collected.omitted,
        )
        if self._closed:
            collected.close()
            return
        self._drop_outgoing_fd()  # of a client that did not read its last outcome
        self._outgoing_fd = collected.fd
        self._send(Kind.OUTCOME, protocol.encode(Over(outcome=outcome, sizes=collected.sizes)))
        self._count_or_close()

    # --- outgoing

    def _send(self, kind: Kind, body: bytes) -> None:
        if self._closed:
            return
        self._outgoing += frame(kind, body)
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        try:
            while self._outgoing:
                del self._outgoing[: self._send_some()]
        except BlockingIOError:
            if not self._writing:
                self._loop.add_writer(self._sock, self._flush)
                self._writing = True
            self._count_or_close()
            return
        except ConnectionError:
            self.close()
            return
        if self._writing:
            self._loop.remove_writer(self._sock)
            self._writing = False
        self._count_or_close()
        if self._sandbox is not None:
            self._sandbox.pause_output(False)

    def _send_some(self) -> int:
        """send(2); a descriptor that waits goes with the first byte."""
        if self._outgoing_fd < 0:
            return self._sock.send(self._outgoing)
        sent = socket.send_fds(self._sock, [self._outgoing], [self._outgoing_fd])
        self._drop_outgoing_fd()
        return sent

    def close(self) -> None:
        """The client is gone, or must go: its sandbox dies with it."""
        if self._closed:
            return
        self._closed = True
        self._count_buffered()
        self._loop.remove_reader(self._sock)
        if self._writing:
            self._loop.remove_writer(self._sock)
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._sock.close()
        self._drop_outgoing_fd()
        if self._stage is not None:
            self._cancel()
        self._drop_inputs()
        self._on_closed(self)

    def _drop_inputs(self) -> None:
        """What no sandbox took."""
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors.clear()

    def _drop_outgoing_fd(self) -> None:
        """It was sent, or nobody is there to get it."""
        if self._outgoing_fd >= 0:
            os.close(self._outgoing_fd)
            self._outgoing_fd = -1

    def _cancel(self) -> None:
        """Whether it waits or runs. Precondition: there is a stage."""
        if self._sandbox is not None:
            self._sandbox.end(Ending.CANCELLED)
        elif self._admission.cancel(self):
            self._answer(no_facts(None, Ending.CANCELLED), Collected())
