"""A sweep's rows on stdout: a table for a person, CSV or JSON for a program, Markdown for a page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice

from memcalc.errors import InputError
from memcalc.formats.rows import as_markdown
from memcalc.formats.sheet import Scale, scale
from memcalc.sweep.sweep import Row, Sweep
from memcalc.sweep.table import Table
from memcalc.sweep.writers import CSV, JSONL

MOST = 1000
"""Rows drawn as a table; more are for a file."""
WORDS = {
    "index": "", "name": "name", "model": "model", "num_parameters": "parameters", "optimizer": "optimizer",
    "precision": "precision", "zero_stage": "ZeRO", "zero_backend": "by", "dp": "dp", "dp_shard": "shard",
    "dp_replicate": "replicate", "gradient_accumulation_steps": "accumulate", "micro_batch_size": "micro-batch",
    "sequence_length": "tokens", "source_length": "source", "image_size": "image", "gpu": "gpu",
}  # fmt: skip
"""The columns that name a point, as a person reads them; each is drawn where rows differ in it."""
TOLD = ("model", "optimizer", "precision", "zero_stage", "dp", "gpu")
"""Those of them that are told above the table where all rows agree."""
SIZES = {
    "parameters": "params", "gradients": "grads", "master_parameters": "masters", "optimizer_states": "states",
    "communication": "comm", "states_rounded": "peak",
}  # fmt: skip
"""The figures a person reads; each is drawn where it is more than nothing."""

SPARED = ("comm", "params", "grads", "replicate", "shard", "masters", "states")
"""The columns a narrow terminal goes without, the first one first."""
GAP = 3
"""Characters between columns."""


def show(
    sweep: Sweep, form: str, *, exact: bool = False, progress: Callable[[int], None] = lambda points: None
) -> tuple[int, int]:
    """Every row, in a form; (rows, errors among them)."""
    counted = _Counted()
    tables = counted.over(sweep.tables(progress))
    if form == "csv":
        sys.stdout.write(CSV.header)
        for table in tables:
            sys.stdout.writelines(CSV.lines(table))
    elif form == "json":
        _json(sweep, tables)
    elif form in ("table", "markdown"):
        rows = list(islice((row for table in tables for row in table.dicts()), MOST + 1))
        _drawn(rows[:MOST], form, sweep.spec.name, exact=exact)
        if len(rows) > MOST:
            print(f"the first {MOST} rows of {sweep.points:,} points; write them all with --output rows.csv", file=sys.stderr)
    else:
        raise InputError("--format", form, "is not a form of rows", "use table, csv, json or markdown")
    return counted.rows, counted.errors


class _Counted:
    def __init__(self) -> None:
        self.rows = self.errors = 0

    def over(self, tables: Iterator[Table]) -> Iterator[Table]:
        """The same tables, counted as they pass."""
        for table in tables:
            self.rows += table.rows
            self.errors += table.errors
            yield table


def _json(sweep: Sweep, tables: Iterator[Table]) -> None:
    """One object, written as its rows come."""
    name = JSONL.text(sweep.spec.name) if sweep.spec.name is not None else "null"
    sys.stdout.write(f'{{"schema_version": 1, "name": {name}, "rows": [')
    before = "\n"
    for table in tables:
        for line in JSONL.lines(table):
            sys.stdout.write(before + line.rstrip("\n"))
            before = ",\n"
    sys.stdout.write("\n]}\n")


def _drawn(rows: list[Row], form: str, name: str | None, *, exact: bool) -> None:
    """What rows have in common, the columns in which they differ, and below them what was wrong with which."""
    words = [name for name in WORDS if name == "index" or _differ(name, rows)]
    sizes = [name for name in SIZES if any(row[name] for row in rows)]
    judged = [name for name in ("verdict", "headroom") if any(row[name] is not None for row in rows)]
    values = [value for row in rows for name in (*sizes, "headroom") if isinstance(value := row[name], int)]
    unit = scale(values, exact=exact)
    body = [
        [*(_word(row[name]) for name in words), *(_size(row[name], unit) for name in sizes),
         *(_size(row[name], unit) if name == "headroom" else _word(row[name]) for name in judged)]
        for row in rows
    ]  # fmt: skip
    titles = [*(WORDS[name] for name in words), *(SIZES[name] for name in sizes), *judged]
    right = [at for at, name in enumerate((*words, *sizes, *judged)) if any(isinstance(row[name], int) for row in rows)]
    remarks = [f"{_numbers(indices)}: {text}" for text, indices in _errors(rows).items()]
    if sizes:
        remarks.insert(0, f"sizes in {unit.unit} on the fullest rank; peak: the highest instant of what is kept")
    heading = " · ".join(_common(words, rows))
    if form == "markdown":
        print("\n".join([*([f"### {name}", ""] if name else []), heading, "", as_markdown(titles, body, right)]))
        print("".join(f"\n- {remark}" for remark in remarks))
    else:
        _table([name or "", heading], titles, body, right, remarks)


def _common(words: list[str], rows: list[Row]) -> Iterator[str]:
    """What holds for every row that could be judged, and is not shown for each."""
    judged = [row for row in rows if row["error"] is None]
    for name in TOLD:
        if judged and name not in words and (value := judged[0][name]) is not None:
            yield f"{WORDS[name]} {_word(value)}" if isinstance(value, int) else value


def _table(above: list[str], titles: list[str], body: list[list[str]], right: list[int], remarks: list[str]) -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    from memcalc.formats.table import STYLES, console

    out = console()
    widths = [max(map(len, column)) + GAP for column in zip(titles, *body, strict=True)]
    shown = list(range(len(titles)))
    if out.is_terminal:
        shown, left_out = _fitting(titles, widths, out.width)
        remarks = [*remarks, *([f"no room for {', '.join(left_out)}; see --format csv"] if left_out else [])]
    else:
        out.width = max(out.width, sum(widths))
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at in shown:
        drawn.add_column(titles[at], justify="right" if at in right else "left", no_wrap=at in right, overflow="fold")
    for cells in body:
        texts = [(cell.replace("_", " ") if cell in STYLES else cell, STYLES.get(cell, "")) for cell in cells]
        drawn.add_row(*(Text(*texts[at]) for at in shown))
    for line, style in zip(above, ("bold", "dim"), strict=True):
        if line:
            out.print(Text(line, style=style))
    out.print(drawn)
    for remark in remarks:
        out.print(Text(f"· {remark}", style="dim"), soft_wrap=True)


def _fitting(titles: list[str], widths: list[int], width: int) -> tuple[list[int], list[str]]:
    """(the columns that fit side by side, the titles of those that were left out, the least needed first).

    >>> _fitting(["", "grads", "comm", "peak"], [4, 9, 9, 9], 24)
    ([0, 1, 3], ['comm'])
    """
    shown = list(range(len(titles)))
    left_out = []
    for title in SPARED:
        if sum(widths[at] for at in shown) > width and title in titles:
            shown.remove(titles.index(title))
            left_out.append(title)
    return shown, left_out


def _differ(name: str, rows: list[Row]) -> bool:
    """Whether a column tells rows apart that could be judged, and is no more than another says."""
    judged = [row for row in rows if row["error"] is None]
    if name == "num_parameters" and _differ("model", rows):
        return False
    if name in ("dp_shard", "dp_replicate"):
        return any(row["dp"] != row["dp_shard"] and row["dp"] != row["dp_replicate"] for row in judged)
    return len({row[name] for row in judged}) > 1


def _errors(rows: list[Row]) -> dict[str, list[int]]:
    """Each error, with the numbers of its rows."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if isinstance(text := row["error"], str) and isinstance(index := row["index"], int):
            found.setdefault(text, []).append(index)
    return found


def _numbers(indices: list[int]) -> str:
    """Numbers in words, runs of them as their ends.

    >>> _numbers([1, 2, 3, 7])
    '1-3, 7'
    """
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _word(value: int | str | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else value


def _size(value: int | str | None, unit: Scale) -> str:
    return unit.text(value) if isinstance(value, int) else ""
