"""Footprints as Markdown, for a pull request or a page."""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.footprint import Footprint
from memcalc.formats.rows import as_markdown
from memcalc.formats.sheet import per_parameter, scale, sheet


def one(footprint: Footprint, *, exact: bool = False) -> str:
    """A heading, a table, the verdict and the remarks."""
    shown = sheet(footprint)
    unit = scale([line.size or 0 for line in shown.lines], exact=exact)
    body = [
        ["&nbsp;&nbsp;" * line.level + (f"**{line.label}**" if line.strong else line.label), unit.text(line.size),
         per_parameter(line.per_parameter), line.remark]
        for line in shown.lines
    ]  # fmt: skip
    parts = [
        f"### {shown.heading}",
        "",
        shown.about,
        "",
        as_markdown(["component", unit.unit, "B/param", "note"], body, right=(1, 2)),
    ]
    if shown.verdict:
        parts += ["", f"**{shown.verdict}**"]
    if shown.remarks:
        parts += ["", *(f"- {remark}" for remark in shown.remarks)]
    return "\n".join(parts)


def several(footprints: Sequence[Footprint], *, exact: bool = False) -> str:
    """One line each, with the difference to the first."""
    unit = scale([each.states.rounded for each in footprints], exact=exact)
    first = footprints[0].states.rounded
    header = [
        "optimizer",
        "precision",
        "parameters",
        "gradients",
        "masters",
        "states",
        f"peak {unit.unit}",
        "B/param",
        "to first",
    ]
    body = []
    for each in footprints:
        parts, peak = each.components, each.states.rounded
        sizes = (parts.parameters, parts.gradients, parts.master_parameters, parts.optimizer_states, peak)
        change = "" if each is footprints[0] else f"{(peak - first) / first:+.1%}"
        training = each.job["training"]
        body.append(
            [training["optimizer"], training["precision"], *(unit.text(size) for size in sizes),
             per_parameter(peak / each.model.num_parameters), change]
        )  # fmt: skip
    return as_markdown(header, body, right=range(2, 9))
