"""Reductions' staging over arrays of sizes, held against that of each job."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.kernels.reduction import Chip, contiguous
from memcalc.kernels.reductions import KEPT_ANSWERS, contiguous_arrays

extent = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 31, 32, 127, 128, 512, 4096, 50257]), st.integers(1, 100_000))
MOST = 2**60
"""Elements of a tensor: what is reckoned with in arrays may not wrap around."""
CHIPS = (Chip(), Chip(40, 1024), Chip(108))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.data())
def test_arrays_are_single_jobs(rank, data):
    """Whatever is reduced of whatever shapes, dimensions of 0 and 1 among them, every job has its own numbers."""
    shapes = st.tuples(*[extent] * rank).filter(lambda shape: prod(shape) < MOST)
    jobs = data.draw(st.lists(shapes, min_size=2, max_size=8))
    dims = data.draw(st.one_of(st.none(), st.lists(st.integers(-rank, rank - 1), max_size=rank)))
    accumulator, chip = data.draw(st.sampled_from([4, 8])), data.draw(st.sampled_from(CHIPS))
    columns = [np.array(column, dtype=np.int64) for column in zip(*jobs, strict=True)]
    columns = [int(column[0]) if (column == column[0]).all() and data.draw(st.booleans()) else column for column in columns]
    told = np.broadcast_arrays(*contiguous_arrays(columns, dims, accumulator, chip), np.zeros(1))
    for at, job in enumerate(jobs):
        alone = contiguous(job, dims, accumulator, chip)
        assert tuple(int(np.broadcast_to(one, len(jobs))[at]) for one in told[:2]) == alone


def test_answers_that_are_kept_belong_to_their_arrays():
    """Answers kept by identity are never another array's, however many come and go."""
    for number in range(4 * KEPT_ANSWERS):
        sizes = np.array([number + 1, 10_000 * (number + 1)])
        first, again = (contiguous((sizes, 4096), [0], 4, Chip()) for _ in range(2))
        alone = [contiguous((int(size), 4096), [0], 4, Chip()) for size in sizes]
        for told in (first, again):
            assert list(zip(*(one.tolist() for one in told), strict=True)) == alone
