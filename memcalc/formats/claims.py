"""The textbook's claims, as a table, CSV or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from memcalc.formats.rows import as_csv, as_markdown


def show(model: str, rows: Sequence[Mapping[str, Any]], remarks: Sequence[str], form: str) -> None:
    """Print the audited claims."""
    if form == "csv":
        print(as_csv(rows), end="")
    elif form == "markdown":
        header = ["claim", "textbook B/param", "accounting", "exact B/param", "verdict"]
        keys = ("claim", "textbook", "accounting", "bytes_per_parameter", "verdict")
        print(as_markdown(header, [[str(row[key]) for key in keys] for row in rows], right=(1, 3)))
    else:
        _table(model, rows, remarks)


def _table(model: str, rows: Sequence[Mapping[str, Any]], remarks: Sequence[str]) -> None:
    from rich.text import Text

    from memcalc.formats.table import console

    out = console()
    out.print(Text(f"The textbook's claims, in bytes per parameter, on {model}", style="bold"))
    for claim, group in groupby(rows, key=lambda row: row["claim"]):
        readings = list(group)
        out.print(Text(f"\n{claim}", style="bold"))
        out.print(_readings(readings))
        if readings[0]["note"]:
            out.print(Text(f"  {readings[0]['note']}", style="dim"))
    out.print()
    for remark in remarks:
        out.print(Text(f"· {remark}", style="dim"))


def _readings(readings: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", width=8)
    table.add_column(width=20)
    table.add_column()
    for row in readings:
        verdict = str(row["verdict"])
        style = "red" if verdict.startswith("does") else "green"
        table.add_row(f"{row['bytes_per_parameter']:.3f}", f"[{style}]{verdict}[/]", str(row["accounting"]))
    return table
