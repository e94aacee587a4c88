"""A cgroup of its own: under systemd a root process may not write cgroups that systemd has not delegated to it.

Every command that builds sandboxes calls `ensure_delegated` first. It changes the process's cgroup, never its pid:
with `--scope` systemd-run moves itself and then executes the command, so parent-death signals and terminals stay as
they are.

systemd.resource-control(5) Delegate=, systemd-run(1); the mark of a delegated cgroup is its extended attribute
`trusted.delegate` (systemd 237) or `user.delegate` (systemd 251).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sandboxd.errors import HostError

_ALREADY_TRIED = "SANDBOXD_IN_SCOPE"
_UNITS = (".service", ".scope", ".slice")
_ATTRIBUTES = ("trusted.delegate", "user.delegate")


def ensure_delegated(arguments: Sequence[str] | None = None) -> None:
    """Return when this process may manage cgroups below its own; else execute the command anew in a delegated scope.

    `arguments` are those of the `sandboxd` command (default: this process's). Raises HostError when systemd gives no
    scope.
    """
    if not systemd_is_running() or is_delegated(own_cgroup(Path("/proc/self/cgroup").read_text())):
        return
    if os.environ.get(_ALREADY_TRIED):
        raise HostError(
            "cgroup delegation",
            "systemd-run started this process in a scope that it does not own",
            "run it from a unit with Delegate=yes",
        )
    _reexecute(sys.argv[1:] if arguments is None else arguments)


def systemd_is_running() -> bool:
    """Whether PID 1 is systemd: sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def own_cgroup(proc_cgroup: str) -> Path | None:
    """The folder of the cgroup that systemd tracks, from the text of /proc/self/cgroup; None when it is not mounted.

    That is the v2 tree, or on a hybrid host the named v1 hierarchy beside it.
    """
    for line in proc_cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        roots = {"": ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"), "name=systemd": ("/sys/fs/cgroup/systemd",)}
        for root in roots.get(controllers, ()):
            folder = Path(root, path.lstrip("/"))
            if (folder / "cgroup.procs").exists():
                return folder
    return None


def is_delegated(cgroup: Path | None) -> bool:
    """Whether the systemd unit that this cgroup belongs to is delegated to its processes."""
    unit = next((folder for folder in (cgroup, *cgroup.parents) if folder.suffix in _UNITS), None) if cgroup else None
    # user@UID.service is delegated to the user's own systemd: what is right below it is that one's to manage.
    if unit is None or unit.suffix == ".slice" or unit.name.startswith("user@"):
        return False
    return any(_is_marked(unit, attribute) for attribute in _ATTRIBUTES)


def _is_marked(folder: Path, attribute: str) -> bool:
    try:
        return os.getxattr(folder, attribute) == b"1"
    except OSError:
        return False


def _reexecute(arguments: Sequence[str]) -> NoReturn:
    systemd_run = shutil.which("systemd-run", path="/usr/bin:/bin")
    if systemd_run is None:
        raise HostError("cgroup delegation", "systemd is PID 1 and systemd-run is missing", "apt-get install systemd")
    command = [systemd_run, "--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"]
    environment = {**os.environ, _ALREADY_TRIED: "1"}
    os.execve(systemd_run, [*command, sys.executable, "-I", "-m", "sandboxd", *arguments], environment)  # noqa: S606
    # no shell
