"""What many verdicts say together: how many, how far off in the middle, at the 90th percentile and at worst, and which way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from statistics import fmean, median
from typing import Any

from memcalc.records import dataclass
from memcalc.verify.judge import JUDGED, Verdict


@dataclass(frozen=True, slots=True)
class Row:
    """The errors of the records that share one property.

    Errors are of what is kept (parameters, masters, buffers, gradients and optimizer states of the rank that differs most),
    in percent of the bytes measured. ``median``, ``p90`` and ``worst`` are of the spread, in which no two tensors' errors
    cancel; ``bias`` is the mean of measured less predicted, with its sign.

    Attributes:
        by: the property: ``all``, ``engine``, ``family``, ``optimizer``, ``torch``, ``device``.
        value: its value.
        n: records judged.
        exact: how many of them differ by no byte.
        median: percent.
        p90: percent; the smallest error that nine in ten do not exceed.
        worst: percent.
        worst_bytes: the largest spread, in bytes.
        bias: percent.
    """

    by: str
    value: str
    n: int
    exact: int
    median: float
    p90: float
    worst: float
    worst_bytes: int
    bias: float


PROPERTIES: dict[str, Callable[[Verdict], str]] = {
    "all": lambda verdict: "",
    "engine": lambda verdict: verdict.footprint.engine if verdict.footprint else "",
    "device": lambda verdict: verdict.record.environment.device.kind if verdict.record else "",
    "family": lambda verdict: verdict.footprint.model.family if verdict.footprint else "",
    "optimizer": lambda verdict: verdict.footprint.job["training"]["optimizer"] if verdict.footprint else "",
    "precision": lambda verdict: verdict.footprint.job["training"]["precision"] if verdict.footprint else "",
    "layout": lambda verdict: _layout(verdict.footprint.job["parallelism"]) if verdict.footprint else "",
    "torch": lambda verdict: (verdict.record.environment.torch or "") if verdict.record else "",
}
"""What records are grouped by."""


def _layout(parallelism: Mapping[str, Any]) -> str:
    ranks, stage = parallelism["dp"], parallelism["zero_stage"]
    return "one rank" if ranks == 1 else f"{parallelism['zero_backend']}, {f'ZeRO-{stage}' if stage else 'DDP'}"


def summary(verdicts: Iterable[Verdict], by: Sequence[str] = tuple(PROPERTIES)) -> list[Row]:
    """One row for each value of each property, over the records whose tensors were compared; none where there are none."""
    judged = [verdict for verdict in verdicts if verdict.ranks]
    rows = []
    for name in by:
        values: dict[str, list[Verdict]] = {}
        for verdict in judged:
            values.setdefault(PROPERTIES[name](verdict), []).append(verdict)
        rows += [_row(name, value, values[value]) for value in sorted(values)]
    return rows


def _row(by: str, value: str, verdicts: Sequence[Verdict]) -> Row:
    spreads, shares, signed = [], [], []
    for verdict in verdicts:
        spread, difference, measured = errors(verdict)
        spreads.append(spread)
        shares.append(100 * spread / measured if measured else 0.0)
        signed.append(100 * difference / measured if measured else 0.0)
    return Row(
        by=by, value=value, n=len(verdicts), exact=sum(not spread for spread in spreads), median=median(shares),
        p90=percentile(shares, 90), worst=max(shares), worst_bytes=max(spreads), bias=fmean(signed),
    )  # fmt: skip


def errors(verdict: Verdict) -> tuple[int, int, int]:
    """(spread, measured less predicted, measured) in bytes of what is kept, on the rank that differs most."""
    worst = verdict.worst
    assert worst is not None
    kept = [one for one in worst.components if one.name in JUDGED]
    return worst.spread, sum(one.difference or 0 for one in kept), sum(one.measured or 0 for one in kept)


def percentile(values: Sequence[float], share: int) -> float:
    """The smallest value that ``share`` in a hundred do not exceed (nearest rank).

    >>> percentile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0], 90)
    9.0
    """
    return sorted(values)[max(0, ceil(len(values) * share / 100) - 1)]
