"""Timelines of tapes: sums worked out by hand, and random tapes against a replay that adds up one event at a time."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.arrays import rounded
from memcalc.errors import InputError
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat
from memcalc.tape.fold import fold, requested
from memcalc.timeline.drawing import VISIBLE, kept
from memcalc.timeline.groups import by, by_rows, modules, shares, top_rows
from memcalc.timeline.timeline import Timeline
from tests.timeline.demo import Step, series, tape

W = Buffer("fc.weight", 1000, "parameter", module="net.fc")
M = Buffer("exp_avg", 2000, "optimizer_state", module="net.fc", operator="aten.zeros_like.default")
A = [
    Buffer("out", 300, "activation", module="net.fc", operator="aten.addmm.default", shape=(5, 15), dtype="float32")
    for _ in "12"
]
T = [Buffer("scratch", 600, "temporary", module="net", operator="aten.addmm.default") for _ in "12"]
H = Buffer("step", 4, "optimizer_state", place="host")
STEP = [
    Alloc(W),  # 0: 1024
    Mark("forward", 1), Alloc(A[0]), Alloc(T[0]), Free(T[0]),  # 1: 1536  2: 2560  3: 1536
    Mark("optimizer_step", 1), Alloc(M), Alloc(H), Free(A[0]),  # 4: 3584  5: 3584  6: 3072
    Mark("forward", 2), Alloc(A[1]),  # 7: 3584
    Mark("forward", 2), Alloc(T[1]), Free(T[1]),  # 8: 4608  9: 3584
    Mark("loss", 2),
    Mark("backward", 2), Free(A[1]),  # 10: 3072
]  # fmt: skip


def test_a_step_by_hand():
    """Live bytes, phases, the peak and what is alive then are those worked out on paper."""
    timeline = Timeline.of(STEP)
    assert timeline.total.tolist() == [1024, 1536, 2560, 1536, 3584, 3584, 3072, 3584, 4608, 3584, 3072]
    stays = [(stay.phase, stay.iteration, stay.start, stay.stop) for stay in timeline.lives.stays]
    assert stays == [
        ("init", 0, 0, 1), ("forward", 1, 1, 4), ("optimizer_step", 1, 4, 7), ("forward", 2, 7, 10), ("backward", 2, 10, 11),
    ]  # fmt: skip
    assert (timeline.peak.instant, timeline.peak.bytes, timeline.peak.phase, timeline.peak.iteration) == (8, 4608, "forward", 2)
    assert timeline.by_role(8) == {"parameter": 1024, "optimizer_state": 2048, "activation": 512, "temporary": 1024}
    assert timeline.roles == ("parameter", "optimizer_state", "activation", "temporary")
    names = [(one.buffer.site, one.bytes) for one in timeline.largest(9)]
    assert names == [("exp_avg", 2048), ("fc.weight", 1024), ("scratch", 1024), ("out", 512)]
    assert [timeline.top(stay).bytes for stay in timeline.lives.stays] == [1024, 2560, 3584, 4608, 3072]


def test_requested_bytes_by_hand():
    """In the other measure a buffer counts what its tensor asks for."""
    timeline = Timeline.of(STEP, measure="requested")
    assert timeline.peak.bytes == 1000 + 2000 + 300 + 600
    assert timeline.by_role(8) == {"parameter": 1000, "optimizer_state": 2000, "activation": 300, "temporary": 600}


def test_groups_by_hand():
    """Each grouping of the peak, the tree of modules, and what is written of one buffer."""
    timeline = Timeline.of(STEP)
    assert [(one.name, one.bytes, one.buffers) for one in by(timeline, "module")] == [("net.fc", 3584, 3), ("net", 1024, 1)]
    operators = [(row["name"], row["bytes"], row["share"]) for row in by_rows(timeline, "operator")]
    assert operators == [
        ("aten.zeros_like.default", 2048, 44.5), ("aten.addmm.default", 1536, 33.3), ("(no operator)", 1024, 22.2)
    ]  # fmt: skip
    root = modules(timeline)
    (net,) = root.children
    assert (root.bytes, root.own, net.path, net.bytes, net.own, net.buffers) == (4608, 0, "net", 4608, 1024, 4)
    assert [(child.path, child.bytes) for child in net.children] == [("net.fc", 3584)]
    row = top_rows(timeline, 4)[-1]
    assert (row["site"], row["shape"], row["requested"]) == ("out", [5, 15], 300)
    assert row["born"] == {"instant": 7, "phase": "forward", "iteration": 2}
    assert row["dies"] == {"instant": 10, "phase": "backward", "iteration": 2}


def test_modules_that_differ_in_numbers_fold():
    """Layers of a stack are one line, which says how many there are; other digits stay."""
    names = ("h.0.fc1", "h.1.fc1", "h.10.fc1", "0", "fc2")
    timeline = Timeline.of(Alloc(Buffer(name, 512, "activation", module=name)) for name in names)
    assert {(one.name, one.bytes, one.covers) for one in by(timeline, "module", fold=True)} == {
        ("h.*.fc1", 1536, 3), ("*", 512, 1), ("fc2", 512, 1)
    }  # fmt: skip


def test_the_peak_is_the_steady_steps():
    """Iteration 1 may be higher and is not the peak, unless it is asked for or is all there is."""
    big, small = Buffer("big", 9000, "temporary"), Buffer("small", 10, "temporary")
    events = [Mark("forward", 1), Alloc(big), Free(big), Mark("forward", 2), Alloc(small), Mark("forward", 3), Free(small)]
    assert Timeline.of(events).peak.instant == 2
    assert Timeline.of(events, iteration=1).peak.bytes == 9216
    assert Timeline.of(events[:3]).peak.bytes == 9216
    with pytest.raises(InputError, match=r"timeline.iteration: 7 is not on the tape; it has 1, 2, 3"):
        Timeline.of(events, iteration=7)


def test_equal_buffers_are_told_apart_by_identity():
    """Of two equal buffers alive together, the one that is freed is the one that dies."""
    first, second = (Buffer("x", 100, "activation") for _ in "12")
    assert first == second
    lives = Timeline.of([Alloc(first), Alloc(second), Free(first)]).lives
    assert lives.dies.tolist() == [2, 3]


def test_a_free_of_an_equal_buffer():
    """Where the very object is not alive, the youngest equal one dies, as in the allocator's replay."""
    first, second, third, other = (Buffer(name, 100, "activation") for name in "xxxy")
    lives = Timeline.of([Alloc(first), Alloc(other), Alloc(second), Free(third), Free(first)]).lives
    assert lives.dies.tolist() == [4, 5, 3]


def test_series_may_count_marks_too():
    """A series after every event of the tape is read at its allocations and frees."""
    events = [Mark("init", 0), Alloc(W), Mark("forward"), Mark("loss"), Alloc(A[0]), Free(A[0])]
    for counted in ([1024, 1536, 1024], [0, 1024, 1024, 1024, 1536, 1024]):
        assert Timeline.of(events, allocated=counted).allocated.tolist() == [1024, 1536, 1024]
    with pytest.raises(InputError, match=r"timeline.allocated: has the shape \[4\], and the tape has 3 allocations and frees"):
        Timeline.of(events, allocated=[0] * 4)


def test_repetition_is_expanded():
    """A repeated body is as many births and deaths as it stands for."""
    one = Buffer("x", 512, "activation")
    assert Timeline.of([Repeat(3, (Alloc(one),)), Repeat(2, (Free(one),))]).total.tolist() == [512, 1024, 1536, 1024, 512]


@pytest.mark.parametrize(
    ("events", "extra", "said"),
    [
        ([], {}, "tape: holds no allocation"),
        ([Alloc(W), Free(A[0])], {}, "tape: out is freed at instant 1 and is not alive then"),
        ([Alloc(W), Free(W), Free(W)], {}, "tape: fc.weight is freed at instant 2 and is not alive then"),
        ([Alloc(W)], {"allocated": [1, 2]}, r"timeline.allocated: has the shape \[2\], and the tape has 1"),
    ],
)
def test_what_is_refused(events, extra, said):
    """A tape that cannot be, and a series that is not the tape's, are errors that say so."""
    with pytest.raises(InputError, match=said):
        Timeline.of(events, **extra)


def test_only_bytes_on_the_device_count():
    """Host and managed memory take instants and no bytes; a tape of nothing else has a peak of 0."""
    timeline = Timeline.of([Alloc(H)])
    assert (timeline.peak.bytes, timeline.roles, timeline.largest(3), by(timeline, "role")) == (0, (), [], [])


NAMES = ("", "a", "a.b", "a.b.0", "a.b.1", "c.0.d", "e..f", ".g")


@st.composite
def tapes(draw, most=60, marks=True):
    """Events in which only what is alive is freed."""
    events, alive = [], []
    for kind in draw(st.lists(st.integers(0, 9), min_size=1, max_size=most)):
        if kind == 9 and marks:
            events.append(Mark(draw(st.sampled_from(["forward", "backward", "loss"])), draw(st.integers(1, 3))))
        elif kind >= 5 and alive:
            events.append(Free(alive.pop(draw(st.integers(0, len(alive) - 1)))))
        else:
            alive.append(
                Buffer(
                    "x", draw(st.integers(0, 5000)),
                    draw(st.sampled_from(["parameter", "activation", "temporary", "workspace"])),
                    place=draw(st.sampled_from(["device"] * 4 + ["host"])), module=draw(st.sampled_from(NAMES)),
                    operator=draw(st.sampled_from(["", "aten.mm.default"])),
                )
            )  # fmt: skip
            events.append(Alloc(alive[-1]))
    return events if any(isinstance(one, Alloc) for one in events) else [Alloc(W), *events]


@given(tapes(), st.sampled_from(["rounded", "requested"]))
@settings(max_examples=60, deadline=None)
def test_every_grouping_sums_to_the_peak(events, measure):
    """Roles, modules, operators, the tree's leaves and the buffers alive each sum to the peak, and shares to 100 or to 0."""
    timeline = Timeline.of(events, measure=measure)
    peak = timeline.peak
    assert sum(timeline.by_role(peak.instant).values()) == peak.bytes
    assert sum(one.bytes for one in timeline.largest(10**6)) == peak.bytes
    for how in ("module", "operator", "role"):
        for fold_ in (False, True):
            assert sum(one.bytes for one in by(timeline, how, fold=fold_)) == peak.bytes
        assert sum(row["share"] for row in by_rows(timeline, how)) == pytest.approx(100 if peak.bytes else 0)

    def checked(node):
        assert node.bytes == node.own + sum(checked(child) for child in node.children)
        return node.bytes

    assert checked(modules(timeline)) == peak.bytes


@given(tapes(), st.sampled_from([("rounded", rounded), ("requested", requested)]))
@settings(max_examples=60, deadline=None)
def test_totals_are_a_plain_replays(events, measure):
    """The total after every event is what adding and taking away one buffer at a time gives."""
    name, of = measure
    live, totals = 0, []
    for event in events:
        if not isinstance(event, Mark):
            size = of(event.buffer.requested) if event.buffer.place == "device" else 0
            live += size if isinstance(event, Alloc) else -size
            totals.append(live)
    timeline = Timeline.of(events, measure=name)
    assert timeline.total.tolist() == totals
    window = slice(*timeline.window)
    assert timeline.peak.bytes == max(totals[window])


@given(tapes(marks=False))
@settings(max_examples=25, deadline=None)
def test_the_peak_is_the_folds(events):
    """The two readers of a tape agree on its peak."""
    assert Timeline.of(events).peak.bytes == fold(events).stretch.top


@given(st.lists(st.integers(0, 10**12), max_size=12), st.integers(0, 2))
def test_shares_add_up(sizes, digits):
    """Rounded shares sum to 100, and none is off by a whole unit of its last digit."""
    percents = shares(sizes, digits)
    assert sum(percents) == pytest.approx(100 if sum(sizes) else 0)
    assert all(
        abs(p - 100 * size / sum(sizes)) < 10**-digits + 1e-9 for p, size in zip(percents, sizes, strict=True) if sum(sizes)
    )


@given(tapes(most=400), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_thinning_keeps_every_peak_that_shows(events, columns):
    """In each stretch of a thinned drawing, no curve is higher than what is drawn by a thousandth of the picture."""
    timeline = Timeline.of(events)
    at = kept(timeline, columns)
    rows = [timeline.total, *timeline.live]
    height = max(int(row.max()) for row in rows)
    edges = np.unique(np.linspace(0, len(timeline), columns + 1).astype(int))
    for low, high in pairwise(edges):
        mine = at[(at >= low) & (at < high)]
        assert timeline.total[mine].max() == timeline.total[low:high].max()
        assert timeline.total[mine].min() == timeline.total[low:high].min()
        assert all(row[low:high].max() - row[mine].max() <= height / VISIBLE for row in rows)
    assert {0, len(timeline) - 1, timeline.peak.instant} <= set(at.tolist())
    assert len(at) <= max(2 * columns, (3 + len(rows)) * columns + 2 * len(timeline.lives.stays) + 2)


def test_a_large_trace_is_thinned_and_stays_exact():
    """Tens of thousands of events keep their sums; the drawing has a few thousand points and the same peak."""
    events = tape(4, layers=60)
    allocated, reserved = series(events)
    timeline = Timeline.of(events, allocated=allocated, reserved=reserved)
    at = kept(timeline)
    assert len(timeline) > 25_000 > 6_000 > len(at)
    assert timeline.total[at].max() == timeline.total.max()
    assert sum(one.bytes for one in by(timeline, "module")) == timeline.peak.bytes
    assert timeline.highest(timeline.reserved).bytes == reserved[slice(*timeline.window)].max()
    # what outlives an iteration: fp16 parameters, and fp32 masters and two moments
    counts = [prod(shape) for _, shape in Step(layers=60).weights()]
    assert int(timeline.total[-1]) == sum(rounded(2 * count) + 3 * rounded(4 * count) for count in counts)
