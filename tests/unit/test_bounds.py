"""Paths, arguments and environment of a client are bounded, and an error names the field and the bound."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.bounds import check_args, check_argv, check_env, check_files, check_path, check_patterns
from sandboxd.errors import InputError
from sandboxd.spec import InputFile

GOOD_PATHS = [
    "a",
    "main.py",
    "a/b/c.txt",
    ".hidden",
    "..a",
    "a..",
    "...",
    "with space",
    "tab\tname",
    "-rf",
    "grüße.txt",
    "a\\b",
    "{source}",
    "x" * 255,
    "é" * 127,
    "/".join("abcdefghijklmnop"),
    "~",
    "$HOME",
    "*",
    " ",
    "\r",
    "\x7f",
]
BAD_PATHS = [
    ("", "empty"),
    ("/", "relative"),
    ("/etc/passwd", "relative"),
    ("..", "'..'"),
    ("../a", "'..'"),
    ("a/../b", "'..'"),
    ("a/..", "'..'"),
    (".", "'.'"),
    ("./a", "'.'"),
    ("a//b", "empty"),
    ("a/", "empty"),
    ("a\0b", "NUL"),
    ("a\nb", "newline"),
    ("\ud800", "surrogates"),
    ("x" * 256, "at most 255 bytes long, not 256"),
    ("é" * 128, "at most 255 bytes long, not 256"),
    ("/".join("abcdefghijklmnopq"), "at most 16 levels, not 17"),
]


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_a_clean_relative_path_is_taken(path: str) -> None:
    check_path(path, "path")


@pytest.mark.parametrize(("path", "message"), BAD_PATHS)
def test_any_other_path_is_refused(path: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_files([InputFile(path="fine", content=b""), InputFile(path=path, content=b"")])
    assert caught.value.field == "files[1].path"
    assert message in caught.value.message


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab./\0\n\ud800é"), max_size=20) | st.text(max_size=300))
def test_a_path_that_is_taken_stays_below_its_folder_and_names_one_file(path: str) -> None:
    try:
        check_path(path, "path")
    except InputError:
        return
    parsed = PurePosixPath(path)
    assert not parsed.is_absolute()
    assert ".." not in parsed.parts
    assert str(parsed) == path
    assert len(path.encode()) <= 255
    assert "\0" not in path


def files(*paths: str) -> list[InputFile]:
    return [InputFile(path=path, content=b"") for path in paths]


@pytest.mark.parametrize(
    ("paths", "field", "message"),
    [
        (("a", "b", "a"), "files[2].path", "files[0]"),
        (("a", "a/b"), "files[1].path", "below files[0], which is a file"),
        (("a/b/c", "a"), "files[1].path", "the folder of files[0]"),
        (("a/b/c", "a/b"), "files[1].path", "the folder of files[0]"),
        (("x", "a/b", "a/b/c/d"), "files[2].path", "below files[1], which is a file"),
    ],
)
def test_two_files_in_each_other_s_way_are_refused(paths: tuple[str, ...], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_files(files(*paths))
    assert caught.value.field == field
    assert message in caught.value.message


def test_files_in_one_folder_and_like_names_are_taken() -> None:
    check_files(files("a/b", "a/c", "ab", "a.b", "A/b", "b/a/c", "b/ac"))


def test_256_files_are_taken_and_257_are_not() -> None:
    check_files(files(*(f"f{number}" for number in range(256))))
    with pytest.raises(InputError, match="at most 256 files, not 257"):
        check_files(files(*(f"f{number}" for number in range(257))))
    with pytest.raises(InputError, match="at most 256 files, not 10000"):
        check_files(files("a") * 10_000)


path_part = st.sampled_from("abc")


@settings(deadline=None)
@given(st.lists(st.lists(path_part, min_size=1, max_size=3).map("/".join), max_size=6))
def test_files_are_taken_exactly_when_a_file_system_could_hold_them(paths: list[str]) -> None:
    folders = {path[:at] for path in paths for at in range(len(path)) if path[at] == "/"}
    possible = len(set(paths)) == len(paths) and not folders & set(paths)
    if possible:
        check_files(files(*paths))
    else:
        with pytest.raises(InputError):
            check_files(files(*paths))


@pytest.mark.parametrize(
    ("argv", "field", "message"),
    [
        ((), "command", "must name a program"),
        (("", "x"), "command[0]", "names the program"),
        (("a\0b",), "command[0]", "NUL"),
        (("a", "\udfff"), "command[1]", "surrogates"),
        (("a", "x" * 4097), "command[1]", "at most 4096 bytes long, not 4097"),
        (("a", "é" * 2049), "command[1]", "at most 4096 bytes long, not 4098"),
        (("a",) * 257, "command", "at most 256 entries, not 257"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_command_is_refused(argv: tuple[str, ...], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_argv(argv)
    assert caught.value.field == field
    assert message in caught.value.message


def test_arguments_at_their_bounds_are_taken() -> None:
    check_args(["x" * 4096, "", "é" * 2048, "\n", *["a"] * 252])
    check_argv(["a", *["x"] * 255])
    check_args([])


@pytest.mark.parametrize(
    ("env", "field", "message"),
    [
        ({"": "x"}, "env", "name must not be empty"),
        ({"A=B": "x"}, "env.A=B", "must not contain '='"),
        ({"A\0": "x"}, "env.A\\x00", "NUL"),
        ({"A": "x\0"}, "env.A", "NUL"),
        ({"A": "\ud800"}, "env.A", "surrogates"),
        ({"\ud800": ""}, "env.\\ud800", "surrogates"),
        ({"A": "x" * 4095}, "env.A", "at most 4096 bytes as NAME=VALUE, not 4097"),
        ({"A": "é" * 2048}, "env.A", "not 4098"),
        ({f"N{number}": "" for number in range(65)}, "env", "at most 64 entries, not 65"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "",
)
def test_a_wrong_environment_is_refused(env: dict[str, str], field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_env(env)
    assert caught.value.field == field
    assert message in caught.value.message


def test_an_environment_at_its_bounds_is_taken() -> None:
    check_env({f"N{number}": "" for number in range(63)} | {"A": "x" * 4094})
    check_env({"LD_PRELOAD": "x.so", "lower": "=", "with space": "\n"})


def test_patterns_are_bounded_and_relative() -> None:
    check_patterns(["out/*.txt", "**/*.log", "[ab]?"])
    for pattern in ("/etc/*", "../*", "out//*"):
        with pytest.raises(InputError, match=r"^artifacts\[0\]"):
            check_patterns([pattern])
    with pytest.raises(InputError, match="at most 32 patterns, not 33"):
        check_patterns(["a"] * 33)
