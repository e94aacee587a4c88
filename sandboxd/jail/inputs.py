"""A stage's files and stdin on their way: one sealed descriptor, which the client fills and nobody can change any more.

The launcher hands it on as it is. Contents never pass through its memory, however big or many the jobs are that wait.
"""

from __future__ import annotations

import fcntl
import os

import msgspec

from sandboxd.errors import InputError, ProtocolError
from sandboxd.jail import abi, syscalls
from sandboxd.jail.protocol import INPUT_BYTES, Run
from sandboxd.spec import InputSizes, StageSpec, input_sizes

_SEALS = abi.F_SEAL_SHRINK | abi.F_SEAL_GROW | abi.F_SEAL_WRITE


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


def pack(stage: StageSpec) -> tuple[Run, int | None]:
    """The stage without its contents, and these in a sealed memfd that the caller owns; None where all are empty."""
    contents = [*(file.content for file in stage.files), stage.stdin or b""]
    sizes = input_sizes(stage)
    bare = msgspec.structs.replace(
        stage,
        files=tuple(msgspec.structs.replace(file, content=b"") for file in stage.files),
        stdin=None if stage.stdin is None else b"",
    )
    run = Run(stage=bare, sizes=sizes)
    return run, syscalls.sealed_memfd("sandboxd-inputs", contents) if sizes.total else None


def received(run: Run, fd: int | None) -> Inputs:
    """What came with a RUN message; takes `fd`, also when it raises.

    Raises:
        ProtocolError: the descriptor is missing, can still be changed, or does not hold what the message says.
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
        if seals & _SEALS != _SEALS or os.fstat(inputs.fd).st_size != sizes.total:
            raise ProtocolError("the descriptor is not sealed, or has another size")


def readable(source: int, offset: int, count: int) -> int:
    """A sealed copy of a part of `source`, opened anew: a description of its own that cannot write."""
    memfd = syscalls.new_memfd("stdin")
    try:
        while count > 0:
            copied = os.sendfile(memfd, source, offset, count)
            offset, count = offset + copied, count - copied
        syscalls.seal(memfd)
        return os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memfd)
