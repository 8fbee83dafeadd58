"""The handful of instants a tape is reduced to, held against the fold of each job."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.arrays import rounded
from memcalc.engines.analytic.static import allocated_bound
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat, within
from memcalc.tape.fold import fold, requested
from memcalc.tape.forms import forms_of
from memcalc.tape.sums import together

WAYS = (
    lambda n: n, lambda n: 2 * n, lambda n: 6 * n + 512, lambda n: n // 3, lambda n: 4096 + 0 * n, lambda n: 700_000 - n,
    lambda n: (n % 7) * 1000, lambda n: 1 << 20,
)  # fmt: skip


@st.composite
def bodies(draw):
    """Buffers whose sizes go with a number in several ways, some kept and some let go."""
    one = st.tuples(st.sampled_from(range(len(WAYS))), st.sampled_from(["activation", "temporary"]))
    picked = draw(st.lists(one, max_size=5))
    return picked, draw(st.integers(0, len(picked))), draw(st.integers(0, 4))


def turned(parts, turns):
    """The same bodies in other numbers of turns."""
    return [(picked, kept, turns[at % len(turns)]) for at, (picked, kept, _) in enumerate(parts)]


def tape_of(parts, number):
    """The tape of one job, or of an array of them."""
    tape = [Mark("forward")]
    for picked, kept, times in parts:
        buffers = [Buffer(f"b{which}", WAYS[which](number), role) for which, role in picked]
        held = [Alloc(buffer) for buffer in buffers[:kept]]
        tape.append(Repeat(times, (*held, *within([(buffer, 1) for buffer in buffers[kept:]]))))
        tape += [Free(buffer) for buffer in buffers[:kept][:times]] if isinstance(times, int) and times == 1 else []
    return tape


def kept_only(parts, number):
    """The same tape, a body of one turn keeping what it kept."""
    return [event for event in tape_of(parts, number) if not isinstance(event, Free)]


@settings(max_examples=35, deadline=None)
@given(st.lists(bodies(), max_size=5), st.lists(st.integers(1, 650_000), min_size=1, max_size=6))
def test_forms_are_every_jobs_fold(parts, numbers):
    """The peak and each role's own, in every measure, are what the fold finds for each job by itself."""
    forms = forms_of(tape_of(parts, np.array(numbers, dtype=np.int64)))
    for measure in (requested, rounded, allocated_bound):
        tops = np.broadcast_to(forms.top(measure), len(numbers))
        roles = {role: np.broadcast_to(top, len(numbers)) for role, top in forms.role_tops(measure).items()}
        for at, number in enumerate(numbers):
            alone = fold(tape_of(parts, number), measure).stretch
            assert int(tops[at]) == alone.top
            assert all(int(top[at]) == alone.role_top.get(role, 0) for role, top in roles.items())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(bodies(), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=4),
)
def test_turns_may_differ_and_some_jobs_have_none(parts, turns):
    """A body that some jobs have many turns of and some none counts in each job as that job's fold has it."""
    parts = [part for part in parts if part[2] != 1] or [([(0, "activation")], 1, 0)]  # one turn gives back what it kept
    arrays = [np.array(column, dtype=np.int64) for column in zip(*turns, strict=True)]
    forms = forms_of(tape_of(turned(parts, arrays), 1000))
    for measure in (requested, rounded):
        tops = np.broadcast_to(forms.top(measure), len(turns))
        for at, own in enumerate(turns):
            assert int(tops[at]) == fold(kept_only(turned(parts, own), 1000), measure).stretch.top


def test_a_body_of_no_turns_hides_nothing():
    """An allocation that never happens stands above no instant that does."""
    one = [(0, "activation")]
    assert forms_of(tape_of([(one, 0, 1), (one, 1, 0)], np.array([1]))).top(requested) == 1


def test_sizes_that_go_together_are_one_array():
    """Multiples of one array beside a number share it, exactly; others, and arrays of another shape, do not."""
    tokens = np.array([3, 9, 4, 1000])
    values = [8 * tokens, 24 * tokens + 5, tokens % 3, np.full(4, 7), (2 * tokens).reshape(4, 1)]
    bases, told = together(values)
    assert len(bases) == 3
    for value, row in zip(values, told, strict=True):
        parts = [int(count) * base for base, count in zip(bases, row[:-1], strict=True) if count]
        assert np.array_equal(sum(parts, np.zeros_like(value)) + int(row[-1]), value)
