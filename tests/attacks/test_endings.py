"""However a program ends, that is what is told: every exit status, and a wait that nothing but the wall limit ends."""

from __future__ import annotations

import os

from jailrig import SCALE, LauncherUnderTest

from sandboxd.spec import NANOSECONDS


def test_each_of_the_256_exit_statuses_is_told_as_it_is(launcher: LauncherUnderTest) -> None:
    for code in range(256):
        ran = launcher.run(("/bin/sh", "-c", f"exit {code}"))
        assert ran.judgement is not None
        assert (ran.judgement.exit_code, ran.facts.exit_code, ran.facts.signal) == (code, code, None)
        assert ran.verdict == ("runtime_error" if code else "ok")


def test_a_program_that_reads_a_stdin_without_end_is_ended_by_its_wall_limit(launcher: LauncherUnderTest) -> None:
    reads, kept_open = os.pipe()
    limit_s = 0.5 * SCALE
    ran = launcher.run(("/bin/cat",), stdin=None, stdin_fd=reads, wall_time_s=limit_s)
    os.close(reads)
    os.close(kept_open)
    assert ran.verdict == "wall_time_exceeded"
    assert limit_s <= ran.facts.wall_time_ns / NANOSECONDS <= limit_s + 0.25 * SCALE
