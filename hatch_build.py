"""Build hook: compiles the sandbox's PID 1 and the audit's hostile programs into the wheel, static but for `*.so.c`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = "sandboxd/jail/init"
BINARY = "sandboxd/jail/init/sandboxd-init"
PROGRAMS = "sandboxd/audit/programs"

# -O2 is what _FORTIFY_SOURCE needs. Static: inside the sandbox's root there may be no libc. PIE and full RELRO: a bug
# in PID 1 must not find its own code and tables at known, writable addresses.
CFLAGS = (
    "-std=c17 -O2 -Wall -Wextra -Werror -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -D_GNU_SOURCE -fstack-protector-strong "
    "-fstack-clash-protection -fno-strict-aliasing -fPIE"
).split()
LDFLAGS = "-static-pie -Wl,-z,relro,-z,now,-z,noexecstack".split()
# What an attack lays before other programs (LD_PRELOAD): it uses the C library of whoever loads it.
SHARED = "-fPIC -shared".split()


def compile_command(sources: list[Path], output: Path) -> list[str]:
    """The compiler's command line; `CC` names another compiler than gcc."""
    link = SHARED if output.suffix == ".so" else LDFLAGS
    return [os.environ.get("CC", "gcc"), *CFLAGS, *map(str, sources), *link, "-o", str(output)]


class CustomBuildHook(BuildHookInterface[Any]):
    """Adds the compiled programs; the wheel is for one platform, any Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        sources = sorted(Path(self.root, SOURCES).glob("*.c"))
        if not sources:
            raise FileNotFoundError(f"{SOURCES} holds no C source: the sandbox has no PID 1")
        self._scratch = tempfile.mkdtemp(prefix="sandboxd-build-")
        hostile = sorted(Path(self.root, PROGRAMS).glob("*.c"))
        for binary, parts in ((BINARY, sources), *((f"{PROGRAMS}/{source.stem}", [source]) for source in hostile)):
            output = Path(self._scratch, Path(binary).name)
            try:
                subprocess.run(compile_command(parts, output), check=True)
            except FileNotFoundError:
                raise RuntimeError("no C compiler: install gcc and libc6-dev (scripts/bootstrap.sh does)") from None
            subprocess.run(["strip", "--strip-unneeded", str(output)], check=True)
            build_data["force_include"][str(output)] = binary
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
