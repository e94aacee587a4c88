"""The payload's filter, installed in the kernel: real programs work under it, and what it refuses is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.policy.load import policy_folder, profile_path
from sandboxd.policy.profile import load_profile
from sandboxd.policy.seccomp import compile_profile

RUNNER = Path(__file__).with_name("seccomp_exec.py")


@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("filters")
    paths = []
    for number, program in enumerate(compile_profile(load_profile(profile_path(policy_folder(), "default")))):
        path = folder / f"{number}.bpf"
        path.write_bytes(program)
        paths.append(str(path))
    return paths


def run(filters: list[str], *command: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-I", str(RUNNER), *filters, "--", *command],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"},
    )


def build(folder: Path, source: str) -> str:
    (folder / "probe.c").write_text(source)
    subprocess.run(["/usr/bin/gcc", "-O1", "-pthread", "-o", "probe", "probe.c"], cwd=folder, check=True)
    return "./probe"


def test_a_program_under_the_filter_is_in_filter_mode(filters: list[str], tmp_path: Path) -> None:
    shown = run(filters, "/usr/bin/grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status", cwd=tmp_path)
    assert shown.stdout.split() == ["NoNewPrivs:", "1", "Seccomp:", "2"]


@pytest.mark.parametrize(
    ("compiler", "name", "source"),
    [
        ("/usr/bin/gcc", "main.c", "#include <stdio.h>\nint main(void) { puts(\"hello\"); }\n"),
        ("/usr/bin/g++", "main.cpp", "#include <bits/stdc++.h>\nint main() { std::cout << \"hello\\n\"; }\n"),
    ],
)  # fmt: skip
def test_a_compiler_and_its_program_work(
    filters: list[str], tmp_path: Path, compiler: str, name: str, source: str
) -> None:
    (tmp_path / name).write_text(source)
    compiled = run(filters, compiler, "-O2", "-o", "program", name, cwd=tmp_path)
    assert (compiled.returncode, compiled.stderr) == (0, "")
    assert run(filters, "./program", cwd=tmp_path).stdout == "hello\n"


PYTHON = """
import asyncio, concurrent.futures, multiprocessing, os, socket, subprocess, sys, tempfile, threading, mmap

def square(x): return x * x

if __name__ == "__main__":
    with concurrent.futures.ThreadPoolExecutor(4) as pool: print(sum(pool.map(square, range(10))))
    with multiprocessing.get_context("fork").Pool(2) as pool: print(sum(pool.map(square, range(10))))
    async def echo():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        print(await reader.read()); writer.close(); server.close()
    asyncio.run(echo())
    print(subprocess.run(["/usr/bin/echo", "child"], capture_output=True, text=True).stdout)
    a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1))
    print(socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)[0][4], bool(socket.if_nameindex()))
    with tempfile.TemporaryFile() as file: file.write(b"y"); file.flush(); print(os.fstat(file.fileno()).st_size)
    m = mmap.mmap(-1, 4096); m.madvise(mmap.MADV_DONTNEED); print(len(m))
"""


def test_python_with_threads_processes_sockets_and_files_works(filters: list[str], tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(PYTHON)
    result = run(filters, "/usr/bin/python3", "main.py", cwd=tmp_path)
    assert result.stderr == ""
    assert result.stdout.split() == ["285", "285", "b''", "child", "b'x'", "('127.0.0.1',", "80)", "True", "1", "4096"]


def test_bash_with_pipes_and_jobs_works(filters: list[str], tmp_path: Path) -> None:
    script = "seq 3 | sort -r | tr '\\n' ' '; sleep 0 & wait; ulimit -n 64; ulimit -n; cat <(echo sub); mkfifo f; ls"
    result = run(filters, "/usr/bin/bash", "-c", script, cwd=tmp_path)
    assert (result.stderr, result.stdout.split()) == ("", ["3", "2", "1", "64", "sub", "f"])


NODE = """
const {execSync} = require("child_process"), {Worker} = require("worker_threads");
const net = require("net"), fs = require("fs");
new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", {eval: true}).on("message", m => {
  console.log(m, execSync("echo child").toString().trim());
  const s = net.createServer(c => c.end("hi")).listen(0, "127.0.0.1", () =>
    net.connect(s.address().port).on("data", d => { console.log(d.toString()); s.close(); }));
  fs.readFile("/proc/self/status", () => {});
});
"""


JAVA = """
import java.util.stream.*;
public class Main {
  public static void main(String[] a) throws Exception {
    Thread t = new Thread(() -> System.out.println(IntStream.range(0, 10).parallel().sum())); t.start(); t.join();
    Process p = new ProcessBuilder("/usr/bin/echo", "child").start();
    System.out.println(new String(p.getInputStream().readAllBytes()).trim());
  }
}
"""


# Not installed for the tests, and tried wherever they are there.
RUNTIMES = {
    "node": ([["/usr/bin/node", "-e", NODE]], "42 child\nhi\n"),
    "java": (
        [["/usr/bin/javac", "-J-XX:+UseSerialGC", "Main.java"], ["/usr/bin/java", "-XX:+UseSerialGC", "Main"]],
        "45\nchild\n",
    ),
    "perl": (
        [["/usr/bin/perl", "-e", "print `echo child`; if (fork) { wait; print $? >> 8 } else { exit 7 }"]],
        "child\n7",
    ),
}
INSTALLED = [name for name, (commands, _) in RUNTIMES.items() if all(Path(command[0]).exists() for command in commands)]


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_runtime_with_threads_and_children_works(filters: list[str], tmp_path: Path, runtime: str) -> None:
    commands, expected = RUNTIMES[runtime]
    (tmp_path / "Main.java").write_text(JAVA)
    for command in commands:
        result = run(filters, *command, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == expected


CLONE3 = """
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
static void *work(void *p) { *(int *)p = 42; return p; }
int main(void) {
    struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = 17};
    long r = syscall(SYS_clone3, &args, sizeof args);
    if (r == 0) _exit(0);
    printf("%ld %d ", r, r < 0 ? errno : 0);
    int answer = 0;
    pthread_t t;
    if (pthread_create(&t, 0, work, &answer) == 0) pthread_join(t, 0);
    printf("%d\\n", answer);
}
"""


def test_clone3_is_absent_and_threads_work_all_the_same(filters: list[str], tmp_path: Path) -> None:
    program = build(tmp_path, CLONE3)
    assert run(filters, program, cwd=tmp_path).stdout == "-1 38 42\n"
    control = run([], program, cwd=tmp_path)
    assert control.stdout != "-1 38 42\n", "clone3 is absent without the filter too: the test proves nothing"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="host fact: not an x86_64 machine")
def test_a_32_bit_system_call_ends_the_process(filters: list[str], tmp_path: Path) -> None:
    source = 'int main(void) { int r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); return r <= 0; }\n'
    program = build(tmp_path, source)
    control = run([], program, cwd=tmp_path).returncode
    # A kernel without 32-bit system calls has no such instruction.
    ended = -signal.SIGSYS if control == 0 else -signal.SIGSEGV
    assert run(filters, program, cwd=tmp_path).returncode == ended


ATTEMPTS = {
    "terminal injection with a set upper half": ("libc.ioctl(0, ctypes.c_ulong(0x5412 | 1 << 32), b'x')", 1),
    "a user namespace": ("libc.unshare(0x10000000)", 1),
    "a kernel crypto socket": ("libc.socket(38, 5, 0)", 97),
    "a keyring": ("libc.syscall(250, 0, 0, 0, 0)", 38),
    "a bpf program": ("libc.syscall(321, 0, 0, 0)", 1),
    "io_uring": ("libc.syscall(425, 1, 0)", 38),
    "a core limit of zero": ("libc.setrlimit(4, ctypes.byref((ctypes.c_ulong * 2)(0, 0)))", 1),
    "a syscall that no kernel has yet": ("libc.syscall(1000)", 38),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="host fact: not an x86_64 machine")
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_an_attempt_gets_its_errno(filters: list[str], tmp_path: Path, attempt: str) -> None:
    call, errno = ATTEMPTS[attempt]
    code = f"import ctypes; libc = ctypes.CDLL(None, use_errno=True); print({call}, ctypes.get_errno())"
    assert run(filters, "/usr/bin/python3", "-I", "-c", code, cwd=tmp_path).stdout == f"-1 {errno}\n"


def test_importing_the_package_does_not_import_the_binding() -> None:
    code = "import sys, sandboxd.policy.load, sandboxd.languages; print([m for m in sys.modules if 'seccomp' in m])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
