"""A stage's files and stdin on their way: one sealed descriptor, which the client alone can fill and nobody can cut.

The launcher hands it on as it is. Contents never pass through its memory, however big or many the jobs are that wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator

import msgspec

from sandboxd.errors import InputError, ProtocolError
from sandboxd.jail import abi, syscalls
from sandboxd.jail.protocol import INPUT_BYTES, Run
from sandboxd.spec import InputSizes, StageSpec, input_sizes

KEPT_BYTES = 1 << 20
"""More than this is not kept by a client between its stages."""
_NOTHING = memoryview(bytes(KEPT_BYTES))
_NAME = "sandboxd-inputs"
_FIXED = abi.F_SEAL_SHRINK | abi.F_SEAL_GROW
_NOT_WRITABLE = abi.F_SEAL_WRITE | abi.F_SEAL_FUTURE_WRITE
"""Either will do."""


class Inputs:
    """What was received with a stage. The descriptor holds the files one after the other, then stdin; `fd` is -1 where
    all are empty."""

    def __init__(self, sizes: InputSizes, fd: int = -1) -> None:
        """Takes `fd`."""
        self.sizes = sizes
        self.fd = fd

    def open_stdin(self) -> int:
        """stdin alone, as a sealed copy opened for reading; the caller owns it. Precondition: it is not empty."""
        return readable(self.fd, sum(self.sizes.files), self.sizes.stdin)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Outbox:
    """The client's side: what its stages bring goes through one memfd, which is filled anew for each. Its pages are
    there from the second stage on, which costs a quarter of new ones.

    Its size is fixed, and who gets it cannot write: the client fills it through a mapping that is older than the seals
    (F_SEAL_FUTURE_WRITE, fcntl(2)). Precondition: nobody reads a stage's contents any more when the next is packed. Who
    reads them is our own code, before a program's exec, and its descriptor ends there.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._used = 0
        self._room: mmap.mmap | None = None

    @contextlib.contextmanager
    def packed(self, stage: StageSpec) -> Iterator[tuple[Run, int | None]]:
        """The stage without its contents, and these as a descriptor to be sent; None where all are empty. What is
        bigger than the memfd that is kept gets one of its own. Raises OSError."""
        contents = [*(file.content for file in stage.files), stage.stdin or b""]
        sizes = input_sizes(stage)
        bare = msgspec.structs.replace(
            stage,
            files=tuple(msgspec.structs.replace(file, content=b"") for file in stage.files),
            stdin=None if stage.stdin is None else b"",
        )
        run = Run(stage=bare, sizes=sizes)
        if sizes.total == 0:
            self.clear()
            yield run, None
        elif sizes.total <= KEPT_BYTES:
            self._fill(contents)
            yield run, self._fd
        else:
            self.clear()
            fd = syscalls.sealed_memfd(_NAME, contents)
            try:
                yield run, fd
            finally:
                os.close(fd)

    def _fill(self, contents: Iterable[bytes]) -> None:
        if self._room is None:
            self._fd = syscalls.new_memfd(_NAME)
            os.ftruncate(self._fd, KEPT_BYTES)
            self._room = mmap.mmap(self._fd, KEPT_BYTES)
            fcntl.fcntl(self._fd, abi.F_ADD_SEALS, _FIXED | abi.F_SEAL_FUTURE_WRITE | abi.F_SEAL_SEAL)
        offset = 0
        for content in contents:
            self._room[offset : offset + len(content)] = content
            offset += len(content)
        self._clear(offset)
        self._used = offset

    def _clear(self, start: int = 0) -> None:
        if self._room is not None and start < self._used:
            self._room[start : self._used] = _NOTHING[start : self._used]

    def clear(self) -> None:
        """Nothing of the last stage stays."""
        self._clear()
        self._used = 0

    def close(self) -> None:
        """Idempotent; it can be used again."""
        if self._room is not None:
            self._room.close()
            self._room = None
            self._used = 0
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def received(run: Run, fd: int | None) -> Inputs:
    """What came with a RUN message; takes `fd`, also when it raises.

    Raises:
        ProtocolError: the descriptor is missing, can be cut or written to, or does not hold what the message says.
        InputError: more than a stage may have.
    """
    inputs = Inputs(run.sizes, -1 if fd is None else fd)
    try:
        _check(run, inputs)
    except BaseException:
        inputs.close()
        raise
    return inputs


def _check(run: Run, inputs: Inputs) -> None:
    sizes = run.sizes
    if len(sizes.files) != len(run.stage.files) or (run.stage.stdin is None and sizes.stdin):
        raise ProtocolError("the sizes are not those of the stage")
    if any(file.content for file in run.stage.files) or run.stage.stdin:
        raise ProtocolError("contents belong into the descriptor")
    if sizes.total > INPUT_BYTES:
        raise InputError("files", f"files and stdin must be at most {INPUT_BYTES} bytes together, not {sizes.total}")
    if (inputs.fd >= 0) != (sizes.total > 0):
        raise ProtocolError("a descriptor for contents is missing, or comes without any")
    if inputs.fd >= 0:
        try:
            seals = fcntl.fcntl(inputs.fd, abi.F_GET_SEALS)
        except OSError:
            seals = 0
        sealed = seals & _FIXED == _FIXED and seals & _NOT_WRITABLE
        if not sealed or os.fstat(inputs.fd).st_size < sizes.total:
            raise ProtocolError("the descriptor is not sealed, or holds less")


def readable(source: int, offset: int, count: int) -> int:
    """A sealed copy of a part of `source`, opened anew: a description of its own that cannot write."""
    memfd = syscalls.new_memfd("stdin")
    try:
        syscalls.copy(source, memfd, offset, count)
        syscalls.seal(memfd)
        return os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memfd)
