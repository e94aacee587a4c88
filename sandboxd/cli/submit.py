"""`sandboxd submit`: run a program on a server, and behave as if it had run here."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

import click
import httpx

from sandboxd.cli.failure import reported
from sandboxd.cli.request import COMMAND_SETTINGS, JobOptions, job_options, read_bounded, read_file
from sandboxd.errors import InputError
from sandboxd.exit_status import CANCELLED_STATUS, OUR_FAULT_STATUS, USAGE_STATUS, exit_status
from sandboxd.guess import guess_language
from sandboxd.instance import Instance
from sandboxd.policy.units import edge_name, edge_value, parse_assignments
from sandboxd.result import Verdict
from sandboxd.spec import WAIT_MAX_S

DEFAULT_URL = "http://127.0.0.1:8080"
_ENDED = ("finished", "cancelled", "failed")
_QUIET = (Verdict.OK, Verdict.RUNTIME_ERROR)
_MARGIN_S = 15.0
_QUOTES = 64
"""A short text is sent as such in any case: it can be read."""


@click.command(context_settings=COMMAND_SETTINGS)
@click.option("--stdin-file", type=click.File("rb"), help="Given to the program; - is this command's own stdin.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's document instead of its output.")
@click.option("--url", envvar="SANDBOXD_URL", default=DEFAULT_URL, show_default=True, help="The server.")
@click.option("--wait", type=click.FloatRange(0), default=300.0, show_default=True, help="Seconds to wait for the end.")
@job_options
@reported
def command(
    options: JobOptions,
    stdin_file: IO[bytes] | None,
    as_json: bool,
    url: str,
    instance: str | None,
    wait: float,
) -> None:
    """Run FILE on a server, print what it prints, and exit with its status.

    The token is SANDBOXD_TOKEN, else that of the instance of this machine.

    \b
    128 + N: signal N ended it.  124: a limit did.  125: the fault is ours.  2: it is the command line's.
    Ctrl-C cancels the job.
    Example:  sandboxd submit --limit cpu_time_s=2 hello.py world
    """
    try:
        with _server(url, instance) as server:
            job = _run(server, _body(server, options, stdin_file), wait)
    except InputError as error:
        raise click.UsageError(str(error)) from None
    except UnicodeEncodeError:
        raise click.UsageError("the file's name and the arguments must be UTF-8, a token ASCII") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise click.UsageError(f"--url: {error}") from None
    except httpx.HTTPError as error:
        _fail(f"no answer from {url}: {error or type(error).__name__} (is `sandboxd serve` running there?)")
    if as_json:
        click.echo(json.dumps(job, indent=2, ensure_ascii=False))
    else:
        _print(job)
    raise SystemExit(_status(job))


def _body(server: httpx.Client, options: JobOptions, stdin_file: IO[bytes] | None) -> dict[str, Any]:
    content = read_file(options.file)
    body: dict[str, Any] = {
        "language": options.language or _guess(server, options.file, content),
        "files": [{"path": options.file.name, **_encoded(content, "content", "encoding")}],
        "args": list(options.args),
        "env": options.variables(),
        "policy": options.policy,
        "limits": _edge(options.limits, "limits"),
        "compile_limits": _edge(options.compile_limits, "compile_limits"),
    }
    if options.image:
        body["image"] = options.image
    if stdin_file:
        body |= _encoded(read_bounded(stdin_file, "stdin"), "stdin", "stdin_encoding")
    return body


@contextmanager
def _server(url: str, instance: str | None) -> Iterator[httpx.Client]:
    token = os.environ.get("SANDBOXD_TOKEN") or _local_token(Instance.from_environment(instance))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=_MARGIN_S, trust_env=False) as client:
        yield client


def _local_token(instance: Instance) -> str | None:
    """The token of this machine's instance, if it may be read: a server without authentication needs none."""
    try:
        return instance.token_path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _guess(server: httpx.Client, file: Path, content: bytes) -> str:
    offered = _json(server.get("/v1/languages"))["languages"]
    return guess_language(file.name, content[:4], {each["name"]: each["source_name"] for each in offered})


def _encoded(content: bytes, field: str, encoding: str) -> dict[str, str]:
    """As text where it is UTF-8 and that is shorter (JSON writes a NUL in six bytes), else as base64."""
    encoded = base64.b64encode(content).decode("ascii")
    with suppress(UnicodeDecodeError):
        text = content.decode("utf-8")
        if len(json.dumps(text, ensure_ascii=False).encode()) <= len(encoded) + _QUOTES:
            return {field: text, encoding: "utf8"}
    return {field: encoded, encoding: "base64"}


def _edge(assignments: tuple[str, ...], field: str) -> dict[str, float | int]:
    internal = parse_assignments(assignments, field)
    return {edge_name(name): edge_value(name, value) for name, value in internal.items()}


def _run(server: httpx.Client, body: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """Post the job and wait for its end. Ctrl-C cancels it."""
    deadline = time.monotonic() + wait_s
    # Without waiting: from here on the job's id is known, and the job can be cancelled.
    job = _json(server.post("/v1/jobs", json=body))
    path = f"/v1/jobs/{job['id']}"
    try:
        while job["state"] not in _ENDED and time.monotonic() < deadline:
            job = _json(_wait(server, path, deadline))
    except KeyboardInterrupt:
        server.delete(path)
        raise SystemExit(CANCELLED_STATUS) from None
    if job["state"] not in _ENDED:
        _fail(f"the job is still {job['state']} after {wait_s:g} s: GET {server.base_url.join(path)}")
    return job


def _wait(server: httpx.Client, path: str, deadline: float) -> httpx.Response:
    wait_s = round(max(0.0, min(float(WAIT_MAX_S), deadline - time.monotonic())), 3)
    return server.get(path, params={"wait": wait_s}, timeout=wait_s + _MARGIN_S)


def _json(response: httpx.Response) -> dict[str, Any]:
    """The answer's document; a problem ends the command with what it says."""
    if response.is_success:
        document: dict[str, Any] = response.json()
        return document
    try:
        problem = response.json()
        lines = [f"{each['field']}: {each['message']}" for each in problem.get("errors", [])] or [
            problem["detail"].removesuffix(".")
        ]
    except (ValueError, KeyError, TypeError):
        lines = [f"{response.status_code} {response.reason_phrase}"]
    if response.status_code == httpx.codes.UNAUTHORIZED:
        lines.append("set SANDBOXD_TOKEN to what `sudo sandboxd token show` prints on the server")
    _fail("; ".join(lines), USAGE_STATUS if response.is_client_error else OUR_FAULT_STATUS)


def _print(job: dict[str, Any]) -> None:
    if job["stages"]:
        last = job["stages"][-1]
        # What a compiler prints is about the program, not from it.
        output = sys.stderr.buffer if last["name"] == "compile" else sys.stdout.buffer
        _write(output, last, "stdout")
        _write(sys.stderr.buffer, last, "stderr")
    if job["verdict"] not in _QUIET:
        click.echo(f"sandboxd: {job['reason'] or job['state']}", err=True)


def _write(output: Any, stage: dict[str, Any], name: str) -> None:  # noqa: ANN401  # a binary file
    text: str = stage[name]
    data = base64.b64decode(text) if stage[f"{name}_encoding"] == "base64" else text.encode("utf-8")
    gap: int | None = stage[f"{name}_gap_at_bytes"]
    if gap is None:
        output.write(data)
    else:
        notice = f"\n[... {stage[f'{name}_dropped_bytes']} bytes of {name} left out ...]\n"
        output.write(data[:gap] + notice.encode() + data[gap:])
    output.flush()


def _status(job: dict[str, Any]) -> int:
    if job["state"] == "failed":
        return OUR_FAULT_STATUS
    if not job["stages"]:
        return CANCELLED_STATUS
    last = job["stages"][-1]
    verdict = None if last["verdict"] is None else Verdict(last["verdict"])
    return exit_status(verdict, last["exit_code"], last["signal"])


def _fail(message: str, status: int = OUR_FAULT_STATUS) -> NoReturn:
    click.echo(f"sandboxd: {message}", err=True)
    raise SystemExit(status)
