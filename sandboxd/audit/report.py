"""An audit as a page for people (Markdown). The same as JSON is `suite.Report` itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sandboxd.audit.corpus import Severity
from sandboxd.audit.judge import NO_FINDING, State
from sandboxd.audit.suite import ALL_WALLS, CONTROL, DEPTH, Report, Row
from sandboxd.jail.plan import LAYERS

OURS = "sandboxd"
NOT_DEFENDED = (
    ("Unknown holes of the kernel behind the calls that are allowed", "the filter makes them fewer, not none"),
    ("Side channels of the processor", "timing of caches, branch predictors, memory bus and power"),
    ("Load", "what runs beside a job can be felt, and slows it down"),
    (
        "What the kernel does in threads of its own",
        "collecting sockets in flight is charged to nobody",
    ),
    ("Counters of the whole host", "three files of /proc/self/net count sockets, buffers and packets of all"),
    ("What the image holds", "a program may read all of /usr, versions of packages among it"),
    (
        "A leaked descriptor of the host's root",
        "with the mount wall off, stat(2), O_PATH, readlink(2), listxattr(2), inotify(7), connect(2) and, for files "
        "that everybody may write, times and extended attributes are open: Landlock has no right for them",
    ),
)
"""What no case claims, and why; SECURITY.md says more."""


WORKED = {State.BROKEN: "worked", State.HELD: "did not", State.FAILED: "unknown"}
"""Of an attack in somebody else's sandbox."""


def markdown(report: Report) -> str:
    """The whole page."""
    if report.against != OURS:
        return "\n".join(_compared(report)) + "\n"
    parts = _head(report), _depth(report), _cases(report), _controls(report), _uncontrolled(report), _tail()
    return "\n".join(line for part in parts for line in part) + "\n"


def summary(report: Report) -> str:
    """One line."""
    counts = Counter(row.state for row in report.rows)
    held = counts.pop(State.HELD, 0)
    others = "".join(f", {count} {state}" for state, count in sorted(counts.items()))
    changes = f"{len(report.changes)} changes of the host"
    cases = [row for row in report.rows if row.walls == ALL_WALLS]
    without = sum(bool(row.uncontrolled) for row in cases)
    changes += f"; {without} of {len(cases)} cases have no control" if without else ""
    return f"{held} of {len(report.rows)} runs held{others}; {changes}; {report.seconds:g} s"


def comparison(report: Report) -> str:
    """One line on another sandbox."""
    counts = Counter(row.state for row in report.rows)
    unknown = f"; of {counts[State.FAILED]} nothing is known" if counts[State.FAILED] else ""
    return f"{counts[State.BROKEN]} of {len(report.rows)} attacks worked in: {report.against}{unknown}"


def _compared(report: Report) -> Iterator[str]:
    yield f"# The audit's programs in: {report.against}"
    yield ""
    yield f"Made by `sandboxd audit --against {report.against}` of sandboxd {report.version} on {report.date},"
    yield f"kernel {report.kernel}, {report.machine}. It is not about sandboxd: these programs ran elsewhere."
    yield ""
    yield f"**{comparison(report)}.**"
    yield ""
    yield "| case | severity | attack | answer |"
    yield "|---|---|---|---|"
    yield from (_line(row, row.severity, WORKED[row.state], row.evidence) for row in report.rows)


def _head(report: Report) -> Iterator[str]:
    yield "# Audit"
    yield ""
    options = f"{' --quick' if report.quick else ''}{' --prepared' if report.prepared else ''}"
    yield f"Made by `sandboxd audit{options}` of sandboxd {report.version} on {report.date}."
    yield ""
    yield "| host | |"
    yield "|---|---|"
    yield f"| kernel | {report.kernel}, {report.machine} |"
    yield f"| processor | {report.cpu} |"
    for name, value in report.isolation.items():
        yield f"| {name.replace('_', ' ')} | {_cell(value)} |"
    yield ""
    yield f"**{summary(report)}.**"
    yield ""
    for change in report.changes:
        yield f"- CHANGED: {_cell(change)}"
    for what in report.unseen:
        yield f"- not looked at: {what}"
    wrong = [row for row in report.rows if row.state not in NO_FINDING]
    if wrong:
        yield "| case | severity | walls | result | evidence |"
        yield "|---|---|---|---|---|"
        yield from (_line(row, row.severity, row.walls, row.state, row.evidence) for row in wrong)
        yield ""


def _depth(report: Report) -> Iterator[str]:
    """Severity by layer taken away: how many cases held of how many that ran."""
    yield "## Depth: one wall taken away"
    yield ""
    yield "Cases that would be an escape, a leak of the host's or a way out: each with that wall off. Of the others"
    yield "those that another wall is meant to stop there."
    yield "In brackets: those of which a control shows that walls decide; the others (a file that is not there, a"
    yield "read-only mount) hold for every right."
    yield ""
    yield "| severity | " + " | ".join(LAYERS) + " |"
    yield "|---" * (len(LAYERS) + 1) + "|"
    for severity in Severity:
        cells = []
        for layer in LAYERS:
            rows = [row for row in report.rows if row.severity == severity and row.walls == f"{DEPTH}: {layer}"]
            held = sum(row.state is State.HELD for row in rows)
            told = sum(row.state is State.NOT_DEFENDED for row in rows)
            decided = sum(bool(row.decided_by) for row in rows)
            open_ = f", {told} not defended" if told else ""
            cells.append(f"{held} of {len(rows)} ({decided}){open_}" if rows else "")
        if any(cells):
            yield f"| {severity} | " + " | ".join(cells) + " |"
    yield ""


def _cases(report: Report) -> Iterator[str]:
    yield "## Cases, all walls on"
    yield ""
    yield "| case | severity | result | answer | from |"
    yield "|---|---|---|---|---|"
    for row in report.rows:
        if row.walls == ALL_WALLS:
            yield _line(row, row.severity, row.state, row.evidence, row.source)
    yield ""


def _controls(report: Report) -> Iterator[str]:
    yield "## Controls: the same attack where nothing stops it"
    yield ""
    yield "`succeeded` shows that the attack is a real one, and which walls it was that stopped it. Where it is"
    yield "`unproven`, this kernel refuses everybody, or another wall stood: nothing is shown."
    yield ""
    yield "| case | walls taken away | result | answer |"
    yield "|---|---|---|---|"
    for row in report.rows:
        if row.walls.startswith(CONTROL):
            yield _line(row, row.walls.partition(": ")[2], row.state, row.evidence)
    yield ""


def _uncontrolled(report: Report) -> Iterator[str]:
    rows = [row for row in report.rows if row.walls == ALL_WALLS and row.uncontrolled]
    yield f"## Cases without a control: {len(rows)}"
    yield ""
    yield "That they can fail is not shown by this page, or only by other cases of their name."
    yield ""
    yield "| why | cases |"
    yield "|---|---|"
    for why in dict.fromkeys(row.uncontrolled for row in rows):
        names = Counter(f"{row.topic}: {row.case.split(' ')[0]}" for row in rows if row.uncontrolled == why)
        yield f"| {_cell(why)} | {', '.join(f'{_cell(name)} ({count})' for name, count in names.items())} |"
    yield ""


def _tail() -> Iterator[str]:
    yield "## What is not defended"
    yield ""
    for what, why in NOT_DEFENDED:
        yield f"- **{what}**: {why}."


def _line(row: Row, *cells: object) -> str:
    return "| " + " | ".join((f"`{_cell(row.case)}`", *(_cell(cell) for cell in cells))) + " |"


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return printable(text).replace("|", "\\|")[:160]


def printable(text: str) -> str:
    """What a program said may hold escape sequences."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
