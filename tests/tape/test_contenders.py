"""Sums held against each other before they are worked out, against all of them worked out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.arrays import ceil_div, where
from memcalc.recording import Recording
from memcalc.symbols import terms_of
from memcalc.tape.contenders import Bounds, Extent, Sums

WAYS = (
    lambda b, s: b * s, lambda b, s: s, lambda b, s: b, lambda b, s: b * s * s, lambda b, s: ceil_div(3 * b * s, 512),
    lambda b, s: ceil_div(b * s * s + 7 * b - s, 7), lambda b, s: where(b * s > 600, 1 << 20, 0),
    lambda b, s: where(s > b, b * s, 5), lambda b, s: (b * s) // 10, lambda b, s: ceil_div(s, 64) * b,
    lambda b, s: ceil_div(-5 * s, 3), lambda b, s: s - 40 * b,
)  # fmt: skip
sizes = st.tuples(st.integers(2, 60), st.integers(2, 3000))
counts = st.one_of(st.just(0), st.integers(-3, 9), st.integers(-(2**24), 2**30))


@settings(max_examples=80, deadline=None)
@given(
    sizes, st.lists(sizes, min_size=1, max_size=12), st.lists(st.tuples(*[counts] * (len(WAYS) + 1)), min_size=1, max_size=9)
)
def test_the_highest_is_never_left_out(played, jobs, rows):
    """Every sum that is the highest of some job is among the contenders, and the highest of them is the highest of all."""
    recording = Recording()
    b, s = (recording.input(name, number) for name, number in zip("bs", played, strict=True))
    made = [1, *(way(b, s) for way in WAYS)]
    monomials = list(dict.fromkeys(monomial for one in made for monomial, _ in terms_of(one)))
    table = np.array([[dict(terms_of(one)).get(monomial, 0) for monomial in monomials] for one in made], dtype=np.int64)
    bounds = Bounds(recording, monomials)
    sums = Sums(bounds, np.array(rows, dtype=np.int64) @ table)
    columns = np.array(jobs, dtype=np.int64).T
    reading = recording.read({"b": columns[0], "s": columns[1]})
    assert reading is not None
    extent = Extent(bounds.bases, reading)
    values = [[1, *(way(*job) for way in WAYS)] for job in jobs]
    every = [[sum(count * one for count, one in zip(row, own, strict=True)) for row in rows] for own in values]
    assert np.broadcast_to(sums.highest(reading, extent), len(jobs)).tolist() == [max(0, *own) for own in every]
    left = sums.contenders(extent).tolist()
    assert {at for own in every for at, total in enumerate(own) if total == max(own)} <= set(left)


def test_what_two_others_beat_in_turn_is_left_out():
    """A sum that one is above where it is low, and another where it is high, neither of them everywhere, is not worked out."""
    recording = Recording()
    rows = recording.input("rows", 4)
    bounds = Bounds(recording, [(), *(one for one, _ in rows.terms)])
    sums = Sums(bounds, np.array([[1000, 0], [400, 4], [0, 10], [600, 5]]))
    wide, low, high = (
        Extent(bounds.bases, recording.read({"rows": np.array(one)})) for one in ([2, 1000], [2, 20], [500, 900])
    )
    assert sums.contenders(wide).tolist() == [0, 2, 3]
    assert sums.contenders(low).tolist() == [0]
    assert sums.contenders(high).tolist() == [2]


def test_what_is_rounded_up_follows_its_number():
    """Two layers' blocks cannot be more than three of the same, however many bytes a block is filled up with."""
    recording = Recording()
    rows, tokens = recording.input("rows", 4), recording.input("tokens", 7)
    blocks = [ceil_div(count * rows * tokens, 512).terms[0][0] for count in (2, 4096)]
    bounds = Bounds(recording, blocks)
    sums = Sums(bounds, np.array([[5, 2], [1, 3]]))
    few = recording.read({"rows": np.arange(2, 90), "tokens": np.arange(91, 3, -1)})
    assert bounds.bases == [(), (0, 1)]
    assert sums.contenders(Extent(bounds.bases, few)).tolist() == [1]
    assert set(few._products) == {(), (0, 1)}  # no block was counted
