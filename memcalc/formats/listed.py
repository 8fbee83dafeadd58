"""Rows of a catalogue, in the forms of the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.formats.rows import as_csv, as_markdown
from memcalc.units import format_count, format_gib


def show(rows: Sequence[Mapping[str, Any]], form: str) -> None:
    """Print rows as a table, CSV or Markdown; nothing but a word on stderr where there are none."""
    if not rows:
        import sys

        print("memcalc: nothing matches", file=sys.stderr)
        return
    header = list(rows[0])
    numbers = {at for at, name in enumerate(header) if any(isinstance(row[name], int) for row in rows)}
    if form == "csv":
        print(as_csv(rows), end="")
    elif form == "markdown":
        print(as_markdown(header, [[_text(name, row[name]) for name in header] for row in rows], right=numbers))
    else:
        _table(header, numbers, rows)


def _table(header: Sequence[str], numbers: set[int], rows: Sequence[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    from memcalc.formats.table import NARROW, console

    out = console()
    narrow = out.width < NARROW and header[-1] == "source"
    header = header[:-1] if narrow else header
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at, name in enumerate(header):
        table.add_column(name, justify="right" if at in numbers else "left", no_wrap=at in numbers, overflow="fold")
    for row in rows:
        table.add_row(*(_text(name, row[name]) for name in header))
    out.print(table)
    if narrow:
        out.print(f"· sources are left out for want of width: {NARROW} columns show them, and --format csv")


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return format_count(value) if name == "parameters" else format_gib(value)
    return str(value)
