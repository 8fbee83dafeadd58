"""The fold against a plain replay that expands every repetition and adds up one event at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.arrays import rounded
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat, allocs, frees, within
from memcalc.tape.fold import _Folder, fold, requested

ROLES = ("parameter", "activation", "temporary", "gradient")
leaf = st.builds(
    lambda kind, size, role: kind(Buffer(f"{role}-{size}", size, role)),
    st.sampled_from([Alloc, Free]),
    st.integers(0, 5000),
    st.sampled_from(ROLES),
)
event = st.recursive(
    leaf,
    lambda inner: st.builds(lambda n, body: Repeat(n, tuple(body)), st.integers(0, 4), st.lists(inner, max_size=4)),
    max_leaves=12,
)
tape = st.lists(event, max_size=10)


def unrolled(events):
    for one in events:
        if isinstance(one, Repeat):
            for _ in range(one.times):
                yield from unrolled(one.body)
        else:
            yield one


def replayed(events, measure):
    """(net by role, top, at_top, role tops, phase tops), one event at a time."""
    live = dict.fromkeys(ROLES, 0)
    top, at_top, tops, phases, phase = 0, dict(live), dict.fromkeys(ROLES, 0), {}, None
    for one in unrolled(events):
        if isinstance(one, Mark):
            phase = one.phase
        else:
            live[one.buffer.role] += measure(one.buffer.requested) * (1 if isinstance(one, Alloc) else -1)
        total = sum(live.values())
        if total > top:
            top, at_top = total, dict(live)
        tops = {role: max(tops[role], live[role]) for role in ROLES}
        if phase:
            phases[phase] = max(phases.get(phase, total), total)
    return live, top, at_top, tops, phases


@settings(max_examples=40, deadline=None)
@given(tape)
@pytest.mark.parametrize("measure", [requested, rounded])
def test_fold_equals_replay(measure, events):
    """Net, top, and each role's own top are those of the expanded tape, however it repeats."""
    live, top, _, tops, _ = replayed(events, measure)
    stretch = fold(events, measure).stretch
    assert {role: stretch.net.get(role, 0) for role in ROLES} == live
    assert stretch.top == top
    assert {role: stretch.role_top.get(role, 0) for role in ROLES} == tops


@settings(max_examples=35, deadline=None)
@given(tape)
def test_roles_at_the_peak_sum_to_it(events):
    """What was live at the peak, by role, is exactly the peak."""
    stretch = fold(events).stretch
    assert sum(stretch.at_top.values()) == stretch.top


@settings(max_examples=35, deadline=None)
@given(tape, tape)
def test_phases_have_their_own_peaks(first, second):
    """Each phase's top is the highest point between its mark and the next."""
    events = [Mark("forward"), *first, Mark("backward"), *second]
    assert fold(events).stretch.phase_top == replayed(events, rounded)[4]


def stacked(one, other):
    """Two tapes of one shape as a tape of arrays."""
    if isinstance(one, Repeat):
        return Repeat(
            np.array([one.times, other.times]), tuple(stacked(a, b) for a, b in zip(one.body, other.body, strict=True))
        )
    size = np.array([one.buffer.requested, other.buffer.requested], dtype=np.int64)
    return type(one)(Buffer(one.buffer.site, size, one.buffer.role))


def resized(one, by):
    """The same shape with other numbers."""
    if isinstance(one, Repeat):
        return Repeat((one.times + by) % 5, tuple(resized(inner, by) for inner in one.body))
    return type(one)(Buffer(one.buffer.site, one.buffer.requested * by // 3, one.buffer.role))


@settings(max_examples=40, deadline=None)
@given(tape, st.integers(1, 7))
def test_arrays_equal_scalars(events, by):
    """A fold over arrays is the fold of each of its elements: the sweep has no second implementation."""
    others = [resized(one, by) for one in events]
    both = fold([stacked(a, b) for a, b in zip(events, others, strict=True)]).stretch
    for index, alone in enumerate((fold(events).stretch, fold(others).stretch)):
        pick = lambda value, at=index: int(np.broadcast_to(value, 2)[at])  # noqa: E731
        assert pick(both.top) == alone.top
        for mine, theirs in ((both.net, alone.net), (both.at_top, alone.at_top), (both.role_top, alone.role_top)):
            assert {r: pick(v) for r, v in mine.items() if pick(v)} == {r: v for r, v in theirs.items() if v}


def test_hand_worked_step():
    """A step small enough to add up by hand: three layers, one scratch buffer each, and its named peak."""
    saved, scratch = Buffer("saved", 1000, "activation"), Buffer("scratch", 600, "temporary")
    weights = Buffer("weights", 5000, "parameter")
    tape = [
        Mark("init"), Alloc(weights),
        Mark("forward"), Repeat(3, (Alloc(saved), *within([(scratch, 1)]))),
        Mark("backward"), Repeat(3, (Free(saved),)),
    ]  # fmt: skip
    folded = fold(tape, requested)
    assert folded.stretch.top == 5000 + 3 * 1000 + 600
    assert folded.stretch.total == 5000
    assert folded.instant() == ("forward", "scratch")
    assert fold(tape).stretch.top == 5120 + 3 * 1024 + 1024


def test_only_one_place_is_read():
    """Host and managed buffers never count on the device."""
    tape = [Alloc(Buffer("step", 4, "optimizer_state", "host")), Alloc(Buffer("paged", 100, "optimizer_state", "managed"))]
    assert [fold(tape, requested, place).stretch.top for place in ("device", "host", "managed")] == [0, 4, 100]


def test_allocs_and_frees_cancel():
    """What is allocated n times and freed n times leaves nothing."""
    buffer = Buffer("b", 700, "gradient")
    assert fold([allocs(buffer, 5), frees(buffer, 5)], requested).stretch.total == 0


@settings(max_examples=35, deadline=None)
@given(tape, tape)
def test_one_job_in_place_is_the_algebra(first, second):
    """What is added up in place for one job is what the algebra of stretches says: totals, tops, phases and the instant."""
    events = [Mark("forward"), *first, Mark("backward"), *second]
    quick, full = fold(events), _Folder(rounded, "device").run(events)
    for name in ("net", "at_top", "role_top"):
        kept = [{role: size for role, size in getattr(one.stretch, name).items() if size} for one in (quick, full)]
        assert kept[0] == kept[1], name
    assert (quick.stretch.top, quick.stretch.phase_top) == (full.stretch.top, full.stretch.phase_top)
    assert quick.instant() == full.instant()
