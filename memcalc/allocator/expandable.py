"""Expandable segments: addresses for more than the device has, pages mapped as they are needed, 2 MiB or 20 MiB at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.allocator.blocks import FREE, LIVE, SPACE, UNMAPPED, Block, Pool

if TYPE_CHECKING:
    from memcalc.allocator.caching import CachingAllocator


def best_fit(pool: Pool, at: int) -> int:
    """From the smallest block that fits on, the one that could grow least (pytorch CUDACachingAllocator.cpp:get_free_block)."""
    while at + 1 < len(pool.blocks) and _reach(pool.blocks[at + 1]) < _reach(pool.blocks[at]):
        at += 1
    return at


def _reach(block: Block) -> int:
    after = block.next
    return block.size + (after.size if after is not None and after.state == UNMAPPED else 0)


def allocate(allocator: CachingAllocator, pool: Pool, size: int) -> Block | None:
    """A block with pages, out of any list (pytorch CUDACachingAllocator.cpp:try_allocate_expandable_block)."""
    block = _candidate(allocator, pool, size)
    if block.state == UNMAPPED and not _map(allocator, block, min(block.size, size)):
        return None
    while block.size < size:
        after = block.next
        assert after is not None, "the addresses ahead were counted"
        if not _map(allocator, after, min(size - block.size, after.size)):
            return None
        block = after
    pool.remove(block)
    return block


def lowest_room(pool: Pool, size: int) -> Block | None:
    """The start of the lowest stretch of free and unmapped blocks with room (pytorch …:find_expandable_block)."""
    for unmapped in pool.unmapped:
        before = unmapped.prev
        first = before if before is not None and before.state != LIVE else unmapped
        room, block = 0, first
        while room < size and block.state != LIVE:
            room += block.size
            if block.next is None:
                break
            block = block.next
        if room >= size:
            return first
    return None


def _candidate(allocator: CachingAllocator, pool: Pool, size: int) -> Block:
    """Where there is room, in a new segment if need be (pytorch CUDACachingAllocator.cpp:find_expandable_block)."""
    first = lowest_room(pool, size)
    if first is not None:
        return first
    step = pool.kind.segment_size
    # room for 9/8 of the device (pytorch CUDACachingAllocator.cpp:ExpandableSegment)
    room = SPACE if allocator.total is None else max(allocator.total + allocator.total // 8, size)
    room = -(-room // step) * step
    fresh = Block(allocator.device.reserve(room), room, pool)
    pool.add_unmapped(fresh)
    return fresh


def _map(allocator: CachingAllocator, block: Block, size: int) -> bool:
    """Find pages for the start of an unmapped block and join it with its neighbours (pytorch …:map_block)."""
    pool = block.pool
    size = -(-size // pool.kind.segment_size) * pool.kind.segment_size
    address = block.address
    if not allocator.device.map(address, size):
        return False
    pool.unmapped.remove(block)
    if size < block.size:
        rest = Block(address + size, block.size - size, pool, block, block.next)
        if block.next is not None:
            block.next.prev = rest
        block.next, block.size = rest, size
        pool.add_unmapped(rest)
    _merge(block, FREE)
    pool.insert(block)
    allocator.hold("segment_map", address, size, pool.stream)
    return True


def _merge(block: Block, state: int) -> None:
    """Join a block with the neighbours in a state, which leave their lists (pytorch …:try_merge_blocks)."""
    drop = block.pool.remove if state == FREE else block.pool.unmapped.remove
    before, after = block.prev, block.next
    if before is not None and before.state == state:
        drop(before)
        block.address, block.prev = before.address, before.prev
        block.size += before.size
        if before.prev is not None:
            before.prev.next = block
    if after is not None and after.state == state:
        drop(after)
        block.next = after.next
        block.size += after.size
        if after.next is not None:
            after.next.prev = block


def release(allocator: CachingAllocator, pool: Pool) -> None:
    """Unmap what whole pages are free, and let go of segments without pages (pytorch …:release_blocks)."""
    for block in list(pool.blocks):
        _unmap(allocator, block)
        if not block.split:
            pool.unmapped.remove(block)


def _unmap(allocator: CachingAllocator, block: Block) -> None:
    """Give back the whole pages inside a free block; what is left at its ends stays free (pytorch …:unmap_block)."""
    pool, step = block.pool, block.pool.kind.segment_size
    base = block
    while base.prev is not None:
        base = base.prev
    start = base.address - (base.address - block.address) // step * step
    size = (block.address + block.size - base.address) // step * step - (start - base.address)
    if size <= 0:
        return
    pool.remove(block)
    head, tail = start - block.address, block.address + block.size - (start + size)
    if head:
        left = Block(block.address, head, pool, block.prev, block)
        if block.prev is not None:
            block.prev.next = left
        block.prev = left
        pool.insert(left)
    if tail:
        right = Block(start + size, tail, pool, block, block.next)
        if block.next is not None:
            block.next.prev = right
        block.next = right
        pool.insert(right)
    block.address, block.size = start, size
    _merge(block, UNMAPPED)
    pool.add_unmapped(block)
    allocator.device.unmap(start, size)
    allocator.hold("segment_unmap", start, size, pool.stream)
