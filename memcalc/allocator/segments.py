"""Where blocks come from when no free one fits, and what is given back to make room: the allocator's rare paths."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from memcalc.allocator import expandable
from memcalc.allocator.blocks import SHIFT, Block, OutOfMemory, Pool
from memcalc.allocator.settings import MIN_LARGE, ROUND_LARGE, SMALL, SMALL_SEGMENT, UNLIMITED

if TYPE_CHECKING:
    from memcalc.allocator.caching import CachingAllocator


def best_fit(allocator: CachingAllocator, pool: Pool, size: int) -> int:
    """The place of the block that serves a size, or the list's length (pytorch CUDACachingAllocator.cpp:get_free_block)."""
    if allocator.collecting:
        pool.kind.searches += 1
    at, none = bisect_left(pool.keys, size << SHIFT), len(pool.keys)
    if at == none:
        return none
    if allocator.expandable:
        at = expandable.best_fit(pool, at)
    limit, found = allocator.settings.max_split_size, pool.blocks[at].size
    if size < limit <= found:
        return none  # blocks beyond the limit are kept for requests beyond it
    if size >= limit and found >= size + allocator.settings.max_non_split_rounding_size:
        return none
    return at


def segment_size(size: int, large_segment: int) -> int:
    """Bytes of the segment for a rounded size (pytorch CUDACachingAllocator.cpp:get_allocation_size).

    >>> [segment_size(size * 2**20, 20 * 2**20) // 2**20 for size in (1, 2, 9, 10, 11)]
    [2, 20, 20, 10, 12]
    """
    if size <= SMALL:
        return SMALL_SEGMENT
    return large_segment if size < MIN_LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE


def obtain(allocator: CachingAllocator, pool: Pool, size: int, requested: int) -> Block | None:
    """A block from the device, after giving back what must be (pytorch CUDACachingAllocator.cpp:malloc)."""
    segment = segment_size(size, allocator.settings.large_segment_size)
    if allocator.collecting:
        _collect_garbage(allocator)
    block = _allocate(allocator, pool, size, segment)
    if block is None and _release_available(allocator, pool, size):
        block = _allocate(allocator, pool, size, segment)
    if block is None:
        release_cached(allocator)
        block = _allocate(allocator, pool, size, segment)
    if block is None:
        left = allocator.device.free
        if allocator.allowed is not None:
            room = allocator.allowed - allocator.reserved
            left = room if left is None else min(left, room)
        allocator.out_of_memory = OutOfMemory(requested, segment, left, allocator.allocated, allocator.reserved, pool.stream)
    return block


def _allocate(allocator: CachingAllocator, pool: Pool, size: int, segment: int) -> Block | None:
    """One try (pytorch CUDACachingAllocator.cpp:alloc_block)."""
    if allocator.allowed is not None and allocator.reserved + segment > allocator.allowed:
        return None
    if allocator.expandable:
        return expandable.allocate(allocator, pool, size)
    address = allocator.device.allocate(segment)
    if address is None:
        return None
    allocator.hold("segment_alloc", address, segment, pool.stream)
    return Block(address, segment, pool)


def _release_available(allocator: CachingAllocator, pool: Pool, size: int) -> bool:
    """Give back oversize blocks, only enough of them (pytorch CUDACachingAllocator.cpp:release_available_cached_blocks)."""
    limit = allocator.settings.max_split_size
    if limit >= UNLIMITED:
        return False
    wanted = max(size, limit)
    at = bisect_left(pool.keys, wanted << SHIFT)
    if at < len(pool.keys) and not allocator.expandable:
        release(allocator, pool.blocks[at])
        return True
    released = 0
    at -= 1
    while released < wanted and at >= 0 and pool.blocks[at].size >= limit:
        block = pool.blocks[at]
        at -= 1
        if not allocator.expandable:
            released += block.size
            release(allocator, block)
    return released >= wanted


def release_cached(allocator: CachingAllocator) -> None:
    """Give back every free segment, the large pools' first (pytorch CUDACachingAllocator.cpp:release_cached_blocks)."""
    for small in (False, True):
        for pool in allocator.all_pools(small):
            if allocator.expandable:
                expandable.release(allocator, pool)
                continue
            for block in [block for block in pool.blocks if not block.split]:
                release(allocator, block)


def release(allocator: CachingAllocator, block: Block) -> None:
    """Give one free segment back (pytorch CUDACachingAllocator.cpp:release_block)."""
    block.pool.remove(block)
    allocator.device.release(block.address, block.size)
    allocator.hold("segment_free", block.address, block.size, block.pool.stream)


def _collect_garbage(allocator: CachingAllocator) -> None:
    """Give back segments unused for long (pytorch CUDACachingAllocator.cpp:garbage_collect_cached_blocks)."""
    assert allocator.allowed is not None
    threshold = int(allocator.settings.garbage_collection_threshold * allocator.allowed)
    if allocator.reserved <= threshold:
        return
    target, reclaimed = allocator.reserved - threshold, 0
    searches = allocator.kinds[1].searches
    whole = [block for pool in allocator.all_pools(small=False) for block in pool.blocks if not block.split]
    age = sum(searches - block.born for block in whole)
    freed = True
    while reclaimed < target and freed and whole:
        mean, kept = age / len(whole), []
        for block in whole:
            # an expandable segment is never whole: unmapped addresses follow it
            if searches - block.born >= mean:
                reclaimed += block.size
                age -= searches - block.born
                release(allocator, block)
            else:
                kept.append(block)
        freed = len(kept) < len(whole)
        whole = kept
