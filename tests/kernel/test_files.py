"""Files into a sandbox and out of it: what a program leaves is taken without following any name that it made."""

from __future__ import annotations

import pytest
from jailrig import LauncherUnderTest

MIB = 1 << 20


def test_inputs_arrive_with_their_folders_modes_and_owner(launcher: LauncherUnderTest) -> None:
    files = {"a/b/data": bytes(range(256)), "run": "#!/bin/sh\nstat -c '%n %a %U %s' a a/b a/b/data run\n"}
    ran = launcher.run(("./run",), files=files)
    assert ran.text.splitlines() == [
        "a 755 sandbox 60",
        "a/b 755 sandbox 60",
        "a/b/data 644 sandbox 256",
        f"run 755 sandbox {len(files['run'])}",
    ]


def test_inputs_count_as_memory_and_disk_of_the_job(launcher: LauncherUnderTest) -> None:
    small, big = (launcher.run(("true",), files={"f": bytes(size * MIB)}).facts.memory_peak_bytes for size in (1, 30))
    assert 28 * MIB < big - small < 31 * MIB


def test_names_of_any_alphabet_and_length_go_in_and_come_out(launcher: LauncherUnderTest) -> None:
    names = ["ü.txt", "名前", "-rf", "a b", "x" * 250, "d/e/f/g/h/i/j/k/l/m/n/o/p/q/r"]
    ran = launcher.run(("true",), files=dict.fromkeys(names, b"x"), collect=("**",))
    assert sorted(ran.files) == sorted(names)


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        (("*.txt",), {"a.txt", "b.txt"}),
        (("out/*.txt",), {"out/c.txt"}),
        (("**/*.txt",), {"a.txt", "b.txt", "out/c.txt", "out/deep/d.txt"}),
        (("out/**",), {"out/c.txt", "out/deep/d.txt"}),
        (("a.*", "out/deep/*"), {"a.txt", "out/deep/d.txt"}),
        (("?.txt",), {"a.txt", "b.txt"}),
        (("[b]*",), {"b.txt"}),
        (("nothing",), set()),
    ],
)
def test_patterns_say_what_is_taken(launcher: LauncherUnderTest, patterns: tuple[str, ...], taken: set[str]) -> None:
    program = "mkdir -p out/deep; for f in a.txt b.txt out/c.txt out/deep/d.txt; do echo $f > $f; done"
    ran = launcher.run(("/bin/sh", "-c", program), collect=patterns)
    assert set(ran.files) == taken
    assert all(content == f"{path}\n".encode() for path, content in ran.files.items())


TRAPS = """
import os, socket
os.chdir("/box")
os.symlink("/etc/passwd", "absolute")
os.symlink("../../../../etc/passwd", "relative")
os.symlink("/proc/self/fd/0", "magic")
os.symlink("nowhere", "dangling")
os.symlink("/etc", "folder")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
open("original", "w").write("x")
os.link("original", "hardlink")
open("sparse", "w").truncate(40 << 20)
open(b"not-\\xff-utf8", "w").write("x")
open("new\\nline", "w").write("x")
open("good", "w").write("taken")
"""


def test_only_regular_files_come_out(launcher: LauncherUnderTest) -> None:
    ran = launcher.python(TRAPS, collect=("*",))
    assert ran.verdict == "ok", ran.stderr
    assert ran.files == {"good": b"taken", "main.py": ran.files["main.py"]}
    # Four links to files or nowhere and one to a folder, fifo, socket, two names of one file, sparse, two odd names.
    assert ran.outcome.files_omitted == 12


def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(launcher: LauncherUnderTest) -> None:
    program = "mkdir out; echo x > out/a; rm -r out; ln -s /etc out"
    assert launcher.bash(program, collect=("out/*", "out/**")).files == {}


def test_what_comes_out_is_bounded_in_count_size_and_depth(launcher: LauncherUnderTest) -> None:
    many = launcher.bash("for i in $(seq 400); do : > f$i; done", collect=("f*",))
    assert (len(many.files), many.outcome.files_omitted) == (256, 144)
    large = launcher.bash("head -c 20M /dev/zero > a; head -c 20M /dev/zero > b", collect=("a", "b"))
    assert (set(large.files), large.outcome.files_omitted) == ({"a"}, 1)
    make = 'd=$(printf "$1/%.0s" $(seq $2)); mkdir -p $d; : > ${d}f'
    deep = launcher.bash(f"make() {{ {make}; }}; make d 15; make e 16", collect=("**/f",))
    assert set(deep.files) == {"d/" * 15 + "f"}


def test_a_tree_and_patterns_made_to_be_slow_are_cut_short(launcher: LauncherUnderTest) -> None:
    deep = "/".join("abcdefghijklmno")
    pattern = "/".join(["**"] * 15 + ["x"])
    ran = launcher.bash(f"mkdir -p {deep}; for i in $(seq 500); do : > {deep}/f$i; done", collect=(pattern,) * 32)
    assert ran.verdict == "ok"
    assert ran.files == {}
    assert ran.outcome.files_omitted > 0, "it is said that not all was looked at"


def test_a_folder_of_very_many_names_is_not_read_to_its_end(launcher: LauncherUnderTest) -> None:
    make = "import os\nfor n in range(30_000): os.close(os.open(f'{n:0200}', os.O_CREAT))"
    ran = launcher.python(make, collect=("main.py", "0*"), memory_bytes=512 * MIB, disk_bytes=256 * MIB)
    assert (ran.verdict, ran.files, ran.outcome.files_omitted) == ("ok", {}, 1), ran.stderr
    fewer = launcher.python(make.replace("30_000", "10_000"), collect=("main.py", "0*"), memory_bytes=512 * MIB)
    assert sorted(fewer.files) == [f"{n:0200}" for n in range(256)], "in the order of names"
    assert fewer.outcome.files_omitted == 10_000 - 256 + 1


def test_what_a_daemon_writes_on_is_not_read_while_it_lives(launcher: LauncherUnderTest) -> None:
    program = "echo 1 > f; (while :; do echo 2 > f; rm -f f; ln -s /etc/passwd f; rm -f f; done) & sleep 0.1; exit 0"
    ran = launcher.bash(program, collect=("f",))
    assert all(content in (b"", b"1\n", b"2\n") for content in ran.files.values())
    launcher.await_nothing_left()
