"""Threads that are there from the start, and what several do at once for the first time: in a process of its own, since
it may crash.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

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


def test_the_thread_that_worked_last_works_next() -> None:
    """So that of many threads few are ever used by few clients."""
    with threads.started(8, "test") as pool:
        time.sleep(0.1)
        names = {pool.submit(lambda: threading.current_thread().name).result() for _ in range(100)}
    assert len(names) <= 2, "one may not be back yet"


def test_all_that_is_given_is_done_in_its_order_and_by_all() -> None:
    done: list[int] = []
    with threads.started(4, "test") as pool:
        together = threading.Barrier(4)
        list(pool.map(lambda _: together.wait(10), range(4)))
        with threads.started(1, "one") as one:
            list(one.map(done.append, range(1000)))
        waiting = [pool.submit(time.sleep, 0.01) for _ in range(100)]
    assert done == list(range(1000))
    assert all(future.done() for future in waiting)


def test_what_waits_is_cancelled_when_a_pool_is_told_so() -> None:
    go = threading.Event()
    pool = threads.started(1, "test")
    running, waiting = pool.submit(go.wait, 10), pool.submit(go.wait, 10)
    while not running.running():
        time.sleep(0.001)
    pool.shutdown(wait=False, cancel_futures=True)
    go.set()
    assert running.result() is True
    assert waiting.cancelled()


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
