"""Which tensors a partition touches, against a plain walk over every element's owner."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.parallelism import deepspeed
from memcalc.parallelism.cuts import most_touched, touched

from .conftest import model_of, total

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def walked(numels, partition, ranks):
    """For each rank the sum of the sizes of tensors of which it owns any element."""
    owners = [set() for _ in range(ranks)]
    at = 0
    for index, numel in enumerate(numels):
        for element in range(at, at + numel):
            owners[element // partition].add(index)
        at += numel
    return [sum(numels[index] for index in mine) for mine in owners]


@settings(max_examples=200, deadline=None)
@given(sizes, st.integers(1, 9))
def test_touched_equals_a_walk_over_the_elements(numels, ranks):
    """Every rank is told the sizes of the very tensors it owns an element of, and ranks alike are counted together."""
    partition = -(-sum(numels) // ranks)
    truth = sorted(walked(numels, partition, ranks), reverse=True)
    assert [kept for kept, _, times in touched(numels, partition, ranks) for _ in range(times)] == truth


@settings(max_examples=200, deadline=None)
@given(sizes, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_most_of_many_jobs_is_each_jobs_own(numels, ranks):
    """Over an array of partitions, the most touched is that of each partition alone."""
    partitions = np.array([-(-sum(numels) // count) for count in ranks])
    alone = [touched(numels, int(p), n)[0][0] for p, n in zip(partitions, ranks, strict=True)]
    assert most_touched(numels, partitions).tolist() == alone


def test_deepspeed_keeps_a_cut_gradient_whole_on_both_ranks(setting):
    """Tensors of 6, 6 and 2 elements on two ranks: eight elements padded make cuts through the second, which both keep."""
    layouts = deepspeed.layouts(setting(model_of([(6,), (6,), (2,)]), "fp16", 2, 2), 2)
    # 14 elements padded to 16, partitions of 8: the first touches 6 + 6, the second 6 + 2
    assert [(layout.index, total(layout.gradients)) for layout in layouts] == [(0, 12 * 2), (1, 8 * 2)]
    assert all(layout.params[0].numel == 8 for layout in layouts)
