"""The bare replay of phases' highest points, held against the full replay to the byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.allocator.replay import replay
from memcalc.allocator.summits import lives_in, summits
from memcalc.errors import InputError
from memcalc.tape.events import Alloc, Buffer, Free, Mark, Repeat

MIB = 2**20
SIZES = (1, 512, 513, 4096, 700_000, MIB, MIB + 1, 3 * MIB, 8 * MIB, 9 * MIB + 5, 10 * MIB, 21 * MIB - 7, 32 * MIB, 112 * MIB)
KEPT = tuple(Buffer(f"kept {size}", size, "activation") for size in SIZES)


@st.composite
def bodies(draw, least=1):
    """Births and deaths in some order: what is left over, and whether from before, is drawn as well."""
    number = draw(st.integers(least, 7))
    events, live = [], []
    for _ in range(2 * number):
        if live and draw(st.booleans()):
            events.append(Free(live.pop(draw(st.integers(0, len(live) - 1)))))
        else:
            buffer = draw(
                st.one_of(
                    st.sampled_from(KEPT), st.builds(Buffer, st.just("own"), st.sampled_from(SIZES), st.just("temporary"))
                )
            )
            events.append(Alloc(buffer))
            live.append(buffer)
    if draw(st.booleans()):
        events += [Free(buffer) for buffer in draw(st.permutations(live))]
    return tuple(events)


@st.composite
def tapes(draw):
    """Phases of births, deaths and repetitions; a death is of something alive."""
    tape = [Mark("init", 1)]
    for phase, iteration in (("forward", 1), ("backward", 1), ("forward", 2), ("backward", 2), ("forward", 2)):
        tape.append(Mark(phase, iteration))
        for body in draw(st.lists(bodies(), max_size=3)):
            tape.append(Repeat(draw(st.integers(0, 9)), body))
            tape += body[: draw(st.integers(0, 3))] if all(isinstance(one, Alloc) for one in body[:3]) else ()
        live = _live(tape)
        for _ in range(draw(st.integers(0, len(live)))):
            buffer = live.pop(draw(st.integers(0, len(live) - 1)))
            older = sum(one is buffer for one in live)
            tape.append(Free(buffer, draw(st.integers(0, older))))
    return tape


def _live(tape):
    counts = {}
    for event in tape:
        times, body = (event.times, event.body) if isinstance(event, Repeat) else (1, (event,))
        for one in body:
            if not isinstance(one, Mark):
                key = id(one.buffer)
                counts[key] = one.buffer, counts.get(key, (None, 0))[1] + times * (1 if isinstance(one, Alloc) else -1)
    return [buffer for buffer, count in counts.values() for _ in range(count)]


def told(tape):
    """What the full replay says of the phases."""
    rows = replay(tape).phases().items()
    return {place: {name: peaks[name] for name in ("requested", "allocated", "reserved")} for place, peaks in rows}


@settings(max_examples=25, deadline=None)
@given(tapes())
def test_summits_are_the_replays(tape):
    """Of any program, with bodies that give all back, that leave some or that take from before, every phase is the same."""
    assert summits(tape) == told(tape)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(bodies(), st.integers(2, 40)), min_size=1, max_size=6))
def test_repeated_bodies_are_played_out(parts):
    """Turns that are left out because they find what the one before found change nothing, fragmented as memory may be."""
    tape = [Mark("forward"), *(Repeat(times, body) for body, times in parts)]
    assert summits(tape) == told(tape)


@settings(max_examples=25, deadline=None)
@given(tapes(), st.integers(0, 100), st.booleans())
def test_it_lives_in_what_the_replay_lives_in(tape, share, descending):
    """With less memory than it would like, cached segments given back and addresses either way, the answer is the replay's."""
    wanted = max(peaks["reserved"] for peaks in told(tape).values())
    for capacity in (wanted * share // 100, wanted - 1, wanted):
        played = replay(tape, capacity=max(capacity, 0), descending=descending)
        assert lives_in(tape, max(capacity, 0), descending=descending) is (played.out_of_memory is None)


def test_equal_buffers_that_are_not_one_and_other_streams_are_played_too():
    """What the bare loop does not take goes through the full replay: equal buffers, a second stream, phases met twice."""
    one, other = (Buffer("b", 3 * MIB, "temporary") for _ in range(2))
    away = Buffer("c", 5 * MIB, "communication", stream=7)
    for tape in (
        [Mark("forward"), Alloc(one), Alloc(other), Free(Buffer("b", 3 * MIB, "temporary")), Mark("forward"), Alloc(one)],
        [Alloc(one), Alloc(away), Mark("backward"), Free(away), Free(one)],
        [Mark("forward"), Alloc(Buffer("host", 700, "input", "host")), Alloc(Buffer("none", 0, "input"))],
        [],
    ):
        assert summits(tape) == told(tape)


def test_a_tape_of_many_jobs_is_refused_as_ever():
    """A repetition whose count is an array, or negative, is an error in the full replay's words."""
    buffer = Buffer("b", 700, "temporary")
    for times in (np.array([1, 2]), -1):
        with pytest.raises(InputError, match=r"tape\.times"):
            summits([Mark("forward"), Repeat(times, (Alloc(buffer), Free(buffer)))])
