"""Points told apart, and figures read some jobs at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.engines.analytic import shared as sharing
from memcalc.engines.analytic.shared import Shared
from memcalc.recording import Recording
from memcalc.sweep import figures, run
from memcalc.sweep.distinct import distinct
from tests.sweep.oracle import differences

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "vocab_size": 99,
         "num_hidden_layers": 2}  # fmt: skip
number = st.one_of(st.integers(-3, 5), st.sampled_from([-(2**63), -1, 7, 2**40, 2**63 - 1]))


@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[number] * width), min_size=1, max_size=20)))
def test_points_are_told_apart_by_counting_and_by_sorting(rows):
    """The first of each distinct combination in order of value, and each row's, whatever lies between the numbers."""
    first, which = distinct(*np.array(rows, dtype=np.int64).T)
    values = sorted(set(rows))
    assert first.tolist() == [rows.index(value) for value in values]
    assert which.tolist() == [values.index(row) for row in rows]


@pytest.mark.parametrize("order", [("micro_batch_size", "sequence_length"), ("sequence_length", "micro_batch_size")])
def test_some_jobs_at_a_time_are_all_of_them(strict, monkeypatch, order):
    """Rows of jobs that are read five at a time, the last of them fewer, are those of all at once and of each alone."""
    grid = {"micro_batch_size": [1, 2, 40, 41], "sequence_length": [1, 2, 3, 129, 1024, 1025, 2000]}
    sweep = run({"base": {"model": LLAMA, "precision": "bf16"}, "grid": {key: grid[key] for key in order}})
    whole = list(sweep)
    monkeypatch.setattr(figures, "AT_ONCE", 5)
    assert list(sweep) == whole
    assert differences(sweep, whole[::3]) == []


def test_a_reading_comes_in_pieces():
    """Each piece is the formulas for its own jobs; a size that all have is in every one."""
    recording = Recording()
    rows, tokens = recording.input("rows", 3), recording.input("tokens", 9)
    reading = recording.read({"rows": np.arange(2, 9), "tokens": 50})
    assert reading is not None
    pieces = list(reading.pieces(3))
    assert [(mine.start, mine.stop, piece.jobs) for mine, piece in pieces] == [(0, 3, 3), (3, 6, 3), (6, 9, 1)]
    assert np.concatenate([piece.value(rows * tokens + 1) for _, piece in pieces]).tolist() == [
        51 + 50 * n for n in range(1, 8)
    ]


def test_what_evaluations_have_in_common_is_made_once(monkeypatch):
    """Told by identity and by number; the latest are kept, and nothing that is an array."""
    monkeypatch.setattr(sharing, "KEPT", 2)
    shared, asked, objects = Shared(), [], [object() for _ in range(3)]

    def make(one, size):
        asked.append(size)
        return one, size

    for at, size in ((0, 1), (0, 1), (0, 2), (0, 1), (1, 1), (0, 2)):
        assert shared.kept(make, objects[at], size) == (objects[at], size)
    assert asked == [1, 2, 1, 2]
    numbers = np.arange(2)
    assert [shared.kept(make, objects[2], numbers)[1] is numbers for _ in range(2)] == [True, True]
    assert len(asked) == 6
    assert len(shared.made) == 2


def test_structures_of_the_latest_kinds_are_remembered(monkeypatch):
    """A sweep over many numbers that are no batch's sizes holds the structures of some kinds, those used last, and no more."""
    monkeypatch.setattr(sharing, "KEPT", 3)
    shared, owner = Shared(), object()
    first = shared._structures(0, owner)
    for number in (1, 2, 0, 3, 4):
        assert (shared._structures(number, owner) is first) is (number == 0)
    assert list(shared.known) == [0, 3, 4]
