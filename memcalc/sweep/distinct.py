"""Rows of numbers told apart: by counting where they lie close together, by sorting where they do not."""

from __future__ import annotations

import numpy as np

from memcalc.sweep.axes import Array

SPARSE = 4
"""Numbers are told apart by counting while there are at most so many between the least and the greatest for each."""


def distinct(*columns: Array) -> tuple[Array, Array]:
    """(the first row of each distinct combination, in order of value; which of those each row is)."""
    rows = len(columns[0])
    which, count = np.zeros(rows, dtype=np.int64), 1
    for column in columns:
        least, greatest = int(column.min()), int(column.max())
        if least == greatest:
            continue
        if count * (greatest - least + 1) <= SPARSE * rows:
            own, values = column - least, greatest - least + 1
        else:
            own, values = _numbered(column, None)
        which, count = _numbered(which * values + own, count * values)
    first = np.empty(count, dtype=np.int64)
    first[which[::-1]] = np.arange(rows - 1, -1, -1)
    return first, which


def _numbered(codes: Array, below: int | None) -> tuple[Array, int]:
    """(the number of each code among the distinct ones in order, how many those are); codes from 0 are counted, not sorted."""
    if below is None or below > SPARSE * len(codes):
        found, which = np.unique(codes, return_inverse=True)
        return which, len(found)
    there = np.zeros(below, dtype=bool)
    there[codes] = True
    return (np.cumsum(there) - 1)[codes], int(there.sum())
