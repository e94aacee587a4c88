"""gunicorn's threaded worker, changed so that a slow client costs a socket and never a thread.

Of its own, that worker gives every new connection a thread at once, reads the request and writes the answer there
without a deadline, and waits in its event loop for clients that do not close: some five hundred connections that send
a byte now and then stop it. Here a connection gets a thread when the head of a request is there, whole, and leaves it
when the answer is made; all else is the event loop's:

    head     bytes arrive, at most `HEAD_MAX_BYTES` and `HEAD_S` after the first of them  -> a thread, or 408, or 431
    answer   what the socket did not take at once; it has to move                         -> head, or linger
    linger   answered for the last time; what still arrives is thrown away, `LINGER_S`    -> closed

When all connections are taken, the one that has been in the loop for longest makes room: who sends his head in one go
and reads his answer is never in it for long. Bodies are read in threads, since who may send one is known there alone;
one that is not there yet may be waited for by a quarter of the threads, and has to move at `RATE_MIN_BYTES_PER_S`. The
body of a client who is turned away is not waited for.

What is overridden are internals of gunicorn 27 (`gunicorn/workers/gthread.py`); it is pinned below 28.
"""

from __future__ import annotations

import contextlib
import errno
import math
import selectors
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from gunicorn.http import errors  # type: ignore[import-untyped]  # gunicorn has no types
from gunicorn.http.parser import RequestParser  # type: ignore[import-untyped]
from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from sandboxd import threads
from sandboxd.api.problems import problem

HEAD_S = 10.0
HEAD_MAX_BYTES = 32 * 1024
LINGER_S = 3.0
BODY_S = 10.0
"""What a body may take, whatever its size; each `RATE_MIN_BYTES_PER_S` of it that arrived is worth a second more."""
SWITCH_INTERVAL_S = 0.0005
ACTIVE_MAX = 8
"""Threads that work at a time; any number may wait for jobs beside them."""
IMPATIENT_S = 0.02
"""How long any thread waits for bytes of a body; for longer a quarter of them may."""
ANSWER_S = 15.0
"""How long a client may take nothing of an answer; the whole of it may take as much more as a body."""
UNSENT_MAX_BYTES = 256 * 1024 * 1024
"""Of all clients together: beyond it, who has been reading for longest is sent away."""
RATE_MIN_BYTES_PER_S = 64 * 1024
_READ_BYTES = 64 * 1024
_WRITE_BYTES = 256 * 1024
_RESET = struct.pack("ii", 1, 0)
_EXPIRY_CHECK_S = 0.25
_STOP_LINGER_S = 2.0

_Start = Callable[..., Any]


class Places(NamedTuple):
    """What the threads of a process share."""

    active: threading.Semaphore
    """Held by a thread that works. More at a time would only take the interpreter from each other and from the loop."""
    patient: threading.Semaphore
    """Held by a thread that waits for a body which is not there."""
    stopping: threading.Event
    """Set once the process was told to stop: nobody is to wait for a job any more."""


class ClientSocket(socket.socket):
    """A client's connection as a thread sees it: what is read has to come in time, and writing never waits."""

    deadline = -math.inf
    """Until then `recv` waits; behind it, it reads what has arrived already."""
    is_patient = False

    def __init__(self, fileno: int, places: Places) -> None:
        super().__init__(fileno=fileno)
        self.places = places
        self.unsent: deque[memoryview] = deque()
        """What the kernel did not take of an answer: the event loop's to send."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Raises TimeoutError when nothing came in time, or so many other bodies are waited for already."""
        left_s = max(0.0, self.deadline - time.monotonic())
        try:
            data = self._recv_within(min(left_s, IMPATIENT_S), size, flags)
        except TimeoutError:
            if left_s <= 0 or not (self.is_patient or self.places.patient.acquire(blocking=False)):
                raise
            self.is_patient = True
            with self.idle():
                data = self._recv_within(left_s, size, flags)
        self.deadline += len(data) / RATE_MIN_BYTES_PER_S
        return data

    def _recv_within(self, timeout_s: float, size: int, flags: int) -> bytes:
        self.settimeout(timeout_s)
        try:
            return super().recv(size, flags)
        except BlockingIOError:
            raise TimeoutError from None

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """While the thread waits for something, another one may work."""
        self.places.active.release()
        try:
            yield
        finally:
            self.places.active.acquire()

    def sendall(self, data: Any, flags: int = 0) -> None:  # noqa: ANN401  # whatever bytes-like socket.socket takes
        """Sends what the kernel takes at once, and keeps the rest."""
        rest = memoryview(data)
        if not self.unsent:
            rest = rest[self.send_some(rest) :]
        if rest:
            self.unsent.append(rest)

    def send_some(self, data: memoryview) -> int:
        """How many bytes the kernel took."""
        with contextlib.suppress(BlockingIOError):
            return self.send(data, socket.MSG_DONTWAIT)
        return 0

    def calm_down(self) -> None:
        """The request is over: whatever it waited for, another one may now."""
        if self.is_patient:
            self.is_patient = False
            self.places.patient.release()

    def reset_at_close(self) -> None:
        """Closed, the kernel would go on offering the client the megabytes that it holds for him."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class Connection(TConn):  # type: ignore[misc]  # gunicorn is untyped
    """One connection, in the event loop or in a thread, never in both."""

    def __init__(self, cfg: Any, sock: ClientSocket, client: Any, server: Any) -> None:  # noqa: ANN401  # gunicorn's
        super().__init__(cfg, sock, client, server)
        self.parser = RequestParser(cfg, sock, client)
        self.initialized = True
        self.head = bytearray()
        self.expires = math.inf
        self.answer_expires = math.inf
        self.comes_again = False
        self.lingers = False

    @property
    def has_head(self) -> bool:
        """Whether the parser has something to decide on: a whole head, or what can never become one."""
        head = self.head
        return b"\r\n\r\n" in head or b"\n\n" in head or (bool(head) and not head[:1].isalpha())


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is untyped
    """The worker process: one event loop for all that waits, and threads for whole requests."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  # gunicorn's
        super().__init__(*args, **kwargs)
        self._parked: dict[Connection, None] = {}
        """What the event loop keeps, in the order in which it came there."""
        self._next_expiry_check = 0.0
        self._places = Places(
            active=threading.BoundedSemaphore(ACTIVE_MAX),
            patient=threading.BoundedSemaphore(max(1, self.cfg.threads // 4)),
            stopping=threading.Event(),
        )

    def handle_exit(self, sig: Any, frame: Any) -> None:  # noqa: ANN401  # gunicorn's
        """SIGTERM. Requests that wait for a job are answered with the job as it is."""
        self._places.stopping.set()
        super().handle_exit(sig, frame)

    def init_process(self) -> None:
        """In the new process. The loop lets go of the interpreter at each call of the kernel: with the usual 5 ms until
        a busy thread gives it back, eight busy ones would leave the loop some fifty calls a second.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """All threads at once: a request that finds none is lost."""
        return threads.started(self.cfg.threads, "request")

    def load_wsgi(self) -> None:
        """The application, told to close connections whose request it did not read."""
        super().load_wsgi()
        self.wsgi: Any = _closing_unread(self.wsgi)

    # The event loop

    def accept(self, listener: Any) -> None:  # noqa: ANN401  # gunicorn's
        """Take a new connection; the one that was in the loop for longest makes room for it."""
        try:
            accepted, client = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                raise
            return
        connection = Connection(self.cfg, ClientSocket(accepted.detach(), self._places), client, listener.getsockname())
        self.nr_conns += 1
        self._park(connection, HEAD_S)
        if self.nr_conns >= self.worker_connections:
            self._make_room()

    def _make_room(self) -> None:
        if oldest := next(iter(self._parked), None):
            self._drop(oldest)

    def _park(self, connection: Connection, patience_s: float, *, writing: bool = False) -> None:
        connection.sock.deadline = -math.inf
        connection.expires = time.monotonic() + patience_s
        self._parked[connection] = None
        if writing:
            self.poller.register(connection.sock, selectors.EVENT_WRITE, lambda _sock: self._on_writable(connection))
        else:
            self.poller.register(connection.sock, selectors.EVENT_READ, lambda _sock: self._on_readable(connection))

    def _unpark(self, connection: Connection) -> None:
        del self._parked[connection]
        self.poller.unregister(connection.sock)

    def _drop(self, connection: Connection) -> None:
        self._unpark(connection)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.nr_conns -= 1
        if connection.sock.unsent:
            connection.sock.unsent.clear()
            with contextlib.suppress(OSError):
                connection.sock.reset_at_close()
        connection.close()

    def _on_readable(self, connection: Connection) -> None:
        if connection not in self._parked:
            return  # it made room for another one that the same round of events brought
        try:
            data = connection.sock.recv(_READ_BYTES)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
        elif not connection.lingers:
            if not connection.head:
                connection.expires = time.monotonic() + HEAD_S
            connection.head += data
            self._look_at_head(connection)

    def _look_at_head(self, connection: Connection) -> None:
        """A whole head goes to a thread; of a parked connection."""
        if connection.has_head:
            self._unpark(connection)
            connection.parser.unreader.unread(bytes(connection.head))
            connection.head.clear()
            self.enqueue_req(connection)
        elif len(connection.head) > HEAD_MAX_BYTES:
            self._refuse(connection, "headers-too-large")

    def _refuse(self, connection: Connection, kind: str) -> None:
        """A last word to a parked connection, as far as its socket takes it without waiting."""
        with contextlib.suppress(OSError):
            connection.sock.send_some(memoryview(_plain(kind)))
        self._unpark(connection)
        self._linger(connection)

    def _linger(self, connection: Connection) -> None:
        """Close in the way of RFC 9112 section 9.6: our side at once, the rest when the client saw the answer. Closed
        with unread bytes, the kernel would send a reset, and the answer would be lost.
        """
        connection.lingers = True
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
        else:
            self._park(connection, LINGER_S)

    def finish_request(self, connection: Connection, future: Any) -> None:  # noqa: ANN401  # gunicorn's
        """A thread is done with the connection: the rest of the answer is sent, then the next request is waited for."""
        connection.sock.calm_down()
        connection.comes_again = not (future.cancelled() or future.exception()) and bool(future.result())
        if not connection.sock.unsent:
            self._after_answer(connection)
            return
        size = sum(map(len, connection.sock.unsent))
        connection.answer_expires = time.monotonic() + ANSWER_S + size / RATE_MIN_BYTES_PER_S
        self._park(connection, ANSWER_S, writing=True)
        while sum(len(part) for each in self._parked for part in each.sock.unsent) > UNSENT_MAX_BYTES:
            self._drop(next(each for each in self._parked if each.sock.unsent))

    def _on_writable(self, connection: Connection) -> None:
        if connection not in self._parked:
            return
        unsent = connection.sock.unsent
        try:
            sent = connection.sock.send_some(unsent[0][:_WRITE_BYTES])
        except OSError:
            self._drop(connection)
            return
        unsent[0] = unsent[0][sent:]
        if not unsent[0]:
            unsent.popleft()
        if sent:
            connection.expires = min(time.monotonic() + ANSWER_S, connection.answer_expires)
        if not unsent:
            self._unpark(connection)
            self._after_answer(connection)

    def _after_answer(self, connection: Connection) -> None:
        if not connection.comes_again:
            self._linger(connection)
            return
        connection.head = bytearray(connection.parser.unreader.take_buffered())
        self._park(connection, self.cfg.keepalive if self.alive else _STOP_LINGER_S)
        if connection.head:
            self._look_at_head(connection)

    def murder_pending(self) -> None:
        """Called in each round of the loop: end what took too long."""
        now = time.monotonic()
        if now < self._next_expiry_check:
            return
        self._next_expiry_check = now + _EXPIRY_CHECK_S
        for connection in [each for each in self._parked if each.expires <= now]:
            if connection.head and not connection.lingers and not connection.sock.unsent:
                self._refuse(connection, "request-timeout")
            else:
                self._drop(connection)

    def murder_keepalived(self, force: bool = False) -> None:
        """Called in each round, with `force` at the worker's end."""
        if force:
            for connection in list(self._parked):
                self._drop(connection)

    def _cap_keepalive(self, deadline: float) -> None:
        """Called when the worker is told to stop: nobody is waited for any longer than that."""
        for connection in self._parked:
            if not connection.sock.unsent:
                connection.expires = min(connection.expires, deadline)

    # A thread

    def handle(self, connection: Connection) -> bool:
        """Answer one request whose head is there; whether the connection may bring another one."""
        with self._places.active:
            return self._handle(connection)

    def _handle(self, connection: Connection) -> bool:
        request = None
        try:
            # The head is there: whoever makes the parser ask for more sent something else.
            connection.sock.deadline = -math.inf
            request = next(connection.parser)
            connection.sock.deadline = time.monotonic() + BODY_S
            return bool(self.handle_request(request, connection))
        except StopIteration:
            return False
        except OSError as error:
            # Gone, or too slow; gunicorn's NoMoreData is one too.
            self.log.debug("a client went away: %s", error)
            if request is None and isinstance(error, TimeoutError):
                self.handle_error(None, connection.sock, connection.client, errors.InvalidRequestLine(""))
            return False
        except Exception as error:  # the thread's edge
            self.handle_error(request, connection.sock, connection.client, error)
            return False

    def handle_error(self, request: Any, sock: ClientSocket, _client: Any, error: Exception) -> None:  # noqa: ANN401
        """Answer what never reached the application: a problem as the API's others, which repeats nothing that was
        sent.
        """
        kind = next((kind for kinds, kind in _REFUSALS if isinstance(error, kinds)), "internal-error")
        if kind == "internal-error":
            self.log.error("request failed outside of the application", exc_info=error)
        with contextlib.suppress(OSError):
            sock.sendall(_plain(kind))


_REFUSALS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((errors.InvalidResponseHeader, errors.InvalidResponseHeaderName), "internal-error"),
    (errors.LimitRequestLine, "uri-too-long"),
    (errors.LimitRequestHeaders, "headers-too-large"),
    (errors.ExpectationFailed, "expectation-failed"),
    (errors.ParseException, "bad-request"),
)
"""What the parser raises, the narrower classes first, and the problem that it is."""


def _plain(kind: str) -> bytes:
    """A problem as the bytes of a whole answer, for where there is no application to make it."""
    response = problem(kind).response()
    head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    return f"HTTP/1.1 {response.status}\r\nConnection: close\r\n{head}\r\n".encode() + response.get_data()


def _closing_unread(application: Callable[[dict[str, Any], _Start], Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The application, with `Connection: close` in its answer when a part of the request's body has not come yet: the
    rest of it would be read as the next request, and is not worth a thread's waiting.
    """

    def call(environ: dict[str, Any], start_response: _Start) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:  # noqa: ANN401  # PEP 3333
            if not _is_read(environ["wsgi.input"], environ["gunicorn.socket"]):
                start_response.__self__.force_close()  # type: ignore[attr-defined]  # gunicorn's Response
            return start_response(status, headers, exc_info)

        return application(environ, start)

    return call


def _is_read(body: Any, sock: ClientSocket) -> bool:  # noqa: ANN401  # gunicorn's Body
    """Whether nothing of a body is left, a little that has arrived and is thrown away here aside."""
    sock.deadline = -math.inf
    try:
        return not body.failed and len(body.read(_READ_BYTES)) < _READ_BYTES
    except (OSError, errors.ParseException):
        return False
