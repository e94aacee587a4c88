"""Compilers run code of the client's too: what they are made to do is contained, ended by a limit, and told as that."""

from __future__ import annotations

import pytest
from jailrig import SCALE, LauncherUnderTest

from sandboxd.execution import run_job
from sandboxd.policy.units import from_edge
from sandboxd.result import Verdict
from sandboxd.spec import InputFile, JobRequest

MAIN = "int main(void) { return 0; }\n"
MEMORY = "killed when it needed more than its 256 MiB"
OUTPUT = "killed after it wrote"


def doubled(first: str, times: int) -> str:
    """A macro `A0`, and others of which each is four of the one before."""
    return f"#define A0 {first}\n" + "".join(f"#define A{n + 1} A{n} A{n} A{n} A{n}\n" for n in range(times))


BOMBS = {
    "macros": ("c", doubled("0,0,0,0", 20) + "int x[] = { A20 };\n" + MAIN, MEMORY),
    "templates": (
        "cpp",
        "template<int N, long M> struct F { static const long v = F<N - 1, 2 * M>::v | F<N - 1, 2 * M + 1>::v; };\n"
        "template<long M> struct F<0, M> { static const long v = M; };\n"
        "int main() { return F<40, 1>::v == 1; }\n",
        MEMORY,
    ),
    "messages": ("c", doubled('_Pragma("message \\"' + 50 * "x" + '\\"")', 9) + "int main(void) { A9 }\n", OUTPUT),
    "itself": ("c", '#include "main.c"\n' * 2 + MAIN, OUTPUT),
    "a device without end": ("c", '#include "/dev/zero"\n' + MAIN, MEMORY),
    "a file of the host in its output": ("c", '__asm__(".incbin \\"/etc/shadow\\"");\n' + MAIN, "does not compile"),
    "an output of 90 GiB": ("c", '__asm__(".data\\n.fill 100000000000, 1, 1\\n.text");\n' + MAIN, "does not compile"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_for_a_compiler_ends_as_a_compile_error_that_says_why(launcher: LauncherUnderTest, bomb: str) -> None:
    language, source, reason = BOMBS[bomb]
    limits = {"cpu_time_s": 5 * SCALE, "wall_time_s": 15 * SCALE, "memory_bytes": 256 << 20}
    with launcher.client() as client:
        catalogue = client.catalogue()
        name = catalogue.language(language).source_name
        request = JobRequest(
            language=language,
            files=(InputFile(path=name, content=source.encode()),),
            compile_limits=from_edge(limits),
        )
        ended = run_job(request, catalogue, client)
    assert ended.judgement is not None
    assert (ended.judgement.verdict, [stage.name for stage in ended.stages]) == (Verdict.COMPILE_ERROR, ["compile"])
    assert reason in ended.judgement.reason
    launcher.await_nothing_left()
