"""What fits, as a table, JSON, CSV or Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memcalc.formats.rows import as_csv, as_markdown
from memcalc.formats.sheet import scale

if TYPE_CHECKING:
    from memcalc.fit import Choice

WIDE = {
    "kept": "what lasts from step to step or is needed to update",
    "each": "what one more of the {largest} takes",
    "saves": "at 1",
}
"""Columns that a narrow terminal leaves out, the last first, and what they mean."""
BETWEEN = 3
"""Characters between two columns."""
WORDS = {"fits": "fits", "tight": "tight", "does_not_fit": "no", "unknown": "by prediction"}
"""A verdict in a column; ``unknown`` is one whose error nobody has recorded."""


def show(choices: Sequence[Choice], largest: str, form: str, *, exact: bool = False) -> None:
    """Onto stdout."""
    if form == "json":
        print(json.dumps({"schema_version": 1, "largest": largest, "choices": [one.to_dict() for one in choices]}, indent=2))
    elif form == "csv":
        print(as_csv([one.to_dict() for one in choices]), end="")
    elif form == "markdown":
        header, body = _cells(choices, largest, exact=exact)
        print(as_markdown(header, body, right=range(_words(choices), len(header) - 1)))
    else:
        _table(choices, largest, exact=exact)


def _words(choices: Sequence[Choice]) -> int:
    """Columns of words, which stand first."""
    return 2 if any(one.cache for one in choices) else 3


def _cells(choices: Sequence[Choice], largest: str, *, exact: bool) -> tuple[list[str], list[list[str]]]:
    """(header, rows); ranks are shown only where they differ."""
    unit = scale([one.peak or 0 for one in choices], exact=exact)
    first = next((one.at_one for one in choices if one.at_one is not None), 0)
    most = max((one.at_one or 0 for one in choices), default=first)
    several = len({one.zero_stage for one in choices}) > 1
    forward = any(one.cache for one in choices)
    ways = ["cache", "precision"] if forward else ["optimizer", "precision", "checkpointing"]
    header = [*ways, *(["ZeRO"] if several else []), largest,
              f"peak {unit.unit}", "kept", "each", "saves", ""]  # fmt: skip
    rows = []
    for one in choices:
        saved = None if one.at_one is None else most - one.at_one
        size = "?" if one.largest is None else f"{one.largest:,}"
        rows.append(
            [
                *((one.cache, one.precision) if forward else (one.optimizer, one.precision, one.checkpointing)),
                *([str(one.zero_stage)] if several else []), size,
                *("–" if value is None else unit.text(value) for value in (one.peak, one.kept, one.each, saved)),
                WORDS[one.verdict] if one.largest is not None else "not known",
            ]
        )  # fmt: skip
    return header, rows


def _table(choices: Sequence[Choice], largest: str, *, exact: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from memcalc.formats import table

    out = table.console()
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    header, rows = _cells(choices, largest, exact=exact)
    shown = _that_fit(header, rows, out.width)
    for place in shown:
        words = place < _words(choices) or not header[place]
        drawn.add_column(header[place], justify="left" if words else "right", no_wrap=True)
    for one, row in zip(choices, rows, strict=True):
        drawn.add_row(*(row[place] for place in shown), style="" if one.largest else "dim")
    name = next((one.footprint.model.name for one in choices if one.footprint is not None), "")
    out.print(Text(name, style="bold"), drawn)
    for remark in remarks(choices, largest, [name for name in WIDE if header.index(name) not in shown]):
        out.print(Text(f"· {remark}", style="dim"))


def _that_fit(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The columns that a terminal has room for: a number cut short would be another number."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    shown = list(range(len(header)))
    for name in reversed(WIDE):
        if sum(widths[place] + BETWEEN for place in shown) - BETWEEN > width:
            shown.remove(header.index(name))
    return shown


def remarks(choices: Sequence[Choice], largest: str, left_out: Sequence[str] = ()) -> list[str]:
    """What the columns mean, and why a way of training has no answer."""
    columns = {"peak": "what the step allocates at that {largest}, or at 1 where that does not fit"}
    columns |= {name: what for name, what in WIDE.items() if name not in left_out}
    told = "; ".join(f"{name}: {what.format(largest=largest)}" for name, what in columns.items())
    verb = "is" if len(left_out) == 1 else "are"
    said: dict[str, Any] = {told + (f"; {', '.join(left_out)} {verb} left out for want of width" if left_out else ""): None}
    if any(one.verdict == "unknown" and one.largest is not None for one in choices):
        said["by prediction: how far a prediction may be off has not been recorded, so that nothing is promised"] = None
    for one in choices:
        if one.largest is not None and one.largest == one.most:
            said[f"{one.most:,}: the model, or the cache, has no more places for a {largest}"] = None
    refused: dict[str, list[str]] = {}
    for one in choices:
        if one.largest is None:
            refused.setdefault(one.reason, []).append(_way(one))
    for reason, ways in refused.items():
        others = f", and {len(ways) - 1} more ways" if len(ways) > 2 else f", and {ways[1]}" if len(ways) == 2 else ""
        said[f"{ways[0]}{others}: {reason}"] = None
    return list(said)


def _way(one: Choice) -> str:
    """A way in words."""
    if one.cache:
        return f"{one.cache} cache in {one.precision}"
    return f"{one.optimizer} in {one.precision}, checkpointing {one.checkpointing}"
