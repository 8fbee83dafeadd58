"""Few cases of many: every two values that meet in any case meet in one of those chosen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations


def covering(rows: Sequence[Sequence[Hashable]]) -> list[int]:
    """The places of some of the rows, in order: the next is always the one with the most pairs that none before it has."""
    pairs = [set(combinations(enumerate(row), 2)) for row in rows]
    left, chosen = set().union(*pairs), []
    while left:
        best = max(range(len(rows)), key=lambda place: len(pairs[place] & left))
        chosen.append(best)
        left -= pairs[best]
    return sorted(chosen)
