"""Threads that are there from the start, and what several do at once for the first time: in a process of its own, since
it may crash.
"""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from sandboxd import threads

FIRST_USE = """
import sys, threading
{prepare}
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(64)
def work():
    barrier.wait()
    {work}
threads = [threading.Thread(target=work) for _ in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
RESULT = '{"verdict":"ok","reason":"","stages":[],"policy":{"name":"p"},"image":{"name":"i"},"isolation":null}'


@pytest.mark.parametrize(
    ("prepare", "work"),
    [
        ("from sandboxd import document", f"document.unpack_result(b'{RESULT}')"),
        (
            "import msgspec\nfrom sandboxd.jail import protocol\nfrom sandboxd.errors import ProtocolError",
            "try: protocol.decode(b'\\x80', protocol.Run)\n    except ProtocolError: pass",
        ),
    ],
    ids=["result", "protocol"],
)
def test_types_are_prepared_before_threads_decode_them(prepare: str, work: str) -> None:
    """msgspec prepares a type at its first use, and two threads at once crash the process (a worker of the API did)."""
    for _ in range(10):
        program = FIRST_USE.format(prepare=prepare, work=work)
        done = subprocess.run(
            [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_all_threads_of_a_pool_run_before_there_is_anything_to_do() -> None:
    before = threading.active_count()
    with threads.started(3, "test"):
        assert threading.active_count() == before + 3
    assert threading.active_count() == before


def test_a_pool_is_whole_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start, made = set(threading.enumerate()), threading.Thread.start, []

    def fail_at_the_third(thread: threading.Thread) -> None:
        if len(made) == 2:
            raise RuntimeError("can't start new thread")
        made.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_at_the_third)
    with pytest.raises(RuntimeError, match="can't start"):
        threads.started(3, "test")
    for thread in made:
        thread.join(10)
    assert set(threading.enumerate()) == before
