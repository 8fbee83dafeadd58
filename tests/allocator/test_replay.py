"""Tapes played through the allocator: pairing, peaks and where they are, what was alive; the fold as the oracle for sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.allocator.replay import replay
from memcalc.errors import InputError
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat, allocs, frees, within
from memcalc.tape.fold import fold, requested
from memcalc.tape.unroll import unroll

KIB, MIB = 2**10, 2**20
WEIGHT = Buffer("w", 30 * MIB, "parameter", module="layers.0")
SAVED = Buffer(
    "mlp out", 5 * MIB, "activation", module="layers.0.mlp", operator="aten.addmm.default", dtype="bf16", shape=(5, 512)
)
SMALL = Buffer("lse", 700, "activation", module="layers.0.attn", operator="aten._flash")
GRADIENT = Buffer("w.grad", 30 * MIB, "gradient")
SIDE = Buffer("bucket", 3 * MIB, "communication", stream=5)
HOST = Buffer("offloaded", 2**40, "optimizer_state", place="host")
TAPE = [
    Mark("init", 1), Alloc(WEIGHT), Alloc(HOST), Mark("forward", 1), allocs(SAVED, 3), Alloc(SMALL),
    Mark("backward", 1), Alloc(SIDE), Alloc(GRADIENT), frees(SAVED, 2), Free(SMALL), Mark("optimizer_step", 1), Free(SIDE),
    Mark("forward", 2), *within([(SAVED, 2)]), Mark("zero_grad", 2), Free(GRADIENT),
]  # fmt: skip


@st.composite
def tapes(draw):
    """Nested births and deaths with repetition, as the engines write them, over two streams and a host buffer."""
    buffers = [
        Buffer(
            f"b{number}", draw(st.one_of(st.integers(0, 4000), st.integers(1, 30).map(lambda n: n * MIB))), role, place, stream
        )
        for number, (role, place, stream) in enumerate(
            [("parameter", "device", 0), ("activation", "device", 0), ("temporary", "device", 3), ("gradient", "host", 0)]
        )
    ]
    tape = [Mark("init")]
    for phase in ("forward", "backward"):
        tape.append(Mark(phase))
        for _ in range(draw(st.integers(0, 4))):
            one, other = draw(st.sampled_from(buffers)), draw(st.sampled_from(buffers))
            count = draw(st.integers(0, 3))
            body = tuple(within([(other, draw(st.integers(0, 2)))]))
            tape += within([(one, count)], [Repeat(draw(st.integers(0, 3)), body)])
            tape.append(allocs(one, draw(st.integers(0, 2))))
    return tape


@settings(max_examples=60, deadline=None)
@given(tape=tapes())
def test_sums_are_those_of_the_fold(tape):
    """Requested and rounded peaks, overall and by phase, are the fold's, which never expands the tape."""
    played = replay(tape)
    assert played.peak("requested").bytes == fold(tape, requested).stretch.top
    folded = fold(tape).stretch
    assert played.peak("rounded").bytes == folded.top
    by_phase = {phase: row["rounded"] for (_, phase), row in played.phases().items()}
    assert {phase: by_phase[phase] for phase in folded.phase_top} == folded.phase_top


@settings(max_examples=60, deadline=None)
@given(
    tape=tapes(), text=st.sampled_from(["", "expandable_segments:True", "roundup_power2_divisions:4", "max_split_size_mb:20"])
)
def test_what_is_alive_sums_to_the_peak(tape, text):
    """At every event: roles sum to rounded, with the remainders to allocated, and the measures keep their order."""
    played = replay(tape, text)
    series = played.series
    for event in range(len(played.events)):
        held = played.at(event)
        assert sum(held.roles.values()) == held.rounded == series["rounded"][event]
        assert held.rounded + held.remainders == held.allocated == series["allocated"][event]
        assert sum(one.buffer.requested for one in held.live) == series["requested"][event]
        assert series["requested"][event] <= series["rounded"][event] <= series["allocated"][event] <= series["reserved"][event]
        if not text:
            assert held.remainders <= MIB * sum(one.buffer.requested > MIB for one in held.live)
        if text == "expandable_segments:True":
            assert held.remainders == 0
    for measure in series:
        top = played.peak(measure)
        assert top.bytes == max(series[measure]) == series[measure][top.event]


def test_peaks_say_where_they_are():
    """A peak has its event, phase, iteration and site; phases met in several iterations stay apart."""
    played = replay(TAPE)
    top = played.peak("allocated")
    # 30 MiB weight + 3 × 5 MiB + 700 → 1024 B + 3 MiB on the other stream + 30 MiB gradient
    assert (top.bytes, top.phase, top.iteration, top.site) == (78 * MIB + 1024, "backward", 1, "w.grad")
    held = played.at(top.event)
    assert held.roles == {"parameter": 30 * MIB, "activation": 15 * MIB + 1024, "communication": 3 * MIB, "gradient": 30 * MIB}
    assert [one.buffer.site for one in held.live] == ["w", "w.grad", "mlp out", "mlp out", "mlp out", "bucket", "lse"]
    # iteration 2: weight, gradient, one activation kept from before and two more
    assert played.peak("allocated", "forward", 2).bytes == 75 * MIB
    assert played.peak("allocated", iteration=2).phase == "forward"
    assert played.phases()[1, "init"]["requested"] == 30 * MIB
    # 30 + 20 (three of 5) + 2 (small) + 20 (stream 5) + 30
    assert played.peak("reserved").bytes == 102 * MIB
    with pytest.raises(InputError, match="is no phase of this tape"):
        played.peak("allocated", "clip")


def test_equal_buffers_may_live_together():
    """Buffers that are equal and not one are told apart: each is freed by its own object, in any order."""
    one, other = (Buffer("t", 2 * MIB, "activation") for _ in range(2))
    played = replay([Alloc(one), Alloc(other), Free(one)])
    (left,) = played.at(2).live
    assert left.buffer is other
    assert left.born == 1


def test_one_object_pairs_last_in_first_out():
    """Of a buffer born several times the youngest dies first; one that is equal to it will do where identity fails."""
    one = Buffer("t", 2 * MIB, "activation")
    assert [live.born for live in replay([allocs(one, 3), Free(one)]).at(3).live] == [0, 1]
    assert replay([Alloc(one), Free(Buffer("t", 2 * MIB, "activation"))]).at(1).live == []


def test_a_free_of_nothing_is_an_error():
    """What was never born cannot die, and the error says which event."""
    with pytest.raises(InputError, match=r"tape.events\[1\]: t is freed and was not alive"):
        replay([Mark("forward"), Free(Buffer("t", 2 * MIB, "activation"))])


def test_empty_and_host_buffers_take_no_block():
    """No bytes and host bytes are nothing to the device."""
    played = replay([Alloc(Buffer("none", 0, "activation")), Alloc(HOST), Free(HOST)])
    assert played.peak("reserved").bytes == 0
    assert played.at(2).live == []


def test_an_empty_tape_has_no_bytes():
    """Nothing at all is a peak of 0."""
    assert replay([]).peak("allocated").bytes == 0


def test_running_out_stops_the_replay():
    """The request that does not fit is the last event, with what was asked, free, allocated and reserved."""
    played = replay([Alloc(WEIGHT), Alloc(GRADIENT), Alloc(SAVED)], capacity=50 * MIB)
    failed = played.out_of_memory
    # 50 − 30 MiB are left for a segment of 30 MiB
    assert (failed.requested, failed.free, failed.allocated, failed.reserved) == (30 * MIB, 20 * MIB, 30 * MIB, 30 * MIB)
    assert len(played.events) == len(played.series["allocated"]) == 2
    assert [one.buffer.site for one in played.at(1).live] == ["w"]


def test_unrolling_takes_one_job():
    """Counts of numpy's are taken where they are one number; many jobs, or less than none, are refused."""
    leaf = Alloc(WEIGHT)
    assert list(unroll([Repeat(np.int64(2), (leaf,)), Repeat(0, (leaf, Free(WEIGHT)))])) == [leaf, leaf]
    with pytest.raises(InputError, match="stands for many jobs"):
        list(unroll([Repeat(np.array([1, 2]), (leaf,))]))
    with pytest.raises(InputError, match="is negative"):
        list(unroll([Repeat(-1, (leaf,))]))


def test_the_order_of_segments_can_be_turned_round():
    """Among free blocks of one size the lower address is taken: that of the older segment, or with ``descending`` the newer."""
    large = [Buffer(f"s{n}", 12 * MIB, "activation") for n in range(2)]
    again = Buffer("again", 10 * MIB, "activation")
    big = Buffer("big", 12 * MIB, "activation")
    # both 12 MiB segments are free; 10 MiB splits one of them, and the other still serves 12 MiB: reserved is the same
    tape = [*(Alloc(one) for one in large), *(Free(one) for one in large), Alloc(again), Alloc(big)]
    assert replay(tape).peak("reserved").bytes == replay(tape, descending=True).peak("reserved").bytes == 24 * MIB
