"""The highest of many sums over arrays: each is a row of counts, of terms that are numbers or one number for each job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memcalc.arrays import is_array


class Values:
    """What the terms come to in one measure.

    What is one number for all jobs is added up once for each instant, and so are sizes that rise and fall with each other,
    as most do with the tokens of a batch: after that few instants can still win.
    """

    def __init__(self, values: list[Any]) -> None:
        self.arrays = [place for place, value in enumerate(values) if is_array(value)]
        self.single = [place for place, value in enumerate(values) if not is_array(value)]
        self.numbers = np.array([values[place] for place in self.single], dtype=object)
        self.bases, self.told = together([values[place] for place in self.arrays])

    def highest(self, rows: Any) -> Any:
        """The largest of the sums."""
        constant = rows[:, self.single].astype(object) @ self.numbers
        if not self.arrays:
            return max(constant.tolist(), default=0)
        counts = rows[:, self.arrays].astype(object) @ self.told
        counts[:, -1] += constant
        best: Any = 0
        for row in undominated(counts):
            total: Any = int(row[-1])
            for base, count in zip(self.bases, row[:-1].tolist(), strict=True):
                if count:
                    total = total + (base if count == 1 else count * base)
            best = np.maximum(best, total)
        return best


def together(values: Sequence[Any]) -> tuple[list[Any], Any]:
    """(arrays of 0 and more, a matrix): each value is a row of the matrix times those arrays, and its last column added.

    Of two values that are whole multiples of one array beside a number, that array serves for both.
    """
    bases: list[Any] = []
    highest: list[tuple[Any, int]] = []
    ways: list[tuple[int, int, int]] = []
    for value in values:
        least = int(value.min())
        risen = value - least
        if not risen.any():
            ways.append((0, 0, least))
            continue
        for place, base in enumerate(bases):
            if base.shape != risen.shape:
                continue
            at, top = highest[place]
            times, left = divmod(int(risen[at]), top)
            if not left and np.array_equal(base if times == 1 else times * base, risen):
                ways.append((place, times, least))
                break
        else:
            divisor = int(np.gcd.reduce(risen, axis=None))
            base = risen // divisor if divisor > 1 else risen
            at = np.unravel_index(int(base.argmax()), base.shape)
            highest.append((at, int(base[at])))
            bases.append(base)
            ways.append((len(bases) - 1, max(divisor, 1), least))
    told = np.zeros((len(values), len(bases) + 1), dtype=object)
    for number, (place, times, least) in enumerate(ways):
        told[number, place] += times
        told[number, -1] += least
    return bases, told


def undominated(table: Any) -> Any:
    """The rows of which no other is at least as large in every column."""
    kept = np.empty_like(table)
    number = 0
    for row in table[np.argsort(-table.sum(axis=1).astype(np.float64), kind="stable")]:
        if not number or not (kept[:number] >= row).all(axis=1).any():
            kept[number] = row
            number += 1
    return kept[:number] if number else table
