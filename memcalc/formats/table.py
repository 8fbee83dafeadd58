"""The tables a person reads in a terminal. ``rich`` is imported here and nowhere a machine reads."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TextIO, cast

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memcalc.footprint import Footprint, Held
from memcalc.formats.sheet import Line, Scale, Sheet, per_parameter, scale, sheet

PIPE_WIDTH = 120
"""Columns of a table that no terminal bounds."""
NARROW = 100
"""Columns below which a comparison keeps only what differs between its rows."""
_PADDING = re.compile(r"[ \t]+(?=\n)")
STYLES = {"fits": "green", "tight": "yellow", "does_not_fit": "red", "unknown": "yellow"}


class _Trimmed(io.TextIOBase):
    """A stream without the spaces that a table pads its lines with: nobody sees them, and a diff trips over them."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Pass the text on, its lines' ends bare."""
        return self.stream.write(_PADDING.sub("", text))

    def flush(self) -> None:
        """Nothing is held back here."""
        self.stream.flush()


def console(*, stderr: bool = False) -> Console:
    """A console that colours a terminal only and honours NO_COLOR; a pipe is 120 columns wide unless COLUMNS says."""
    drawn = Console(stderr=stderr, highlight=False)
    if drawn.is_terminal:
        return drawn
    stream = _Trimmed(sys.stderr if stderr else sys.stdout)
    width = None if os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=cast(IO[str], stream), highlight=False, width=width, no_color=True, force_terminal=False)


def render(footprint: Footprint, *, exact: bool = False, explain: bool = False) -> RenderableType:
    """One footprint as a table with a heading, a verdict and remarks."""
    shown = sheet(footprint)
    parts: list[RenderableType] = [Text(shown.heading, style="bold"), Text(shown.about, style="dim"), _body(shown, exact=exact)]
    if shown.verdict:
        assert footprint.fits is not None
        parts.append(Text(shown.verdict, style=STYLES[footprint.fits.verdict]))
    if explain:
        parts.append(explanation(footprint.buffers, exact=exact))
        if footprint.outside:
            parts.append(outside(footprint, exact=exact))
    parts += [Padding(Text(f"· {remark}", style="dim"), (0, 0)) for remark in shown.remarks]
    return Group(*parts)


def _body(shown: Sheet, *, exact: bool) -> Table:
    unit = scale([line.size or 0 for line in shown.lines], exact=exact)
    remarks = any(line.remark for line in shown.lines)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("component", no_wrap=False)
    table.add_column(unit.unit, justify="right", no_wrap=True)
    table.add_column("B/param", justify="right", no_wrap=True)
    if remarks:
        table.add_column("", style="dim")
    for line in shown.lines:
        row = [_label(line), unit.text(line.size), per_parameter(line.per_parameter)]
        table.add_row(*row, *([line.remark] if remarks else []), style=_style(line))
    return table


def _label(line: Line) -> str:
    return "  " * line.level + line.label


def _style(line: Line) -> str:
    if line.strong:
        return "bold"
    return "dim" if line.size is None else ""


def explanation(buffers: Iterable[Held], *, exact: bool) -> Table:
    """Every buffer under its component: how many bytes one takes, how many there are, and what they come to."""
    groups: dict[str, list[Held]] = {}
    for one in buffers:
        where = one.component if one.place == "device" else f"{one.component} ({one.place})"
        groups.setdefault(where.replace("_", " "), []).append(one)
    unit = scale([_total(group) for group in groups.values()], exact=exact)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("component and its buffers", overflow="fold")
    table.add_column("lives", style="dim")
    for name in ("bytes each", "times", unit.unit):
        table.add_column(name, justify="right", no_wrap=True)
    for where, group in groups.items():
        table.add_row(where, "", "", "", unit.text(_total(group)), style="bold")
        for one in group:
            each = (f"{one.requested:,}", f"{one.times:,}", unit.text(one.requested * one.times))
            table.add_row(Padding(one.name, (0, 0, 0, 2)), one.lives, *each)
    return table


def outside(footprint: Footprint, *, exact: bool) -> Table:
    """What the process holds beside the allocator's segments, each line with what it rests on, and the sum of all."""
    peak, lines = footprint.peak, footprint.outside
    unit = scale([peak.device_high or peak.device_low or 0], exact=exact)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("on the device", overflow="fold")
    for name in (f"from {unit.unit}", "to"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source", style="dim", overflow="fold")
    rows = [("reserved from the driver", peak.reserved, peak.reserved, "the allocator's replay of the step")]
    rows += [(line.name, line.low, line.high, line.source) for line in lines]
    rows.append(("together", peak.device_low, peak.device_high, ""))
    for name, low, high, source in rows:
        table.add_row(name, unit.text(low), "no known end" if high is None else unit.text(high), source)
    return table


def _total(group: Iterable[Held]) -> int:
    return sum(one.requested * one.times for one in group)


def render_rows(footprints: Sequence[Footprint], *, exact: bool = False, width: int = PIPE_WIDTH) -> RenderableType:
    """Several footprints side by side, each with its difference to the first; fewer columns where there is little width."""
    unit = scale([one.states.rounded for one in footprints], exact=exact)
    rows = [_row(one, footprints[0], unit) for one in footprints]
    dropped = {"params", "grads", "B/param"} if width < NARROW else set()
    if len({row["precision"] for row in rows}) == 1:
        dropped.add("precision")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown = [name for name in rows[0] if name not in dropped]
    for name in shown:
        words = name in ("optimizer", "precision", "fits")
        table.add_column(name, justify="left" if words else "right", no_wrap=name != "optimizer", overflow="fold")
    for row in rows:
        if width < NARROW and len(row["optimizer"]) > 20:
            # a long name breaks after its library rather than anywhere
            row["optimizer"] = row["optimizer"].replace(":", ":\n")
        table.add_row(*(row[name] for name in shown))
    return Group(Text(footprints[0].model.name, style="bold"), table, *_shared_remarks(footprints))


def _row(one: Footprint, first: Footprint, unit: Scale) -> dict[str, str]:
    parts, peak, base = one.components, one.states.rounded, first.states.rounded
    row = {
        "optimizer": one.job["training"]["optimizer"],
        "precision": one.job["training"]["precision"],
        "params": unit.text(parts.parameters),
        "grads": unit.text(parts.gradients),
        "masters": unit.text(parts.master_parameters),
        "states": unit.text(parts.optimizer_states),
        f"peak {unit.unit}": unit.text(peak),
        "B/param": per_parameter(peak / one.model.num_parameters),
        "to first": "" if one is first else f"{(peak - base) / base:+.1%}",
    }
    return {**row, "fits": one.fits.verdict.replace("_", " ")} if one.fits else row


def _shared_remarks(footprints: Sequence[Footprint]) -> list[Text]:
    remarks = dict.fromkeys(remark for one in footprints for remark in (*one.warnings, *one.assumptions))
    return [Text(f"· {remark}", style="dim") for remark in remarks]
