"""A chart of a question as SVG: what the table says of it, to look at. It loads and runs nothing when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

import pygal
from pygal.style import Style

from benchmarks.report import Row
from benchmarks.stats import Summary

_WIDTH = 1280
_BAR = 13
"""Height of one, as that of the text beside it."""
_OURS = ("#1e88e5", "#64b5f6", "#bbdefb")
_THEIRS = ("#757575", "#a6a6a6", "#d6d6d6")
_PARTS = ("median", "p95", "p99")
# A background of its own, so that dark pages do not matter.
_STYLE = Style(
    background="#ffffff",
    colors=_OURS,
    value_colors=("#000000",) * len(_OURS),
    opacity="1",
    guide_stroke_color="#e0e0e0",
    major_guide_stroke_color="#e0e0e0",
    font_family="sans-serif",
    title_font_size=15,
    label_font_size=12,
    major_label_font_size=12,
    legend_font_size=12,
    value_font_size=11,
)
_BESIDE = "inline:.text-overlay text.value { text-anchor: start }"


def svg(title: str, rows: Sequence[Row]) -> str:
    """The question's rows, those of each unit in a panel of their own, one below the other."""
    panels = ""
    height = 0
    for unit in dict.fromkeys(row.unit for row in rows):
        panel = _panel(f"{title}, {unit}", [row for row in rows if row.unit == unit])
        panels += f'<g transform="translate(0 {height})">{panel.render()}</g>'
        height += panel.config.height
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{panels}</svg>\n'


def _panel(title: str, rows: Sequence[Row]) -> pygal.HorizontalBar:
    """Three bars for each side of a row; ours once where it is compared with several."""
    sides: dict[tuple[str, str, Summary], str] = {}
    for row in rows:
        sides.setdefault((row.what, "", row.ours), f"{row.what}: sandboxd")
        bound = row.bound
        said = "" if bound is None else f" (bound: {bound.what}: {_number(bound.value)}, {bound.verdict})"
        if row.peer is None:
            sides[row.what, "", row.ours] += said
        elif row.theirs is not None:
            sides[row.what, row.peer, row.theirs] = f"{row.peer}{said}"
    panel = pygal.HorizontalBar(
        title=title,
        x_labels=[*reversed(sides.values())],  # it draws from the bottom up
        width=_WIDTH,
        height=120 + (len(_PARTS) + 1) * _BAR * len(sides),
        style=_STYLE,
        css=["file://style.css", "file://graph.css", _BESIDE],
        explicit_size=True,
        disable_xml_declaration=True,
        truncate_label=-1,
        legend_at_bottom=True,
        legend_at_bottom_columns=len(_PARTS),
        print_values=True,
        print_values_position="top",
        value_formatter=_number,
    )
    panel.add_xml_filter(_without_scripts)
    for index, part in enumerate(_PARTS):
        panel.add(part, [_bar(summary, index, peer) for _, peer, summary in reversed(sides)])
    return panel


def _bar(summary: Summary, index: int, peer: str) -> dict[str, Any] | None:
    """One sample has no percentiles."""
    if index and summary.samples == 1:
        return None
    return {"value": getattr(summary, _PARTS[index]), "style": f"fill: {(_THEIRS if peer else _OURS)[index]}"}


def _number(value: float) -> str:
    return f"{round(value, 2):g}"


def _without_scripts(root: Element) -> Element:
    """Without pygal's tooltips, whose code would come from the network."""
    for parent in [*root.iter()]:
        for script in parent.findall("script"):
            parent.remove(script)
    return root
