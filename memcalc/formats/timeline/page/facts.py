"""What no script draws: the tiles, the job, its components and what was assumed. Every word is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from memcalc.footprint import Footprint
from memcalc.formats.sheet import per_parameter, scale, sheet
from memcalc.timeline.timeline import Moment, Timeline
from memcalc.units import format_gib

WIDE, LONG = 32, ' class="long"'
"""Characters from which on a setting takes a line of its own."""


def about(footprint: Footprint | None) -> str:
    """One line about the job."""
    return "" if footprint is None else escape(sheet(footprint).about)


def tiles(timeline: Timeline, footprint: Footprint | None) -> str:
    """The figures a reader wants first."""
    peak = timeline.peak
    made = [_tile(f"peak, {timeline.measure}", format_gib(peak.bytes), f"{peak.bytes:,} bytes, {_when(peak)}")]
    for name, series in (("peak, allocated", timeline.allocated), ("reserved", timeline.reserved)):
        top = timeline.highest(series)
        if top is not None:
            made.append(_tile(name, format_gib(top.bytes), f"{top.bytes:,} bytes, {_when(top)}"))
    alive = timeline.alive(peak.instant)
    largest = timeline.life(alive[0]) if alive else None
    said = f"the largest is {format_gib(largest.bytes)}: {largest.buffer.site}" if largest else ""
    made.append(_tile("buffers alive at the peak", f"{len(alive):,}", said))
    made.append(_tile("allocations and frees", f"{len(timeline):,}", f"{len(timeline.lives.buffers):,} allocations"))
    if footprint is not None and footprint.fits is not None:
        fits = footprint.fits
        where = f"{fits.gpu or 'memory'}, {format_gib(fits.usable)} usable"
        made.append(_tile("verdict", fits.verdict.replace("_", " "), where))
    return "".join(made)


def job(footprint: Footprint | None) -> str:
    """The job as understood, the footprint's lines, assumptions and warnings; nothing where there is no footprint."""
    if footprint is None:
        return ""
    settings = "".join(_settings(name, values) for name, values in _sections(footprint.job))
    return (
        '<section class="card" aria-labelledby="job-title"><h2 id="job-title">The job</h2><div class="facts">'
        f"<div>{settings}</div><div>{_components(footprint)}"
        f"{_remarks('Warnings', footprint.warnings)}{_remarks('Assumptions', footprint.assumptions)}</div></div></section>"
    )


def _tile(name: str, value: str, more: str) -> str:
    text = f'<dd class="value">{escape(value)}</dd><dd class="more">{escape(more)}</dd>'
    return f"<div><dt>{escape(name)}</dt>{text}</div>"


def _when(moment: Moment) -> str:
    phase = moment.phase.replace("_", " ")
    return f"{phase}, iteration {moment.iteration}" if moment.iteration else phase


def _sections(job: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """The job's groups of settings, those that are not set left out; what is in no group comes first."""
    alone = {key: _word(value) for key, value in job.items() if not isinstance(value, Mapping)}
    groups = {key: {k: _word(v) for k, v in value.items()} for key, value in job.items() if isinstance(value, Mapping)}
    return [(name, {k: v for k, v in values.items() if v}) for name, values in {"": alone, **groups}.items()]


def _word(value: Any) -> str:
    """A setting as a person writes it; empty for one that is not set."""
    if value is None or value in ({}, [], ""):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_word(one) or 'none'}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_word(one) for one in value)
    return str(value)


def _settings(name: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<div{LONG if len(value) > WIDE else ''}><dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(value)}</dd></div>"
        for key, value in values.items()
    )
    head = f"<h3>{escape(name.replace('_', ' '))}</h3>" if name else ""
    return f'{head}<dl class="settings">{rows}</dl>'


def _components(footprint: Footprint) -> str:
    shown = sheet(footprint)
    unit = scale([line.size or 0 for line in shown.lines], exact=False)
    rows = "".join(
        f'<tr class="{"strong-row" if line.strong else "in" if line.level else ""}"><th scope="row">{escape(line.label)}</th>'
        f'<td class="num">{escape(unit.text(line.size))}</td><td class="num">{escape(per_parameter(line.per_parameter))}</td>'
        f'<td class="dim">{escape(line.remark)}</td></tr>'
        for line in shown.lines
    )
    head = (
        f'<tr><th scope="col">component</th><th scope="col" class="num">{unit.unit}</th>'
        '<th scope="col" class="num">B/param</th><th scope="col"></th></tr>'
    )
    verdict = f"<p><b>{escape(shown.verdict)}</b></p>" if shown.verdict else ""
    table = f'<table class="plain"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return f"<h3>Components, each at its own highest</h3>{table}{verdict}"


def _remarks(name: str, said: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(one)}</li>" for one in said)
    return f'<h3>{name}</h3><ul class="remarks">{items}</ul>' if items else ""
