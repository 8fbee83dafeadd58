"""What is alive at an instant as tables for a terminal; they fit 80 columns."""

from __future__ import annotations

from typing import cast

from rich import box
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from memcalc.formats.palette import LABELS
from memcalc.formats.sheet import scale
from memcalc.tape.events import Role
from memcalc.timeline.groups import by, shares
from memcalc.timeline.timeline import Life, Moment, Timeline

ROWS = 20
"""Groups that are listed apart; the rest is one row, so that the shares still add up."""


def top_table(timeline: Timeline, most: int, instant: int | None = None, *, exact: bool = False) -> RenderableType:
    """The ``most`` largest buffers alive at an instant, the peak by default, and what the others come to.

    Beside each stand its shape and dtype, under it the module and the operator that made it and the phase it was born in.
    """
    at = timeline.peak if instant is None else timeline.moment(instant)
    lives = timeline.largest(most, at.instant)
    alive = len(timeline.alive(at.instant))
    unit = scale([at.bytes], exact=exact)
    table = _table()
    table.add_column(unit.unit, justify="right", no_wrap=True)
    table.add_column("role, born in", no_wrap=True)
    table.add_column("buffer, shape, dtype, module, operator", overflow="fold")
    for life in lives:
        kind = Text.assemble(LABELS[life.buffer.role], ("\n" + _phase(life.born), "dim"))
        table.add_row(unit.text(life.bytes), kind, _named(life))
    rest = at.bytes - sum(life.bytes for life in lives)
    if rest:
        table.add_row(unit.text(rest), "", f"{alive - len(lives):,} more", style="dim")
    table.add_row(unit.text(at.bytes), "", f"all {alive:,}", style="bold")
    return Stack(Text(f"The largest buffers {_at(timeline, at)}", style="bold"), table)


def by_table(
    timeline: Timeline, how: str, instant: int | None = None, *, exact: bool = False, most: int = ROWS
) -> RenderableType:
    """The bytes of an instant by ``module`` (those that differ only in numbers as one), ``operator`` or ``role``.

    Shares add up to 100 and bytes to the instant's; what is not among the ``most`` largest is one row.

    Raises:
        InputError: another way to group.
    """
    at = timeline.peak if instant is None else timeline.moment(instant)
    groups = by(timeline, how, at.instant, fold=True)
    unit = scale([at.bytes], exact=exact)
    table = _table()
    table.add_column(how, overflow="fold", ratio=1)
    for name in (unit.unit, "share", "buffers"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(_label(how, one.name), one.covers, one.bytes, one.buffers) for one in groups[:most]]
    if rest := groups[most:]:
        rows.append((f"{len(rest):,} more", 1, sum(one.bytes for one in rest), sum(one.buffers for one in rest)))
    for (name, covers, size, buffers), percent in zip(rows, shares(row[2] for row in rows), strict=True):
        label = f"{name}  × {covers}" if covers > 1 else name
        table.add_row(Text(label), unit.text(size), f"{percent:.1f} %", f"{buffers:,}")
    table.add_row("all", unit.text(at.bytes), "100.0 %" if at.bytes else "", f"{sum(row[3] for row in rows):,}", style="bold")
    return Stack(Text(f"By {how} {_at(timeline, at)}", style="bold"), table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def _named(life: Life) -> Text:
    """The buffer's name, shape and dtype, and in a line below the module and operator that made it."""
    one = life.buffer
    shape = "" if one.shape is None else "×".join(map(str, one.shape)) or "scalar"
    made = " · ".join(word for word in (one.module, one.operator) if word)
    return Text.assemble("  ".join(word for word in (one.site, shape, one.dtype) if word), ("\n" + made if made else "", "dim"))


def _phase(moment: Moment) -> str:
    phase = moment.phase.replace("_", " ")
    return f"{phase} {moment.iteration}" if moment.iteration else phase


def _label(how: str, name: str) -> str:
    return LABELS[cast(Role, name)] if how == "role" else name


def _at(timeline: Timeline, at: Moment) -> str:
    """Which instant it is: the peak, or one that was asked for."""
    where = "at the peak" if at.instant == timeline.peak.instant else f"at instant {at.instant:,}"
    said = f"{where}: {at.phase.replace('_', ' ')}"
    return f"{said}, iteration {at.iteration}, {timeline.measure}" if at.iteration else f"{said}, {timeline.measure}"
