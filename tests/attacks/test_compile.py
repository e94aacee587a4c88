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
    "an assembler's repetition": ("c", '__asm__(".rept 1000000000\\n nop\\n .endr");\n' + MAIN, MEMORY),
    "an assembler's sections": (
        "c",
        '__asm__(".altmacro\\n .macro s n\\n .section .s\\\\n,\\"a\\"\\n .long 1\\n .endm\\n .set i,0\\n"\n'
        '        ".rept 3000000\\n s %i\\n .set i,i+1\\n .endr\\n .text");\n' + MAIN,
        MEMORY,
    ),
    "an assembler's device without end": ("c", '__asm__(".include \\"/dev/zero\\"");\n' + MAIN, MEMORY),
    "a constant": (
        "cpp",
        "constexpr long f(long n) { long s = 0; for (long i = 0; i < n; i++) s += i; return s; }\n"
        "constexpr long x = f(1L << 60);\nint main() { return x == 1; }\n",
        "does not compile",
    ),
    "an alignment of 1 GiB": (
        "c",
        '__asm__(".data\\n .balign 0x40000000\\n .long 1\\n .text");\n' + MAIN,
        "does not compile",
    ),
    "an output of 90 GiB": ("c", '__asm__(".data\\n.fill 100000000000, 1, 1\\n.text");\n' + MAIN, "does not compile"),
}


INLINED = (
    "extern int g(int);\n#define INLINE static inline __attribute__((always_inline)) int\n"
    "INLINE f0(int x) { return g(x) + g(x + 1); }\n"
    + "".join(
        f"INLINE f{n + 1}(int x) {{ return f{n}(x) + f{n}(x + 1) + f{n}(x + 2) + f{n}(x + 3); }}\n" for n in range(13)
    )
    + "int g(int x) { return x; }\nint main(void) { return f13(1); }\n"
)
HOLE = "SECTIONS { . = 0x10000; .text : { *(.text*) } .data : { *(.data*) . = . + 0x10000000000; } }\n"
OWN_FLAGS = {
    "link-time optimisation": (("gcc", "-O2", "-flto", "main.c"), {"main.c": INLINED}, "memory_exceeded"),
    "a linker script with a hole of 1 TiB": (
        ("gcc", "-nostdlib", "-static", "-T", "script.ld", "main.c"),
        {"main.c": "int x = 1;\nvoid _start(void) {}\n", "script.ld": HOLE},
        "runtime_error",
    ),
}


@pytest.mark.parametrize("bomb", OWN_FLAGS)
def test_a_compiler_that_is_called_with_flags_of_the_clients_is_a_program_like_any_other(
    launcher: LauncherUnderTest, bomb: str
) -> None:
    command, files, verdict = OWN_FLAGS[bomb]
    ran = launcher.run(command, files=files, cpu_time_s=10 * SCALE, wall_time_s=20 * SCALE, memory_bytes=256 << 20)
    assert ran.verdict == verdict, ran.stderr[-500:]
    launcher.await_nothing_left()


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
