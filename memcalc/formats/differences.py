"""Verdicts on predictions: component by component for one, a line each and a summary for many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from memcalc.formats.rows import as_csv, as_markdown
from memcalc.verify.judge import FAILED, PASSED, UNJUDGED, Compared, RankVerdict, Verdict, exit_code
from memcalc.verify.match import Pair
from memcalc.verify.observed import METRICS, ObservedVerdict
from memcalc.verify.summary import Row, errors, summary

WORDS = {PASSED: "PASS", FAILED: "FAIL", UNJUDGED: "????"}
STYLES = {PASSED: "green", FAILED: "red", UNJUDGED: "yellow"}
HEADER = ["component", "predicted", "measured", "difference", "%", "explanation"]
SUMMARY_HEADER = ["by", "value", "n", "exact", "median %", "p90 %", "worst %", "worst B", "bias %"]


def show(verdicts: Sequence[Verdict], form: str, tolerance: str, *, listing: bool) -> None:
    """Print verdicts; ``listing`` for the records of a folder, where each is a line and a summary follows."""
    if form == "json":
        document = as_dict(verdicts, tolerance) if listing or len(verdicts) != 1 else one_dict(verdicts[0], tolerance)
        print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    elif form == "csv":
        print(as_csv(csv_rows(verdicts)), end="")
    elif form == "markdown":
        print(as_page(verdicts) if listing else "\n\n".join(one_page(verdict) for verdict in verdicts))
    else:
        _terminal(verdicts, listing=listing)


def one_dict(verdict: Verdict, tolerance: str, *, everything: bool = True) -> dict[str, Any]:
    """One verdict as plain data; ``everything`` lists the tensors that agree too.

    ``components`` and ``tensors`` are those of the rank that differs most; ``ranks`` has them all.
    """
    worst = verdict.worst
    record = verdict.record
    return {
        "schema_version": 1,
        "case": verdict.case,
        "source": verdict.source,
        "outcome": verdict.outcome,
        "exit_code": exit_code([verdict]),
        "reason": verdict.reason,
        "tolerance": tolerance,
        "engine": verdict.footprint.engine if verdict.footprint else None,
        "environment": record.environment.model_dump(mode="json") if record else None,
        "job": verdict.footprint.job if verdict.footprint else record.job if record else None,
        "components": _components(worst) if worst else {},
        "tensors": _tensors(worst, everything=everything) if worst else {},
        "ranks": [
            {"index": rank.index, "components": _components(rank), "tensors": _tensors(rank, everything=everything)}
            for rank in verdict.ranks
        ]
        if len(verdict.ranks) > 1
        else [],
    }


def as_dict(verdicts: Sequence[Verdict], tolerance: str) -> dict[str, Any]:
    """Many verdicts and their summary; of tensors only those that differ."""
    counts = {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in WORDS}
    return {
        "schema_version": 1,
        "exit_code": exit_code(verdicts),
        "tolerance": tolerance,
        "counts": counts,
        "summary": [asdict(row) for row in summary(verdicts)],
        "records": [one_dict(verdict, tolerance, everything=False) for verdict in verdicts],
    }


def _components(rank: RankVerdict) -> dict[str, dict[str, Any]]:
    return {
        one.name: {
            "predicted": one.predicted, "measured": one.measured, "difference": one.difference,
            "percent": None if one.percent is None else round(one.percent, 6),
            "spread": one.spread, "outcome": one.outcome, "explanation": one.why,
        }
        for one in rank.components
    }  # fmt: skip


def _tensors(rank: RankVerdict, *, everything: bool) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for pair in rank.tensors:
        if everything or pair.difference:
            found.setdefault(pair.component, []).append(_pair(pair))
    return found


def _pair(pair: Pair) -> dict[str, Any]:
    return {"name": pair.name, "predicted": pair.predicted, "measured": pair.measured, "difference": pair.difference}


def csv_rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """One row for each component of each rank; one bare row for a record with none."""
    rows = []
    for verdict in verdicts:
        head = {"case": verdict.case, "source": verdict.source, "outcome": verdict.outcome}
        for rank in verdict.ranks:
            rows += [
                {**head, "rank": rank.index, "component": one.name, "predicted": one.predicted, "measured": one.measured,
                 "difference": one.difference, "percent": one.percent, "explanation": one.why}
                for one in rank.components
            ]  # fmt: skip
        if not verdict.ranks:
            blank: dict[str, Any] = dict.fromkeys(("rank", "component", "predicted", "measured", "difference", "percent"))
            rows.append({**head, **blank, "explanation": verdict.reason})
    return rows


def cells(one: Compared) -> list[str]:
    """A component as text, its bytes whole: a difference of 4 B must not be rounded away."""
    return [
        one.name.replace("_", " "),
        "not modelled" if one.predicted is None else f"{one.predicted:,}",
        "" if one.measured is None else f"{one.measured:,}",
        "" if one.difference is None else f"{one.difference:+,}" if one.difference else "0",
        "" if one.percent is None else f"{one.percent:+.4f}" if one.difference else "0",
        one.why,
    ]


def shown(rank: RankVerdict) -> list[Compared]:
    """The components with something to say: not those that neither side has any of."""
    return [one for one in rank.components if one.predicted or one.measured]


def heading(verdict: Verdict) -> str:
    """What was compared with what."""
    record = verdict.record
    where = f" · {record.environment.device.name} · torch {record.environment.torch}" if record else ""
    return f"{verdict.case}{where}"


def one_page(verdict: Verdict) -> str:
    """One verdict in Markdown, every rank its table."""
    parts = [f"### {heading(verdict)}"]
    for rank in verdict.ranks:
        if len(verdict.ranks) > 1:
            parts.append(f"Rank {rank.index}")
        parts.append(as_markdown(HEADER, [cells(one) for one in shown(rank)], right=(1, 2, 3, 4)))
    return "\n\n".join([*parts, f"**{WORDS[verdict.outcome]}**: {verdict.reason}"])


def as_page(verdicts: Sequence[Verdict]) -> str:
    """The summary of many in Markdown, then those that did not pass."""
    parts = [counted(verdicts), as_markdown(SUMMARY_HEADER, summary_body(summary(verdicts)), right=range(2, 9))]
    bad = [[verdict.case, verdict.outcome, verdict.reason] for verdict in verdicts if verdict.outcome != PASSED]
    if bad:
        parts.append(as_markdown(["record", "outcome", "reason"], bad))
    return "\n\n".join(parts)


def summary_body(rows: Sequence[Row]) -> list[list[str]]:
    """Rows of a summary as text."""
    return [
        [row.by, row.value, str(row.n), str(row.exact), *(_percent(x) for x in (row.median, row.p90, row.worst)),
         f"{row.worst_bytes:,}", _percent(row.bias, sign=True)]
        for row in rows
    ]  # fmt: skip


def _percent(value: float, *, sign: bool = False) -> str:
    return "0" if not value else f"{value:+.4f}" if sign else f"{value:.4f}"


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many of each outcome, in one line."""
    words = {PASSED: "agree", FAILED: "differ", UNJUDGED: "could not be judged"}
    counts = [(sum(verdict.outcome == outcome for verdict in verdicts), word) for outcome, word in words.items()]
    return f"{len(verdicts)} records: " + ", ".join(f"{count} {word}" for count, word in counts if count)


def observed_dict(verdict: ObservedVerdict) -> dict[str, Any]:
    """A figure held against the bounds, as plain data."""
    return {
        "schema_version": 1,
        "outcome": verdict.outcome,
        "exit_code": verdict.exit_code,
        "reason": verdict.reason,
        "observed": {"bytes": verdict.observed.nbytes, "rounded_by": verdict.observed.slack, "metric": verdict.observed.metric},
        "low": verdict.low,
        "high": verdict.high,
        "footprint": verdict.footprint.to_dict(),
    }


def show_observed(verdict: ObservedVerdict, form: str) -> None:
    """Print it: one object, a row, or a line with its reason."""
    if form == "json":
        print(json.dumps(observed_dict(verdict), indent=2, ensure_ascii=False, allow_nan=False))
        return
    row = {
        "outcome": verdict.outcome, "metric": verdict.observed.metric, "observed": verdict.observed.nbytes,
        "low": verdict.low, "high": verdict.high, "reason": verdict.reason,
    }  # fmt: skip
    if form == "csv":
        print(as_csv([row]), end="")
    elif form == "markdown":
        print(as_markdown(list(row), [["" if cell is None else str(cell) for cell in row.values()]], right=(2, 3, 4)))
    else:
        from memcalc.formats.table import console

        line = f"{WORDS[verdict.outcome]}  {verdict.reason} ({verdict.observed.metric}: {METRICS[verdict.observed.metric]})"
        console().print(line, soft_wrap=True, highlight=False, style=STYLES[verdict.outcome])


def _terminal(verdicts: Sequence[Verdict], *, listing: bool) -> None:
    from rich.text import Text

    from memcalc.formats.table import console

    out = console()
    for verdict in verdicts:
        head = Text(f"{WORDS[verdict.outcome]}  ", style=f"bold {STYLES[verdict.outcome]}")
        if listing:
            out.print(head.append(verdict.case, style="bold").append(f"  {line(verdict)}", style="not bold"), soft_wrap=True)
            continue
        out.print(Text(heading(verdict), style="bold"))
        for rank in verdict.ranks:
            if len(verdict.ranks) > 1:
                out.print(f"rank {rank.index}")
            out.print(_table(HEADER, [cells(one) for one in shown(rank)], {1, 2, 3, 4}))
        out.print(head.append(verdict.reason, style="not bold"), soft_wrap=True)
    if listing:
        if rows := summary(verdicts):
            out.print(_table(SUMMARY_HEADER, summary_body(rows), set(range(2, 9))))
        out.print(Text(counted(verdicts), style="bold"))


def line(verdict: Verdict) -> str:
    """A record's verdict in one line."""
    if not verdict.ranks:
        return verdict.reason
    spread, _, measured = errors(verdict)
    return f"{spread:,} B of {measured:,} B differ; {verdict.reason}"


def _table(header: Sequence[str], body: Sequence[Sequence[str]], numbers: set[int]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for at, name in enumerate(header):
        table.add_column(name, justify="right" if at in numbers else "left", no_wrap=at in numbers, overflow="fold")
    for row in body:
        table.add_row(*row)
    return table
