"""A footprint as one flat row, for CSV, Markdown and anything that reads columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from memcalc.footprint import Footprint


def row(footprint: Footprint) -> dict[str, Any]:
    """The columns of one footprint; None where something is not modelled."""
    training, parallelism = footprint.job["training"], footprint.job["parallelism"]
    fits = footprint.fits
    return {
        "name": footprint.job.get("name"),
        "model": footprint.model.name,
        "family": footprint.model.family,
        "num_parameters": footprint.model.num_parameters,
        "optimizer": training["optimizer"],
        "precision": training["precision"],
        "zero_stage": parallelism["zero_stage"],
        "zero_backend": parallelism["zero_backend"],
        "dp": parallelism["dp"],
        **asdict(footprint.components),
        "momentum": footprint.optimizer_states.get("momentum"),
        "variance": footprint.optimizer_states.get("variance"),
        "host_optimizer_states": footprint.host.get("optimizer_states"),
        "states_requested": footprint.states.requested,
        "states_rounded": footprint.states.rounded,
        "states_bound": footprint.states.bound,
        "peak_requested": footprint.peak.requested,
        "peak_rounded": footprint.peak.rounded,
        "peak_allocated": footprint.peak.allocated,
        "peak_reserved": footprint.peak.reserved,
        "peak_low": footprint.peak.low,
        "peak_high": footprint.peak.high,
        "device_low": footprint.peak.device_low,
        "device_high": footprint.peak.device_high,
        "verdict": fits.verdict if fits else None,
        "headroom": fits.headroom if fits else None,
    }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(header: Sequence[str], body: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table whose source is aligned too; ``right`` are the columns of numbers.

    >>> print(as_markdown(["a", "n"], [["x", "1"]], right=[1]))
    | a   |   n |
    | --- | --: |
    | x   |   1 |
    """
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in (header, *body)]
    numbers = set(right)
    widths = [max(3, *(len(line[at]) for line in cells)) for at in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        return (
            "| "
            + " | ".join(
                c.rjust(w) if at in numbers else c.ljust(w) for at, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            + " |"
        )

    rule = "| " + " | ".join("-" * (w - 1) + ":" if at in numbers else "-" * w for at, w in enumerate(widths)) + " |"
    return "\n".join([joined(cells[0]), rule, *(joined(line) for line in cells[1:])])
