"""The allocator worked by hand: each rule of the source on numbers one can follow; and what holds of any program."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings

from memcalc.allocator.blocks import FREE, UNMAPPED
from memcalc.allocator.caching import CachingAllocator, Statistics
from memcalc.allocator.settings import parse_settings
from memcalc.errors import InputError
from tests.allocator.test_against_naive import PROGRAM, WAYS, run

KIB, MIB, HUGE = 2**10, 2**20, 2**60


def counted(allocator):
    now = allocator.statistics()
    return now.requested, now.allocated, now.reserved, now.inactive_split


def test_small_requests_share_a_segment():
    """Up to 1 MiB, requests are packed into segments of 2 MiB and rounded to 512 B."""
    allocator = CachingAllocator()
    one, other = allocator.malloc(1), allocator.malloc(MIB)
    # 512 + 1048576 = 1049088; 2 MiB − 1049088 = 1048064 are left of the segment
    assert counted(allocator) == (MIB + 1, 1049088, 2 * MIB, 1048064)
    assert other.address == one.address + 512
    third = allocator.malloc(MIB)  # 1048064 B do not hold 1048576: another segment of 2 MiB, split in halves
    assert counted(allocator) == (2 * MIB + 1, 2097664, 4 * MIB, 1048064 + MIB)
    for block in (one, other, third):
        allocator.free(block)
    assert counted(allocator) == (0, 0, 4 * MIB, 0)


def test_requests_under_10_mib_split_20():
    """From 1 MiB to 10 MiB a segment of 20 MiB is taken and split, and the next such request fits in the rest."""
    allocator = CachingAllocator()
    allocator.malloc(MIB + 1)  # 1049088 in 20 MiB
    assert counted(allocator) == (MIB + 1, 1049088, 20 * MIB, 20 * MIB - 1049088)
    allocator.malloc(9 * MIB)
    assert counted(allocator) == (10 * MIB + 1, 9 * MIB + 1049088, 20 * MIB, 11 * MIB - 1049088)
    allocator.malloc(10 * MIB)  # 11 MiB − 1049088 < 10 MiB: its own segment, and whole
    assert counted(allocator) == (20 * MIB + 1, 19 * MIB + 1049088, 30 * MIB, 11 * MIB - 1049088)


def test_large_segments_are_rounded_to_2_mib():
    """From 10 MiB on, a segment is the request rounded up to 2 MiB; a remainder up to 1 MiB is handed out with it."""
    allocator = CachingAllocator()
    allocator.malloc(11 * MIB)  # a segment of 12 MiB; 1 MiB is not more than 1 MiB: unsplit, counted as allocated
    assert counted(allocator) == (11 * MIB, 12 * MIB, 12 * MIB, 0)
    allocator.malloc(11 * MIB - 512)  # 1 MiB + 512 B is: split
    assert counted(allocator) == (22 * MIB - 512, 23 * MIB - 512, 24 * MIB, MIB + 512)


def test_a_cached_block_is_handed_out_whole_or_split():
    """Best fit takes the smallest block that holds a request; it is split where more than 1 MiB would be left."""
    allocator = CachingAllocator()
    blocks = [allocator.malloc(size * MIB) for size in (30, 20, 40)]
    for block in blocks:
        allocator.free(block)
    whole = allocator.malloc(19 * MIB)  # of 20, 30 and 40 MiB the 20: 1 MiB is left, unsplit
    assert (whole.address, whole.size) == (blocks[1].address, 20 * MIB)
    split = allocator.malloc(28 * MIB)  # of 30 and 40 the 30: 2 MiB are left, split
    assert split.size == 28 * MIB
    assert counted(allocator) == (47 * MIB, 48 * MIB, 90 * MIB, 2 * MIB)


def test_neighbours_merge_when_freed():
    """A freed block joins free neighbours on both sides, so that a segment is whole once all of it is free."""
    allocator = CachingAllocator()
    left, middle, right = (allocator.malloc(6 * MIB) for _ in range(3))
    allocator.free(left)
    allocator.free(right)
    assert sorted(allocator.pools[0][1].keys) == allocator.pools[0][1].keys
    assert [block.size for block in allocator.pools[0][1].blocks] == [6 * MIB, 8 * MIB]  # 20 − 18 joined the right one
    allocator.free(middle)
    assert [block.size for block in allocator.pools[0][1].blocks] == [20 * MIB]
    assert allocator.peaks() == Statistics(18 * MIB, 18 * MIB, 18 * MIB, 20 * MIB, 14 * MIB)


def test_streams_have_pools_of_their_own():
    """What one stream freed serves no other."""
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(700, stream=0))
    allocator.malloc(700, stream=3)
    assert allocator.reserved == 4 * MIB


def test_release_and_retry():
    """With no room left, whole free segments go back to the device and the request is tried again."""
    allocator = CachingAllocator(capacity=44 * MIB)
    first, _second = allocator.malloc(12 * MIB), allocator.malloc(20 * MIB)
    allocator.free(first)
    assert allocator.malloc(30 * MIB) is None  # 32 reserved; 12 go back, 44 − 20 = 24 are free: not enough
    failed = allocator.out_of_memory
    assert (failed.requested, failed.segment, failed.free, failed.allocated, failed.reserved) == (
        30 * MIB, 30 * MIB, 24 * MIB, 20 * MIB, 20 * MIB,
    )  # fmt: skip
    assert allocator.malloc(24 * MIB) is not None
    assert allocator.reserved == 44 * MIB
    assert allocator.peaks().reserved == 44 * MIB


def test_split_segments_stay():
    """A segment that is partly in use is not released, which is what fragmentation means."""
    allocator = CachingAllocator(capacity=30 * MIB)
    kept, freed = allocator.malloc(2 * MIB), allocator.malloc(18 * MIB)  # one segment of 20
    allocator.free(freed)
    assert allocator.malloc(19 * MIB) is None  # 18 are free in the segment and 10 on the device
    assert (allocator.reserved, allocator.out_of_memory.free) == (20 * MIB, 10 * MIB)
    allocator.free(kept)
    assert allocator.malloc(19 * MIB).size == 20 * MIB


def test_max_split_size():
    """Blocks of the limit and more are kept whole for requests of the limit and more, within a rounding."""
    allocator = CachingAllocator(parse_settings("max_split_size_mb:24,max_non_split_rounding_mb:20"))
    allocator.free(allocator.malloc(60 * MIB))
    small = allocator.malloc(12 * MIB)  # the cached 60 MiB may not be split for it: a new segment
    assert allocator.reserved == 72 * MIB
    large = allocator.malloc(40 * MIB)  # 60 ≥ 40 + 20: too much would be wasted
    assert (large.size, allocator.reserved) == (40 * MIB, 112 * MIB)
    close = allocator.malloc(41 * MIB)  # 60 < 41 + 20: handed out whole
    assert (close.size, allocator.reserved) == (60 * MIB, 112 * MIB)
    assert small.size == 12 * MIB


def test_max_split_size_releases_only_what_it_needs():
    """Under a capacity, one oversize block that is large enough goes back, and the others stay cached."""
    allocator = CachingAllocator(parse_settings("max_split_size_mb:24"), capacity=130 * MIB)
    for block in [allocator.malloc(size * MIB) for size in (30, 40, 60)]:
        allocator.free(block)
    allocator.malloc(12 * MIB)  # needs 12; the smallest of 24 and more, the 30, is given back
    assert allocator.reserved == 112 * MIB


def test_roundup_power2():
    """Sizes are rounded up to the next of the divisions between powers of two, where that is coarser than 512 B."""
    allocator = CachingAllocator(parse_settings("roundup_power2_divisions:[1:4,2:2,>:0]"))
    assert allocator.rounded(1200 * KIB) == 1280 * KIB  # 1024, 1280, 1536, 1792 KiB
    assert allocator.rounded(2100 * KIB) == 3072 * KIB  # 2048, 3072 KiB
    assert allocator.rounded(5000 * KIB) == 5000 * KIB  # off from 4 MiB on
    assert allocator.rounded(1500) == 1536  # 1500 ≤ 512 × 4: plain
    assert allocator.rounded(2049) == 2560  # 2048, 2560, …
    assert allocator.rounded(4 * MIB) == 4 * MIB


def test_garbage_collection():
    """Over the threshold, segments unused for at least the mean age go back before a new one is asked for."""
    allocator = CachingAllocator(
        parse_settings("garbage_collection_threshold:0.5,per_process_memory_fraction:0.8"), capacity=100 * MIB
    )
    assert allocator.allowed == 80 * MIB
    old, new = allocator.malloc(20 * MIB), allocator.malloc(24 * MIB)
    allocator.free(old)  # after two searches
    allocator.malloc(2 * MIB, stream=1)  # the third; 44 > 40 = 0.5 × 80 reserved, and the old 20 go: 24 + 20 are left
    assert allocator.reserved == 44 * MIB
    allocator.free(new)  # after three
    # the fourth: 44 > 40, and the 24, alone, are as old as their own mean: 20 + 12 are left
    allocator.malloc(12 * MIB, stream=2)
    assert allocator.reserved == 32 * MIB


def test_expandable_segments_map_pages():
    """Pages of 20 MiB are mapped behind each other as needed; nothing is handed out beyond the rounded request."""
    allocator = CachingAllocator(parse_settings("expandable_segments:True"))
    first = allocator.malloc(11 * MIB)  # one page of 20
    assert counted(allocator) == (11 * MIB, 11 * MIB, 20 * MIB, 0)
    second = allocator.malloc(30 * MIB)  # 9 free + 21 to map: two pages
    assert second.address == first.address + 11 * MIB
    assert counted(allocator) == (41 * MIB, 41 * MIB, 60 * MIB, 0)
    allocator.malloc(1)  # the small pool maps 2 MiB
    assert allocator.reserved == 62 * MIB
    allocator.free(second)  # 11 … 60 MiB free; of it the whole pages 20 … 60
    allocator.empty_cache()
    assert allocator.reserved == 22 * MIB
    allocator.malloc(12 * MIB)  # 9 free before the unmapped: one more page
    assert allocator.reserved == 42 * MIB


def test_of_equal_free_blocks_the_lower_is_taken():
    """Best fit goes by size and then by address, in expandable segments too, where the end that can grow comes last."""
    for text in ("", "expandable_segments:True"):
        allocator = CachingAllocator(parse_settings(text))
        blocks = [allocator.malloc(2 * MIB) for _ in range(5)]  # 10 of 20 MiB
        allocator.free(blocks[3])
        allocator.free(blocks[1])
        assert allocator.malloc(2 * MIB).address == blocks[1].address
        assert allocator.malloc(2 * MIB).address == blocks[3].address
        assert allocator.malloc(2 * MIB).address == blocks[4].address + 2 * MIB


def test_a_block_other_streams_use_is_active():
    """Between a free's request and its completion a block is active and not allocated, and serves nobody."""
    allocator = CachingAllocator()
    block = allocator.malloc(MIB)
    allocator.request_free(block)
    assert allocator.statistics() == Statistics(MIB, 0, MIB, 2 * MIB, MIB)
    allocator.malloc(MIB)
    allocator.malloc(MIB)
    assert allocator.peaks().active == 3 * MIB
    allocator.complete_free(block)
    assert allocator.statistics() == Statistics(2 * MIB, 2 * MIB, 2 * MIB, 4 * MIB, 2 * MIB)


def test_peaks_can_be_reset():
    """After a reset the peaks are what is there, as torch.cuda.reset_peak_memory_stats has it."""
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB))
    allocator.reset_peaks()
    assert allocator.peaks() == Statistics(0, 0, 0, 30 * MIB, 0)


def test_no_size_is_no_request():
    """0 bytes take no block in PyTorch, and are not asked for here."""
    with pytest.raises(InputError, match="is no size to allocate"):
        CachingAllocator().malloc(0)
    with pytest.raises(InputError, match="is negative"):
        CachingAllocator(capacity=-1)


@settings(max_examples=25, deadline=None)
@given(program=PROGRAM)
@pytest.mark.parametrize("way", ["default", "small device", "expandable, small device", "max split"])
def test_what_always_holds(way, program):
    """Blocks never overlap, segments add up to the byte, counters keep their order, and free neighbours are one."""
    text, capacity = WAYS[way]
    for _, ours, _, held in run(program, parse_settings(text), capacity):
        blocks = list(held.values())
        spans = sorted((block.address, block.address + block.size) for block in blocks)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        free = free_blocks(ours)
        now, peak = ours.statistics(), ours.peaks()
        assert now.active + sum(block.size for block in free) == now.reserved
        assert now.reserved >= now.active >= now.allocated
        assert all(getattr(peak, name) >= getattr(now, name) for name in now.__dataclass_fields__)
        assert not any(FREE in neighbours(block) for block in free)
        extra = sum(block.size - ours.rounded(block.requested) for block in blocks)
        bound = {"default": MIB * sum(block.requested > MIB for block in blocks), "max split": HUGE, "small device": HUGE}
        assert 0 <= extra <= bound.get(way, 0)


@settings(max_examples=25, deadline=None)
@given(program=PROGRAM)
@pytest.mark.parametrize("way", ["default", "small device", "expandable, small device", "max split"])
def test_everything_freed_is_whole_again(way, program):
    """Once all is freed no segment is in pieces, and an emptied cache holds nothing."""
    text, capacity = WAYS[way]
    steps = list(run(program, parse_settings(text), capacity))
    if not steps:
        return
    _, ours, _, held = steps[-1]
    ours.allocated, ours.pending = ours.allocated + ours.pending, 0
    for block in held.values():
        ours.free(block)
    assert all(set(neighbours(block)) <= {UNMAPPED} for block in free_blocks(ours))
    assert sum(block.size for block in free_blocks(ours)) == ours.reserved
    ours.empty_cache()
    assert (ours.reserved, ours.allocated, ours.requested) == (0, 0, 0)


def free_blocks(allocator):
    pools = [pool for pair in allocator.pools.values() for pool in pair]
    assert all(pool.keys == sorted(pool.keys) == [block.key for block in pool.blocks] for pool in pools)
    return [block for pool in pools for block in pool.blocks]


def neighbours(block):
    return [other.state for other in (block.prev, block.next) if other is not None]
