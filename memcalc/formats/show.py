"""Footprints onto stdout in the form that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from memcalc.footprint import Footprint


def one(footprint: Footprint, form: str, *, exact: bool = False, explain: bool = False) -> None:
    """One footprint: a table, one JSON object, a CSV row under its header, or Markdown."""
    if form == "json":
        print(footprint.to_json(explain=explain))
    elif form == "csv":
        from memcalc.formats.rows import as_csv, row

        print(as_csv([row(footprint)]), end="")
    elif form == "markdown":
        from memcalc.formats import markdown

        print(markdown.one(footprint, exact=exact))
    else:
        from memcalc.formats import table

        table.console().print(table.render(footprint, exact=exact, explain=explain))


ORDERS: dict[str, Callable[[Footprint], Any]] = {
    "peak": lambda footprint: footprint.states.rounded,
    "states": lambda footprint: (footprint.components.optimizer_states or 0) + (footprint.components.master_parameters or 0),
    "name": lambda footprint: footprint.job["training"]["optimizer"],
}


def several(footprints: Sequence[Footprint], form: str, *, exact: bool = False, order: str = "given") -> None:
    """Several footprints of one question; JSON is one object that holds them. Differences are to the first of ``order``."""
    if order in ORDERS:
        footprints = sorted(footprints, key=ORDERS[order])
    if form == "json":
        print(
            json.dumps(
                {"schema_version": 1, "footprints": [each.to_dict() for each in footprints]}, indent=2, ensure_ascii=False
            )
        )
    elif form == "csv":
        from memcalc.formats.rows import as_csv, row

        print(as_csv([row(each) for each in footprints]), end="")
    elif form == "markdown":
        from memcalc.formats import markdown

        print(markdown.several(footprints, exact=exact))
    else:
        from memcalc.formats import table

        out = table.console()
        out.print(table.render_rows(footprints, exact=exact, width=out.width))
