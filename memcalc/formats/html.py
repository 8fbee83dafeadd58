"""A footprint as a fragment of HTML, for notebooks."""

from __future__ import annotations

from html import escape

from memcalc.footprint import Footprint
from memcalc.formats.sheet import per_parameter, scale, sheet


def fragment(footprint: Footprint) -> str:
    """A heading, a table, the verdict and the remarks; every word escaped."""
    shown = sheet(footprint)
    unit = scale([line.size or 0 for line in shown.lines], exact=False)
    rows = "".join(
        f"<tr><td style='text-align:left;padding-left:{line.level + 0.4:g}em'>{_weight(line.label, line.strong)}</td>"
        f"<td style='text-align:right'>{escape(unit.text(line.size))}</td>"
        f"<td style='text-align:right'>{escape(per_parameter(line.per_parameter))}</td><td>{escape(line.remark)}</td></tr>"
        for line in shown.lines
    )
    head = f"<tr><th style='text-align:left'>component</th><th>{escape(unit.unit)}</th><th>B/param</th><th></th></tr>"
    said = [f"<p><b>{escape(shown.verdict)}</b></p>"] if shown.verdict else []
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in shown.remarks)
    return (
        f"<div><b>{escape(shown.heading)}</b><br>{escape(shown.about)}"
        f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>{''.join(said)}<ul>{remarks}</ul></div>"
    )


def _weight(label: str, strong: bool) -> str:
    return f"<b>{escape(label)}</b>" if strong else escape(label)
