"""The tables a person reads in a terminal. ``rich`` is imported here and nowhere a machine reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memcalc.footprint import Footprint, Held
from memcalc.formats.sheet import Line, Sheet, per_parameter, scale, sheet
from memcalc.formats.sheet import verdict as verdict_line

STYLES = {"fits": "green", "tight": "yellow", "does_not_fit": "red", "unknown": "yellow"}


def console(*, stderr: bool = False) -> Console:
    """A console that colours a terminal only, honours NO_COLOR, and keeps 80 columns through a pipe wide enough for tables."""
    drawn = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not drawn.is_terminal:
        drawn = Console(stderr=stderr, highlight=False, width=max(drawn.width, 120), no_color=True, force_terminal=False)
    return drawn


def render(footprint: Footprint, *, exact: bool = False, explain: bool = False) -> RenderableType:
    """One footprint as a table with a heading, a verdict and remarks."""
    shown = sheet(footprint)
    parts: list[RenderableType] = [Text(shown.heading, style="bold"), Text(shown.about, style="dim"), _body(shown, exact=exact)]
    if shown.verdict:
        assert footprint.fits is not None
        parts.append(Text(shown.verdict, style=STYLES[footprint.fits.verdict]))
    if explain:
        parts.append(explanation(footprint.buffers, exact=exact))
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
    """Every buffer: how many bytes one takes, how many there are, and what they come to."""
    held = list(buffers)
    unit = scale([one.requested * one.times for one in held], exact=exact)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("component")
    table.add_column("buffer", overflow="fold")
    table.add_column("lives", style="dim")
    for name in ("bytes each", "times", unit.unit):
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for one in held:
        where = one.component if one.place == "device" else f"{one.component} ({one.place})"
        table.add_row(
            "" if where == before else where.replace("_", " "), one.name, one.lives,
            f"{one.requested:,}", f"{one.times:,}", unit.text(one.requested * one.times),
        )  # fmt: skip
        before = where
    return table


def render_rows(footprints: Sequence[Footprint], *, exact: bool = False) -> RenderableType:
    """Several footprints side by side, each with its difference to the first."""
    unit = scale([one.states.rounded for one in footprints], exact=exact)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    precisions = len({one.job["training"]["precision"] for one in footprints}) > 1
    table.add_column("optimizer", overflow="fold")
    if precisions:
        table.add_column("precision")
    for name in ("params", "grads", "masters", "states", "peak", "B/param", "to first"):
        table.add_column(name if name != "peak" else f"peak {unit.unit}", justify="right", no_wrap=True)
    if any(one.fits for one in footprints):
        table.add_column("fits")
    first = footprints[0].states.rounded
    for one in footprints:
        parts, peak = one.components, one.states.rounded
        change = "" if one is footprints[0] else f"{(peak - first) / first:+.1%}"
        row = [one.job["training"]["optimizer"], *([one.job["training"]["precision"]] if precisions else [])]
        row += [
            unit.text(size)
            for size in (parts.parameters, parts.gradients, parts.master_parameters, parts.optimizer_states, peak)
        ]
        row += [per_parameter(peak / one.model.num_parameters), change]
        if one.fits:
            row.append(one.fits.verdict.replace("_", " "))
        table.add_row(*row)
    model = footprints[0].model
    return Group(Text(model.name, style="bold"), table, *_shared_remarks(footprints))


def _shared_remarks(footprints: Sequence[Footprint]) -> list[Text]:
    remarks = dict.fromkeys(remark for one in footprints for remark in (*one.warnings, *one.assumptions))
    return [Text(f"· {remark}", style="dim") for remark in remarks]


def verdict_text(footprint: Footprint) -> Text:
    """The verdict alone, in its colour."""
    return Text(verdict_line(footprint), style=STYLES[footprint.fits.verdict] if footprint.fits else "")
