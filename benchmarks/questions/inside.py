"""What a program pays while it runs in the sandbox: computing, system calls, file access, a compilation.

The same binary times itself by its own CPU time, outside and inside in turn. Bare file access is that of the machine's
own `/usr`; inside it goes through an overlay, which alone doubles it.
"""

from __future__ import annotations

import subprocess

import msgspec

from benchmarks.bare import ENVIRONMENT
from benchmarks.bench import Bench, timed_ms
from benchmarks.report import Bound
from benchmarks.rig import LauncherRig, NotMeasured, require_exit, running_launcher
from benchmarks.stats import growth_percent, ratio, summarize
from sandboxd.spec import InputFile

TITLE = "what a program pays inside: computing, system calls, file access, compilation"
SAMPLES = 100
SPIN_MAX_PERCENT = 1.0
CALL_MAX_NS = 80.0
OPEN_TIMES_MAX = 2.3
COMPILE_MAX_PERCENT = 8.0
FILE = "/usr/lib/os-release"
SOURCE = """
#include <algorithm>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>
int main() {
    std::map<std::string, std::vector<int>> found;
    std::unordered_map<std::string, int> counts;
    for (std::string line, word; std::getline(std::cin, line);)
        for (std::istringstream words(line); words >> word;)
            found[word].push_back(++counts[word]);
    for (auto &[key, values] : found) {
        std::sort(values.rbegin(), values.rend());
        std::cout << key << ' ' << values.front() << std::endl;
    }
}
"""
COMPILER = ("/usr/bin/g++", "-O2", "-o", "program", "main.cc")


def measure(bench: Bench) -> None:
    with running_launcher(bench.scratch) as rig:
        spin, bare_spin = _both(bench, rig, "spin", "20000")
        change = growth_percent(summarize(bare_spin).median, summarize(spin).median)
        bound = Bound(what=f"at most {SPIN_MAX_PERCENT:g} % slower", value=change, limit=SPIN_MAX_PERCENT)
        bench.add("a thousand multiplications", "ns", spin, peer="bare", theirs=bare_spin, bound=bound)
        call, bare_call = _both(bench, rig, "getppid", "1000000")
        dearer_ns = summarize(call).median - summarize(bare_call).median
        bound = Bound(what=f"at most {CALL_MAX_NS:g} ns dearer", value=dearer_ns, limit=CALL_MAX_NS)
        bench.add("getppid, of a million", "ns", call, peer="bare", theirs=bare_call, bound=bound)
        opened, bare_opened = _both(bench, rig, "open", "20000", FILE)
        times = ratio(summarize(opened).median, summarize(bare_opened).median)
        bound = Bound(what=f"at most {OPEN_TIMES_MAX:g} x bare", value=times, limit=OPEN_TIMES_MAX)
        bench.add(f"open, read, close of {FILE}", "ns", opened, peer="bare", theirs=bare_opened, bound=bound)
        _compile(bench, rig)


def _both(bench: Bench, rig: LauncherRig, *args: str) -> tuple[list[float], list[float]]:
    """Nanoseconds of one turn inside, and bare."""
    path = str(bench.programs.path("inside"))
    stage = rig.stage(bench.programs.binary("inside"), *args, cpu_time_s=20, wall_time_s=30)
    inside: list[float] = []
    bare: list[float] = []
    repeats = bench.times(SAMPLES, at_least=3)
    for _ in bench.track(range(repeats), repeats, args[0]):
        outcome, printed = rig.run(stage)
        require_exit(outcome)
        inside.append(float(printed))
        done = subprocess.run([path, *args], capture_output=True, check=True, env=ENVIRONMENT)
        bare.append(float(done.stdout))
    return inside, bare


def _compile(bench: Bench, rig: LauncherRig) -> None:
    policy = rig.client.catalogue().policy("compile")
    stage = msgspec.structs.replace(
        rig.stage(b""),
        name="compile",
        policy="compile",
        argv=COMPILER,
        limits=policy.defaults,
        files=(InputFile(path="main.cc", content=SOURCE.encode()),),
    )
    folder = bench.scratch / "compile"
    folder.mkdir()
    (folder / "main.cc").write_text(SOURCE)
    inside: list[float] = []
    bare: list[float] = []
    repeats = bench.times(SAMPLES, at_least=2)
    for _ in bench.track(range(repeats), repeats, "g++ -O2"):
        outcome, printed = rig.run(stage)
        require_exit(outcome)
        if printed:
            raise NotMeasured(f"the compiler says {printed[:200]!r}")
        inside.append(outcome.facts.wall_time_ns / 1e6)
        wall_ms, _ = timed_ms(lambda: subprocess.run(COMPILER, cwd=folder, check=True, env=ENVIRONMENT))
        bare.append(wall_ms)
    slower = growth_percent(summarize(bare).median, summarize(inside).median)
    bound = Bound(what=f"at most {COMPILE_MAX_PERCENT:g} % slower", value=slower, limit=COMPILE_MAX_PERCENT)
    bench.add("g++ -O2 of a file with seven headers", "ms", inside, peer="bare", theirs=bare, bound=bound)
