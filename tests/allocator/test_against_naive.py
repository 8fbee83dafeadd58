"""The model against a second, naive implementation of the same rules, over random programs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.allocator.blocks import Memory
from memcalc.allocator.caching import CachingAllocator
from memcalc.allocator.settings import parse_settings
from tests.allocator.naive import NaiveAllocator

KIB, MIB = 2**10, 2**20
NAMES = ("requested", "allocated", "active", "reserved", "inactive_split")

SIZES = st.one_of(
    st.sampled_from([1, 512, 513, MIB - 1, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 10 * MIB + 1, 19 * MIB, 20 * MIB, 24 * MIB]),
    st.integers(1, 4 * KIB),
    st.integers(1, 1100).map(lambda size: size * KIB),
    st.integers(1, 48).map(lambda size: size * MIB),
)
STEP = st.one_of(
    st.tuples(st.just("malloc"), SIZES, st.sampled_from([0, 0, 0, 7])),
    st.tuples(st.just("free"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("free"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.sampled_from(["request", "complete"]), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("malloc"), SIZES, st.just(0)),
    st.tuples(st.just("empty"), st.just(0), st.just(0)),
)
PROGRAM = st.lists(STEP, max_size=60)
WAYS = {
    "default": ("", None),
    "small device": ("", 80 * MIB),
    "rounding": ("roundup_power2_divisions:[1:8,4:2,>:4]", None),
    "max split": ("max_split_size_mb:20,max_non_split_rounding_mb:22", 90 * MIB),
    "large segment": ("large_segment_size_mb:30", 100 * MIB),
    "expandable": ("expandable_segments:True", None),
    "expandable, small device": ("expandable_segments:True", 84 * MIB),
    "expandable, max split": ("expandable_segments:True,max_split_size_mb:20", 84 * MIB),
    "fraction": ("per_process_memory_fraction:0.7", 128 * MIB),
    "expandable, fraction": ("expandable_segments:True,per_process_memory_fraction:0.7", 128 * MIB),
    "collecting": ("garbage_collection_threshold:0.4,per_process_memory_fraction:0.9", 128 * MIB),
    "collecting, max split": (
        "garbage_collection_threshold:0.3,per_process_memory_fraction:0.9,max_split_size_mb:24", 128 * MIB,
    ),
}  # fmt: skip


def run(program, config, capacity, descending=False, total=None):
    """Both allocators through one program; yields after every step (theirs, ours, both traces)."""
    naive = NaiveAllocator(config, capacity, total, descending)
    ours = CachingAllocator(config, capacity, total, Memory(capacity, descending))
    trace, held, waiting = [], {}, {}
    ours.on_segment = lambda *event: trace.append(event)
    for number, (what, amount, stream) in enumerate(program):
        if what == "malloc":
            block = ours.malloc(amount, stream)
            got = naive.malloc(number, amount, stream)
            assert (block is not None) == got
            if block is None:
                trace.append(("oom", 0, ours.rounded(amount), stream))
                assert ours.out_of_memory.requested == amount
            else:
                trace.append(("alloc", block.address, amount, stream))
                held[number] = block
        elif what in ("free", "request") and held:
            key = list(held)[amount % len(held)]
            block = held.pop(key)
            trace.append(("free_requested", block.address, block.requested, block.pool.stream))
            if what == "free":
                trace.append(("free_completed", block.address, block.requested, block.pool.stream))
                ours.free(block)
                naive.free(key)
            else:
                waiting[key] = block
                ours.request_free(block)
                naive.request_free(key)
        elif what == "complete" and waiting:
            key = list(waiting)[amount % len(waiting)]
            block = waiting.pop(key)
            trace.append(("free_completed", block.address, block.requested, block.pool.stream))
            ours.complete_free(block)
            naive.complete_free(key)
        elif what == "empty":
            ours.empty_cache()
            naive.empty_cache()
        yield naive, ours, trace, held | waiting


@settings(max_examples=25, deadline=None)
@given(program=PROGRAM, descending=st.booleans())
@pytest.mark.parametrize("way", WAYS)
def test_same_as_naive(way, program, descending):
    """Every counter, every peak, every address and every segment that comes or goes are the same after every step."""
    text, capacity = WAYS[way]
    for naive, ours, trace, _ in run(program, parse_settings(text), capacity, descending):
        now, then = naive.stats(), ours.statistics()
        assert now == {name: getattr(then, name) for name in NAMES}
        assert naive.peak == {name: getattr(ours.peaks(), name) for name in NAMES}
        assert trace == naive.trace
