"""What numbers decide: one answer for all jobs that are played together, or a split of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from memcalc.arrays import Condition, Count, SplitError, is_array, recording_of


class Decisions:
    """Decides on numbers that may be one for each job."""

    def decide(self, condition: Condition) -> bool:
        """A condition on numbers that changes what is done, which must be one for all jobs played together.

        Raises:
            SplitError: it is not.
        """
        if not is_array(condition):
            return bool(condition)
        if condition.all():  # type: ignore[union-attr]
            return True
        if condition.any():  # type: ignore[union-attr]
            raise SplitError(condition)
        return False

    def each(self, function: Callable[..., int], *counts: Count, only: Condition = True, otherwise: int = 0) -> Count:
        """A function of whole numbers, job by job where they are arrays; jobs that ``only`` leaves out have another answer."""
        recording = recording_of(*counts, only)
        if recording is not None:
            return cast(Count, recording.atom(_each, function, only, otherwise, *counts))
        return _each(function, only, otherwise, *counts)

    def same(self, first: Count, second: Count) -> bool:
        """Whether two extents are equal."""
        return first is second or self.decide(first == second)


def _each(function: Callable[..., int], only: Condition, otherwise: int, *counts: Count) -> Count:
    """:meth:`Decisions.each` of numbers or arrays."""
    if not any(is_array(count) for count in counts):
        return function(*counts) if only else otherwise
    import numpy

    *columns, asked = numpy.broadcast_arrays(*counts, only)
    found = numpy.full(asked.shape, otherwise, dtype=numpy.int64)
    known: dict[tuple[int, ...], int] = {}
    for place in zip(*numpy.nonzero(asked), strict=True):
        key = tuple(int(column[place]) for column in columns)
        if key not in known:
            known[key] = function(*key)
        found[place] = known[key]
    return found
