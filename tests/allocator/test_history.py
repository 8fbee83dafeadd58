"""Recorded histories, made by the naive allocator over random programs, replayed event by event."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from memcalc.allocator.history import compare_counters, replay_history
from memcalc.allocator.settings import AllocatorSettings, parse_settings
from memcalc.engines.measure.history import pack, unpack
from memcalc.measurement import Counters, Phase
from tests.allocator.test_against_naive import NAMES, PROGRAM, WAYS, run

TOTAL = 2**33
HISTORIES = {way: (text, capacity, TOTAL if "expandable" in way else capacity) for way, (text, capacity) in WAYS.items()}
"""Ways with (settings, room, whole device). Expandable segments have addresses enough: a history does not say where one lies
that was reserved in vain."""
HISTORIES["expandable, fraction"] = ("expandable_segments:True,per_process_memory_fraction:0.0109", 120 * 2**20, TOTAL)


def recorded(program, way, descending=False):
    """(rows as a record keeps them, allocated and reserved after each of the naive allocator's steps, its peaks)."""
    text, capacity, total = HISTORIES[way]
    steps, trace, peak = [], [], dict.fromkeys(NAMES, 0)
    for naive, _, _, _ in run(program, parse_settings(text), capacity, descending, total):
        steps.append((len(naive.trace), naive.stats()))
        trace, peak = naive.trace, naive.peak
    entries = [{"action": action, "addr": address, "size": size, "stream": stream} for action, address, size, stream in trace]
    return unpack(pack(entries, [("1 forward", 0)])), steps, peak


@settings(max_examples=15, deadline=None)
@given(program=PROGRAM)
@pytest.mark.parametrize("way", HISTORIES)
def test_histories_are_replayed_to_the_byte(way, program):
    """Whatever the device answered, every event agrees, and allocated, reserved and the peaks are the recorded ones."""
    text, _, total = HISTORIES[way]
    rows, steps, peak = recorded(program, way, descending=len(program) % 2 == 1)
    played = replay_history(rows, parse_settings(text), total=total)
    assert played.difference is None
    assert played.matched == len(rows)
    for count, now in steps:
        if count:
            assert (played.allocated[count - 1], played.reserved[count - 1]) == (now["allocated"], now["reserved"])
    assert {name: getattr(played.peaks, name) for name in NAMES} == peak


BYTES = [3 * 2**20, 700, 5 * 2**20, 2 * 2**20]
PLAIN = [*(("malloc", size, 0) for size in BYTES), ("free", 0, 0), ("malloc", 3 * 2**20, 0), ("free", 0, 0)]


def test_first_difference_is_named():
    """A record that was made under other settings differs, and the event where it first does is said."""
    rows, *_ = recorded(PLAIN, "default")
    played = replay_history(rows, AllocatorSettings(large_segment_size=30 * 2**20))
    assert (played.matched, played.difference.event) == (0, 0)
    assert played.difference.recorded == "segment_alloc of 20971520 bytes"
    assert played.difference.replayed == "segment_alloc of 31457280 bytes"


@pytest.mark.parametrize("at", range(4))
def test_a_forged_event_is_found(at):
    """Whichever event of a record is altered, the replay stops at it or at what follows from it."""
    rows, *_ = recorded(PLAIN, "default")
    action, address, size, stream, phase = rows[at]
    rows[at] = (action, address, size + 2**21, stream, phase)
    played = replay_history(rows)
    assert played.difference is not None
    assert at - 1 <= played.difference.event <= at + 8


def test_a_block_from_before_the_record_is_named():
    """A free of what the record never allocated says so."""
    played = replay_history([("free_requested", 5, 512, 0, "1 forward")])
    assert played.difference.replayed == "has no such block, which was allocated before recording began"


def test_phase_counters_are_compared():
    """A phase's counters that agree say nothing; one that differs by a byte is a sentence."""
    rows, steps, peak = recorded(PLAIN, "default")
    played = replay_history(rows)
    nothing = Counters(**dict.fromkeys(NAMES, 0))
    phase = Phase(phase="forward", start=nothing, end=Counters(**steps[-1][1]), peak=Counters(**peak))
    assert compare_counters(played, [phase]) == []
    off = phase.model_copy(update={"end": Counters(allocated=steps[-1][1]["allocated"] + 1)})
    assert compare_counters(played, [off]) == [
        f"1 forward, end: allocated is {steps[-1][1]['allocated'] + 1} recorded and {steps[-1][1]['allocated']} replayed"
    ]
