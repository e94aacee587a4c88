"""The measured C programs, compiled when a question first asks for one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sandboxd.errors import HostError

_SOURCES = Path(__file__).parent
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-no-pie", "-s")
_WITHOUT_LIBC = ("-nostdlib", "-ffreestanding", "-fno-stack-protector")
_REMEDY = "apt-get install gcc libc6-dev"
_OWN_FLAGS = {"hello_small": _WITHOUT_LIBC, "waiter": _WITHOUT_LIBC}


class Programs:
    """Static binaries in `folder`, by the name of their source file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """The program `name`. Raises HostError when it cannot be compiled; standard error has the compiler's words."""
        program = self._folder / name
        if not program.exists():
            flags = [*_FLAGS, *_OWN_FLAGS.get(name, ())]
            try:
                subprocess.run(["gcc", *flags, "-o", str(program), str(_SOURCES / f"{name}.c")], check=True)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                raise HostError("gcc", f"{name}.c cannot be compiled: {error}", _REMEDY) from None
        return program

    def binary(self, name: str) -> bytes:
        return self.path(name).read_bytes()
