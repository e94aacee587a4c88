"""Whatever is wrong with a request is refused with the status of the contract, naming the field and its bound."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from sandboxd.api.body import STRUCTURE_MAX

GOOD: dict[str, Any] = {"language": "python", "source": "print(1)"}
MIB = 1 << 20


def file(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "content": "", **more}


def test_the_rows_below_are_refused_for_what_they_say_alone(api: Any) -> None:
    assert api.post(GOOD).status_code == 202


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"{", "not JSON", id="unfinished"),
        pytest.param(b'{"language": "python",}', "not JSON", id="trailing comma"),
        pytest.param(b'{"language": "python"} x', "not JSON", id="more after the end"),
        pytest.param(b'{"language": "python', "not JSON", id="unfinished string"),
        pytest.param(b'"' + b'\\"' * 500_000, "not JSON", id="unfinished string of escaped quotes"),
        pytest.param(b'{"limits": {"cpu_time_s": NaN}}', "NaN", id="NaN"),
        pytest.param(b'{"limits": {"cpu_time_s": -Infinity}}', "NaN and Infinity", id="Infinity"),
        pytest.param(b'{"language": "python", "language": "c"}', "twice", id="a key twice"),
        pytest.param(b"[" * 1_000_000, "deeper than 32", id="deep arrays"),
        pytest.param(b'{"a":' * 200_000, "deeper than 32", id="deep objects"),
        pytest.param(b'{"env": ' + b"[" * 32 + b"]" * 32 + b"}", "deeper than 32", id="33 levels"),
        pytest.param(b'{"args": [' + b"[]," * 1_000_000 + b"[]]}", f"more than {STRUCTURE_MAX}", id="a million arrays"),
        pytest.param(b'{"source": "\xff"}', "not UTF-8", id="not UTF-8"),
        pytest.param(b'{"source": "\xed\xa0\x80"}', "not UTF-8", id="a surrogate as bytes"),
        pytest.param(json.dumps(GOOD).encode("utf-16"), "not", id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "not JSON", id="byte order mark"),
    ],
)
def test_a_body_that_is_not_json_is_400(api: Any, body: bytes, words: str) -> None:
    answer = api.post(body)
    assert answer.status_code == 400
    assert answer.content_type == "application/problem+json"
    assert answer.json["type"] == "/v1/docs#malformed-body"
    assert words in answer.json["detail"]


def test_32_levels_are_read(api: Any) -> None:
    answer = api.post(b'{"args": [' + b"[" * 30 + b"]" * 30 + b"]}")
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MIB,
        b'{"a":' * (MIB // 5),
        b'"' * MIB,
        b'"' + b"\\" * MIB,
        b"[]" * (MIB // 2),
        b'{"a":' + b"9" * MIB + b"}",
    ],
    ids=["brackets", "objects", "quotes", "backslashes", "pairs", "digits"],
)
def test_a_hostile_megabyte_costs_little(api: Any, body: bytes) -> None:
    begin = time.thread_time()
    answer = api.post(body)
    assert answer.status_code in (400, 422)
    assert time.thread_time() - begin < 0.5


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        pytest.param({"nonsense": 1}, "nonsense", "unknown field", id="unknown field"),
        pytest.param({"artifacts": []}, "artifacts", "unknown field", id="field of later work"),
        pytest.param({"limits": {"cpu_time": 1}}, "limits.cpu_time", "unknown field", id="unknown limit"),
        pytest.param({"language": 3}, "language", "a string", id="number for a string"),
        pytest.param({"args": "x"}, "args", "an array", id="string for an array"),
        pytest.param({"args": ["x", 1]}, "args[1]", "a string", id="number for an argument"),
        pytest.param({"env": {"A": 1}}, "env.A", "a string", id="number for a variable"),
        pytest.param({"env": [["A", "1"]]}, "env", "an object", id="array for an object"),
        pytest.param({"limits": {"processes": "5"}}, "limits.processes", "an integer", id="string for a number"),
        pytest.param({"limits": {"processes": True}}, "limits.processes", "an integer", id="true for a number"),
        pytest.param({"limits": {"processes": 1.5}}, "limits.processes", "an integer", id="fraction for an integer"),
        pytest.param({"limits": {"cpu_time_s": -1}}, "limits.cpu_time_s", "at least", id="negative time"),
        pytest.param({"limits": {"memory_bytes": 10**400}}, "limits.memory_bytes", "at most", id="huge integer"),
        pytest.param({"policy": None}, "policy", "a string", id="null for a string"),
        pytest.param({"command": ["true"]}, "language", "exactly one", id="both language and command"),
        pytest.param({"language": None}, "language", "exactly one", id="neither language nor command"),
        pytest.param({"language": None, "source": None, "command": []}, "command", "empty", id="empty command"),
        pytest.param({"files": [file("main.py")]}, "source", "excludes files", id="source with files"),
        pytest.param({"language": None, "command": ["x"]}, "source", "needs a language", id="source with command"),
        pytest.param({"source": None}, "files", "needs a source", id="language without source"),
        pytest.param({"language": "cobol"}, "language", "offered: bash, c", id="unknown language"),
        pytest.param({"policy": "lax"}, "policy", "offered: base", id="unknown policy"),
        pytest.param({"image": "debian"}, "image", "offered: host", id="unknown image"),
        pytest.param({"limits": {"cpu_time_s": 1e6}}, "limits.cpu_time_s", "at most", id="above the ceiling"),
        pytest.param({"limits": {"memory_bytes": 1 << 40}}, "limits.memory_bytes", "ceiling", id="memory above it"),
        pytest.param(
            {"limits": {"memory_bytes": 64 * MIB, "disk_bytes": 33 * MIB}}, "limits.disk_bytes", "half of memory_bytes",
            id="disk above half of memory",
        ),
        pytest.param({"compile_limits": {"processes": 1}}, "compile_limits", "no compile stage", id="no compiler"),
        pytest.param({"source": "x" * (MIB + 1)}, "source", str(MIB), id="source over the bound"),
        pytest.param({"source": "é" * (MIB // 2 + 1)}, "source", str(MIB), id="source over the bound in bytes"),
        pytest.param({"stdin": "x" * (8 * MIB + 1)}, "stdin", str(8 * MIB), id="stdin over the bound"),
        pytest.param({"args": ["x"] * 257}, "args", "256", id="too many arguments"),
        pytest.param({"args": ["x" * 4097]}, "args[0]", "4096", id="argument too long"),
        pytest.param({"args": ["a\0b"]}, "args[0]", "NUL", id="NUL in an argument"),
        pytest.param({"env": {f"A{i}": "" for i in range(65)}}, "env", "64", id="too many variables"),
        pytest.param({"env": {"A": "x" * 4097}}, "env.A", "4096", id="variable too long"),
        pytest.param({"env": {"A=B": "x"}}, "env.A=B", "'='", id="equals sign in a name"),
        pytest.param({"env": {"A\0": "x"}}, "env.A\\x00", "NUL", id="NUL in a name"),
        pytest.param({"stdin": "###", "stdin_encoding": "base64"}, "stdin", "not base64", id="bad base64 in stdin"),
        pytest.param({"stdin_encoding": "hex"}, "stdin_encoding", "utf8", id="unknown encoding"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_422_and_named(api: Any, change: dict[str, Any], field: str, words: str) -> None:
    check_refused(api.post(GOOD | change), field, words)


@pytest.mark.parametrize(
    ("files", "field", "words"),
    [
        pytest.param([file(f"f{i}") for i in range(10_000)], "files", "256", id="10,000 files"),
        pytest.param([file(f"f{i}") for i in range(257)], "files", "256", id="257 files"),
        pytest.param([file("/etc/passwd")], "files[0].path", "relative", id="absolute"),
        pytest.param([file("a"), file("../b")], "files[1].path", "..", id="above the folder"),
        pytest.param([file("a/../../b")], "files[0].path", "..", id="above the folder, later"),
        pytest.param([file("a//b")], "files[0].path", "empty", id="empty component"),
        pytest.param([file("")], "files[0].path", "empty", id="empty path"),
        pytest.param([file("a\0b")], "files[0].path", "NUL", id="NUL"),
        pytest.param([file("x" * 256)], "files[0].path", "255", id="path too long"),
        pytest.param([file("é" * 128)], "files[0].path", "255", id="path too long in bytes"),
        pytest.param([file("/".join("a" * 17))], "files[0].path", "16", id="too deep"),
        pytest.param([file("a"), file("a")], "files[1].path", "files[0]", id="two of one path"),
        pytest.param([file("a"), file("a/b")], "files[1].path", "files[0]", id="a file that is a folder"),
        pytest.param([file("a/b"), file("a")], "files[1].path", "files[0]", id="a folder that is a file"),
        pytest.param([file("a", content="x=", encoding="base64")], "files[0].content", "base64", id="bad base64"),
        pytest.param([file("a", content="eA==\n", encoding="base64")], "files[0].content", "base64", id="newline"),
        pytest.param([file("a", encoding="latin1")], "files[0].encoding", "utf8", id="unknown encoding"),
        pytest.param([file("a", executable=1)], "files[0].executable", "true or false", id="number for a flag"),
        pytest.param([file("a", mode=0o4755)], "files[0].mode", "unknown field", id="unknown field of a file"),
        pytest.param([{"path": "a"}], "files[0].content", "required", id="no content"),
        pytest.param(["a"], "files[0]", "an object", id="a string for a file"),
    ],
)
def test_files_that_are_wrong_are_422_and_named(api: Any, files: list[Any], field: str, words: str) -> None:
    check_refused(api.post({"language": "python", "files": files}), field, words)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(rb'{"language": "python", "source": "\ud800"}', "source", id="high alone"),
        pytest.param(rb'{"language": "python", "source": "a\udc00b"}', "source", id="low alone"),
        pytest.param(rb'{"language": "python", "args": ["x", "\udfff\ud800"]}', "args[1]", id="the wrong way round"),
        pytest.param(
            rb'{"language": "python", "files": [{"path": "\ud83d", "content": ""}]}', "files[0].path", id="in a path"
        ),
        pytest.param(rb'{"language": "python", "env": {"\ud800": "x"}}', "env.\\ud800", id="in a name"),
    ],
)
def test_a_lone_surrogate_is_422_and_named(api: Any, body: bytes, field: str) -> None:
    check_refused(api.post(body), field, "surrogate")


def test_a_pair_of_surrogates_is_a_character(api: Any) -> None:
    assert api.post(rb'{"language": "python", "source": "print(\"\ud83d\ude00\")"}').status_code == 202


@pytest.mark.parametrize("body", [b"[]", b'"{\\"language\\": \\"python\\"}"', b"1", b"null"])
def test_a_body_that_is_no_object_is_422(api: Any, body: bytes) -> None:
    check_refused(api.post(body), "", "an object")


def test_a_number_that_overflows_is_422(api: Any) -> None:
    answer = api.post(b'{"language": "python", "source": "", "limits": {"cpu_time_s": 1e999}}')
    check_refused(answer, "limits.cpu_time_s", "finite")


@pytest.mark.parametrize("number", ["64.0", "6.4e1", "64"])
def test_an_integer_may_be_written_in_each_way_that_json_knows(api: Any, number: str) -> None:
    body = f'{{"language": "python", "source": "", "limits": {{"processes": {number}}}}}'
    assert api.post(body.encode()).status_code == 202


@pytest.mark.parametrize("number", ["64.5", "1e300", "9007199254740993.0", "-0.5"])
def test_a_fraction_or_what_is_no_longer_exact_is_no_integer(api: Any, number: str) -> None:
    body = f'{{"language": "python", "source": "", "limits": {{"processes": {number}}}}}'
    check_refused(api.post(body.encode()), "limits.processes", "must be an integer")


def test_every_wrong_field_is_named_at_once(api: Any) -> None:
    errors = api.post({"language": 1, "args": [2], "nonsense": 3}).json["errors"]
    assert {each["field"] for each in errors} == {"language", "args[0]", "nonsense"}


def test_a_thousand_wrong_fields_give_a_short_answer(api: Any) -> None:
    answer = api.post({f"x{i}": 1 for i in range(1000)})
    assert answer.status_code == 422
    assert len(answer.json["errors"]) == 20


def test_what_was_sent_is_not_sent_back(api: Any) -> None:
    secret = "S3CR3T-1234567890"
    for body in (
        {"language": "python", "source": secret, "limits": {"processes": secret}},
        {"language": "python", "source": secret, "stdin": secret, "stdin_encoding": "base64"},
        {"language": "python", "files": [file(secret + "/../x", content=secret)]},
        {"language": "python", "source": secret, "env": {"A": secret + "\0"}},
    ):
        answer = api.post(body)
        assert answer.status_code == 422
        assert secret not in answer.text
    assert secret not in api.post(f'{{"source": "{secret}'.encode()).text


@pytest.mark.parametrize("wait", ["x", "-1", "60.5", "61", "nan", "inf", "1e9", ""])
def test_a_wait_out_of_its_bound_is_422(api: Any, wait: str) -> None:
    check_refused(api.post(GOOD, wait=wait), "wait", "")


def test_a_parameter_that_comes_twice_is_422(api: Any) -> None:
    check_refused(api.post(GOOD, wait=["1", "2"]), "wait", "once")


def test_an_unknown_parameter_is_422(api: Any) -> None:
    check_refused(api.post(GOOD, priority="1"), "priority", "unknown field")


def test_a_body_over_the_bound_is_413(api: Any) -> None:
    answer = api.post(b'{"language": "python", "source": "' + b"x" * (16 * MIB) + b'"}')
    assert answer.status_code == 413
    assert str(16 * MIB) in answer.json["detail"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/xml"]
)
def test_a_body_of_another_type_is_415(api: Any, content_type: str) -> None:
    answer = api.client.post("/v1/jobs", data=json.dumps(GOOD), content_type=content_type, headers=api.headers)
    assert answer.status_code == 415
    assert answer.json["type"] == "/v1/docs#unsupported-media-type"


def test_a_compressed_body_is_415(api: Any) -> None:
    headers = api.headers | {"Content-Encoding": "gzip"}
    answer = api.client.post("/v1/jobs", data=b"\x1f\x8b", content_type="application/json", headers=headers)
    assert answer.status_code == 415


def test_a_charset_beside_the_type_is_allowed(api: Any) -> None:
    answer = api.client.post(
        "/v1/jobs", data=json.dumps(GOOD), content_type="application/json; charset=utf-8", headers=api.headers
    )
    assert answer.status_code == 202


def check_refused(answer: Any, field: str, words: str) -> None:
    assert answer.status_code == 422, answer.text
    assert answer.content_type == "application/problem+json"
    assert answer.json["type"] == "/v1/docs#invalid-input"
    assert answer.json["status"] == 422
    found = {each["field"]: each["message"] for each in answer.json["errors"]}
    assert field in found, found
    assert words in found[field]
