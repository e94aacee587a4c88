"""What the payload is: an id of its own, no right in any set, no way to get one back, and three descriptors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from jailrig import PYTHON, LauncherUnderTest

Control = Callable[..., LauncherUnderTest]
NO_RIGHTS = "0" * 16
SHOW_STATUS = """
for line in open("/proc/self/status"):
    print(line.rstrip())
"""
SHOW_IDS = ("/usr/bin/env", "LD_SHOW_AUXV=1")


def status(launcher: LauncherUnderTest) -> dict[str, str]:
    lines = launcher.python(SHOW_STATUS).text.splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def auxiliary_vector(text: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@pytest.mark.parametrize("name", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_every_set_of_capabilities_is_empty(launcher: LauncherUnderTest, control: Control, name: str) -> None:
    assert status(launcher)[name] == NO_RIGHTS
    assert status(control("caps"))[name] != NO_RIGHTS


def test_no_new_privileges_and_the_filter_are_on(launcher: LauncherUnderTest, control: Control) -> None:
    found = status(launcher)
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert status(control("seccomp"))["Seccomp"] == "0"


def test_the_uid_is_one_of_its_own_and_there_are_no_groups(launcher: LauncherUnderTest, control: Control) -> None:
    found = status(launcher)
    assert found["Uid"].split() == ["1000"] * 4
    assert found["Gid"].split() == ["1000"] * 4
    assert found["Groups"] == ""
    assert status(control("uid"))["Uid"].split() == ["0"] * 4


def test_only_the_slots_block_of_ids_is_mapped(launcher: LauncherUnderTest, control: Control) -> None:
    read_map = "print(open('/proc/self/uid_map').read(), open('/proc/self/gid_map').read())"
    numbers = launcher.python(read_map).text.split()
    assert numbers[0::3] == ["0", "0"]
    assert numbers[2::3] == ["65536", "65536"]
    assert control("userns").python(read_map).text.split()[:3] == ["0", "0", "4294967295"]


def setuid_root_program() -> str:
    for path in ("/usr/bin/mount", "/usr/bin/su", "/usr/bin/passwd", "/usr/bin/newgrp"):
        if Path(path).exists() and Path(path).stat().st_mode & 0o4000:
            return path
    raise AssertionError("no setuid program on this host to try")


def test_a_setuid_root_program_of_the_image_runs_without_its_privilege(launcher: LauncherUnderTest) -> None:
    """The loader shows AT_SECURE only where it is 0: of a program that gained rights it shows nothing."""
    program = setuid_root_program()
    shown = auxiliary_vector(launcher.run((program, "--help"), env={"LD_SHOW_AUXV": "1"}).text)
    assert (shown["AT_EUID"], shown["AT_SECURE"]) == ("1000", "0")
    outside = subprocess.run(
        [program, "--help"],
        env={"LD_SHOW_AUXV": "1"},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "AT_SECURE" not in outside.stdout, "outside the same program gains rights"


def test_a_setuid_file_of_its_own_making_changes_nothing(launcher: LauncherUnderTest, control: Control) -> None:
    program = """
    import os, shutil, subprocess
    for folder in ("/box", "/tmp", "/dev/shm"):
        shutil.copy("/usr/bin/env", folder + "/gain")
        try:
            os.chown(folder + "/gain", 0, 0)
        except PermissionError:
            pass
        os.chmod(folder + "/gain", 0o6755)
        print(os.stat(folder + "/gain").st_uid, end=" ")
        shown = subprocess.run([folder + "/gain"], env={"LD_SHOW_AUXV": "1"}, capture_output=True, text=True).stdout
        print([line.split()[1] for line in shown.splitlines() if line.startswith(("AT_EUID", "AT_EGID"))])
    """
    assert launcher.python(program).text == "1000 ['1000', '1000']\n" * 3
    # With every capability a file of root's can be made; nosuid and no_new_privs still take its bits away.
    assert control("caps").python(program).text == "0 ['1000', '1000']\n" * 3


def test_exactly_three_descriptors_are_open_and_none_is_a_file_of_the_host(
    launcher: LauncherUnderTest, control: Control
) -> None:
    program = """
    import os
    opened = [number for number in range(65536) if os.path.lexists(f"/proc/self/fd/{number}")]
    print(opened, [os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in opened])
    """
    assert launcher.python(program, open_files=1024).text == "[0, 1, 2] ['/memfd', 'pipe', 'pipe']\n"
    leaked = control("mount").python(program).text
    assert leaked == "[0, 1, 2, 3] ['/memfd', 'pipe', 'pipe', '/']\n"


def test_its_root_and_working_directory_are_absolute(launcher: LauncherUnderTest) -> None:
    """A working directory outside of the root reads as `(unreachable)/...` (CVE-2024-21626)."""
    ran = launcher.python(
        "import os; print(os.getcwd(), os.readlink('/proc/self/cwd'), os.readlink('/proc/self/root'))"
    )
    assert ran.text == "/box /box /\n"


def test_the_standard_streams_cannot_be_turned_against_a_later_job(launcher: LauncherUnderTest) -> None:
    """stdin is sealed; the pipes' ends are the payload's own and nobody's after it."""
    attack = """
    import errno, os
    for name, act in {
        "write": lambda: os.write(os.open("/proc/self/fd/0", os.O_RDWR), b"x"),
        "truncate": lambda: os.truncate("/proc/self/fd/0", 0),
        "grow": lambda: os.truncate("/proc/self/fd/0", 1 << 20),
    }.items():
        try:
            act()
            print(name, "succeeded")
        except OSError as error:
            print(name, errno.errorcode[error.errno])
    os.lseek(0, 3, os.SEEK_SET)
    os.set_blocking(1, False)
    """
    ran = launcher.python(attack, stdin=b"question")
    assert "succeeded" not in ran.text
    assert len(ran.text.splitlines()) == 3
    again = launcher.python("import os, sys; print(sys.stdin.read(), os.get_blocking(1))", stdin=b"question")
    assert again.text == "question True\n"


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_AUDIT", "GLIBC_TUNABLES", "PYTHONPATH", "BASH_ENV", "LD_LIBRARY_PATH"]
)
def test_a_hostile_environment_reaches_the_payload_alone(launcher: LauncherUnderTest, name: str) -> None:
    """Init gets none of it: a job with such a variable runs, and the launcher's and init's own are empty of it."""
    with launcher.live_python(
        "import os, time; print(os.environ['" + name + "'], flush=True); time.sleep(60)", env={name: "/box/evil-canary"}
    ) as program:
        program.await_output(b"evil-canary\n")
        others = [pid for pid in launcher.sandbox_pids() if b"main.py" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert others, "PID 1 is there"
        for pid in (*others, launcher.process.pid):
            assert b"evil-canary" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_pid_1_is_another_uid_without_rights_or_descriptors_of_value(launcher: LauncherUnderTest) -> None:
    """Seen from the host: what the payload would find if it could take PID 1 over."""
    with launcher.live((PYTHON, "-c", "print('up', flush=True); input()")) as program:
        program.await_output(b"up")
        pids = launcher.sandbox_pids()
        init = next(pid for pid in pids if b"sandboxd-init" in Path(f"/proc/{pid}/cmdline").read_bytes())
        payload = next(pid for pid in pids if pid != init)
        found = status_of(init)
        assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {NO_RIGHTS}
        assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
        assert found["Uid"] != status_of(payload)["Uid"]
        held = {name: os.readlink(f"/proc/{init}/fd/{name}") for name in os.listdir(f"/proc/{init}/fd")}
        kinds = {link.split(":")[0] for link in held.values()}
        assert kinds == {"socket", "anon_inode"}, (held, pids, found["Uid"])


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
