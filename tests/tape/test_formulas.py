"""Tapes of formulas, held against the fold of the tape of each job."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.allocator.summits import summits
from memcalc.arrays import ceil_div, is_array, rounded, where
from memcalc.engines.analytic.static import allocated_bound
from memcalc.recording import Recording
from memcalc.symbols import NotParametricError
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat, within
from memcalc.tape.fold import fold, requested
from memcalc.tape.formula_arrays import FormulaArrays
from memcalc.tape.formulas import Formulas
from memcalc.tape.read_again import read_again

WAYS = (
    lambda b, s: 2 * b * s, lambda b, s: 6 * b + 512, lambda b, s: b * s // 3, lambda b, s: 4096,
    lambda b, s: ceil_div(s, 64) * b, lambda b, s: where(s > 100, b * s, 0), lambda b, s: b * s * 1024,
    lambda b, s: 8 * (s - 1) * b,
)  # fmt: skip
ROLES = ("activation", "temporary", "gradient")
bodies = st.tuples(
    st.lists(st.tuples(st.sampled_from(range(len(WAYS))), st.sampled_from(ROLES)), max_size=4),
    st.integers(0, 4),
    st.integers(0, 3),
)
sizes = st.tuples(st.integers(2, 60), st.integers(2, 700))


def tape_of(parts, b, s, marked=True):
    """Bodies that keep some of their buffers and let go of the others, and in the end of what is kept."""
    tape, left = [], []
    for at, (picked, kept, times) in enumerate(parts):
        tape += [Mark(("forward", "backward", "optimizer_step")[at % 3])] if marked else []
        buffers = [Buffer(f"{at}.{place}", WAYS[which](b, s), role) for place, (which, role) in enumerate(picked)]
        kept = sum(1 for one in buffers[:kept] if is_array(one.requested) or one.requested)
        buffers = [one for one in buffers if is_array(one.requested) or one.requested]  # none is made of nothing
        tape.append(Repeat(times, (*map(Alloc, buffers[:kept]), *within([(one, 1) for one in buffers[kept:]]))))
        left += [Repeat(times, (Free(one),)) for one in buffers[:kept]]
    return [*tape, *left[::2]]


@settings(max_examples=60, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=5), sizes, st.lists(sizes, min_size=1, max_size=5))
def test_a_job_read_from_formulas_is_its_fold(parts, played, others):
    """Peak, what is live then, its phase and instant, and each role's own: for every job as if it were folded alone."""
    recording = Recording()
    symbols = [recording.input(name, number) for name, number in zip("bs", played, strict=True)]
    formulas = Formulas(tape_of(parts, *symbols), recording)
    measures = {measure: formulas.measured(measure) for measure in (requested, rounded, allocated_bound)}
    for pair in [played, *others]:
        reading = recording.read(dict(zip("bs", pair, strict=True)))
        if reading is None:
            continue
        for measure, read in measures.items():
            alone = fold(tape_of(parts, *pair), measure)
            found = read.highest(reading)
            assert (found.top, found.phase, found.site) == (alone.stretch.top, *alone.instant())
            assert {role: size for role, size in found.roles.items() if size} == {
                role: size for role, size in alone.stretch.at_top.items() if size
            }
            own = read.role_tops(reading)
            assert {role: own.get(role, 0) for role in ROLES} == {role: alone.stretch.role_top.get(role, 0) for role in ROLES}
        assert summits(read_again(tape_of(parts, *symbols), reading)) == summits(tape_of(parts, *pair))


@settings(max_examples=35, deadline=None)
@given(st.lists(bodies, min_size=1, max_size=4), sizes, st.lists(sizes, min_size=1, max_size=5))
def test_many_jobs_read_at_once_are_each_ones_fold(parts, played, others):
    """The same over arrays, of the jobs that the recording holds for."""
    recording = Recording()
    symbols = [recording.input(name, number) for name, number in zip("bs", played, strict=True)]
    forms = FormulaArrays(tape_of(parts, *symbols), recording)
    held = [pair for pair in [played, *others] if recording.read(dict(zip("bs", pair, strict=True))) is not None]
    columns = np.array(held, dtype=np.int64).T
    reading = recording.read({"b": columns[0], "s": columns[1]})
    assert reading is not None
    for measure in (requested, rounded, allocated_bound):
        read = forms.measured(measure).read(reading)
        tops = np.broadcast_to(read.top(), len(held))
        roles = {role: np.broadcast_to(top, len(held)) for role, top in read.role_tops(ROLES).items()}
        for at, pair in enumerate(held):
            alone = fold(tape_of(parts, *pair), measure).stretch
            assert int(tops[at]) == alone.top
            assert all(int(top[at]) == alone.role_top.get(role, 0) for role, top in roles.items())


def test_instants_that_cannot_win_are_left_out():
    """Of a layer's scratch, then a larger one, and a third rounded up from less, one instant is left."""
    recording = Recording()
    b, s = recording.input("b", 4), recording.input("s", 100)
    sizes = {"a": 1024 * b * s, "b": 2048 * b * s + 1024, "c": 128 * b * s}
    first, second, third = (Buffer(name, size, "temporary") for name, size in sizes.items())
    tape = [Mark("forward"), *within([(first, 1)]), *within([(second, 1)]), *within([(third, 1)])]
    assert [one.sites[0][1] for one in Formulas(tape, recording).measured(rounded).instants] == ["b"]


def test_a_size_below_zero_is_no_size():
    """Formulas are compared as what is there or not; bytes below zero are a fault, and no formula is made of them."""
    recording = Recording()
    b, s = recording.input("b", 2), recording.input("s", 100)
    with pytest.raises(NotParametricError, match="below zero"):
        Formulas([Mark("forward"), Alloc(Buffer("odd", b - s, "temporary"))], recording)
