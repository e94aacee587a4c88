"""The measured C programs, compiled when a question first asks for one."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCES = Path(__file__).parent
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-no-pie", "-s")
_WITHOUT_LIBC = ("-nostdlib", "-ffreestanding", "-fno-stack-protector")
_OWN_FLAGS = {"hello_small": _WITHOUT_LIBC, "waiter": _WITHOUT_LIBC}


class Programs:
    """Static binaries in `folder`, by the name of their source file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """The program `name`. Raises CalledProcessError with the compiler's words on standard error."""
        program = self._folder / name
        if not program.exists():
            flags = [*_FLAGS, *_OWN_FLAGS.get(name, ())]
            subprocess.run(["gcc", *flags, "-o", str(program), str(_SOURCES / f"{name}.c")], check=True)
        return program

    def binary(self, name: str) -> bytes:
        return self.path(name).read_bytes()
