"""The caching allocator: blocks handed out and taken back, with the counters PyTorch keeps.

    >>> allocator = CachingAllocator()
    >>> block = allocator.malloc(1000)                          # rounded to 1024, in a segment of 2 MiB
    >>> allocator.allocated, allocator.reserved, allocator.inactive
    (1024, 2097152, 2096128)
    >>> allocator.free(block)
    >>> allocator.allocated, allocator.reserved, allocator.inactive, allocator.peaks().allocated
    (0, 2097152, 0, 1024)

``malloc`` and ``free`` are written out at length, list surgery included, because a replay spends all its time here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from memcalc.allocator.blocks import FREE, LIVE, SHIFT, Block, Device, Kind, Memory, OutOfMemory, Pool, size_classes
from memcalc.allocator.segments import best_fit, obtain, release_cached
from memcalc.allocator.settings import BLOCK, INTERVALS, MIB, SMALL, UNLIMITED, AllocatorSettings
from memcalc.errors import InputError
from memcalc.records import dataclass

MASK = BLOCK - 1


@dataclass(frozen=True, slots=True)
class Statistics:
    """Bytes by the names of ``torch.cuda.memory_stats``: ``requested_bytes.all``, ``active_bytes.all`` and so on."""

    requested: int
    allocated: int
    active: int
    reserved: int
    inactive_split: int


class CachingAllocator:
    """One device's allocator.

    Args:
        settings: how it behaves.
        capacity: bytes the device can give in segments; None for no end.
        total: bytes of the whole device, of which ``per_process_memory_fraction`` is a share; ``capacity`` if left out.
        device: where segments come from, instead of a ``Memory`` of that capacity.

    Attributes:
        allocated: bytes of the blocks handed out, unsplit remainders included.
        requested: bytes that were asked for.
        reserved: bytes held from the device.
        inactive: free bytes in segments that are in use. PyTorch counts none of them under expandable segments, so that
            there ``statistics().inactive_split`` is 0.
        pending: bytes given up by the program and still in use by other streams.
        out_of_memory: what was asked when a request last failed.
        on_segment: called with (action, address, bytes, stream) when a segment comes or goes.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        capacity: int | None = None,
        total: int | None = None,
        device: Device | None = None,
    ) -> None:
        self.settings = settings = settings or AllocatorSettings()
        self.device: Device = device or Memory(capacity)
        self.total = capacity if total is None else total
        self.allowed = _allowed(settings, self.total)
        self.expandable = settings.expandable_segments
        self.collecting = self.allowed is not None and settings.garbage_collection_threshold > 0
        # a remainder under 512 bytes cannot be, sizes being multiples of it (pytorch CUDACachingAllocator.cpp:should_split)
        keeps = 0 if self.expandable else SMALL
        self.kinds: tuple[Kind, Kind] = size_classes(settings.large_segment_size, keeps)
        self.pools: dict[int, tuple[Pool, Pool]] = {}
        self._plain = settings.max_split_size >= UNLIMITED and not self.expandable and not self.collecting
        self._rounds = any(settings.roundup_power2_divisions)
        self._splits_below = UNLIMITED if self.expandable else settings.max_split_size
        self.allocated = self.requested = self.reserved = self.inactive = self.pending = 0
        self.out_of_memory: OutOfMemory | None = None
        self.on_segment: Callable[[str, int, int, int], None] | None = None
        self._peak_allocated = self._peak_requested = self._peak_active = self._peak_reserved = self._peak_inactive = 0

    def malloc(self, requested: int, stream: int = 0) -> Block | None:  # noqa: C901 - one path, a call a branch would cost
        """A block for so many bytes; None where there is no memory, which ``out_of_memory`` then describes."""
        size = self.rounded(requested) if self._rounds or requested < 1 else (requested + MASK) & ~MASK
        pool = (self.pools.get(stream) or self._open(stream))[size > SMALL]
        keys, blocks = pool.keys, pool.blocks
        at = bisect_left(keys, size << SHIFT) if self._plain else best_fit(self, pool, size)
        if at == len(keys):
            fresh = obtain(self, pool, size, requested)
            if fresh is None:
                return None
            at = len(keys)
            keys.append(0)
            blocks.append(fresh)
        block = blocks[at]
        whole = block.prev is None and block.next is None
        left = block.size - size
        if left > pool.keeps and size < self._splits_below:
            block.size = size
            after = block.next
            # a merged block's record serves again: making one takes as long as all the rest
            rest = pool.spare.pop() if pool.spare else Block(0, 0, pool)
            rest.address, rest.size, rest.prev, rest.next, rest.state = block.address + size, left, block, after, FREE
            rest.born = pool.kind.searches
            rest.key = key = (left << SHIFT) + rest.address
            block.next = rest
            if after is not None:
                after.prev = rest
            if at and keys[at - 1] > key:
                del keys[at], blocks[at]
                at = bisect_left(keys, key, 0, at)
                keys.insert(at, key)
                blocks.insert(at, rest)
            else:
                keys[at], blocks[at] = key, rest
            # pytorch CUDACachingAllocator.cpp:alloc_found_block: a free piece shrinks, or a whole segment is split
            self.inactive = held = self.inactive + (left if whole else -size)
            if held > self._peak_inactive:
                self._peak_inactive = held
        else:
            del keys[at], blocks[at]
            size = block.size
            if not whole:
                self.inactive -= size
        block.state = LIVE
        block.requested = requested
        self.allocated = held = self.allocated + size
        if held > self._peak_allocated:
            self._peak_allocated = held
        self.requested = held = self.requested + requested
        if held > self._peak_requested:
            self._peak_requested = held
        if self.pending:
            self._peak_active = max(self._peak_active, self.allocated + self.pending)
        return block

    def free(self, block: Block) -> None:
        """A block comes back and joins its free neighbours (pytorch CUDACachingAllocator.cpp:free_block, try_merge_blocks)."""
        size = block.size
        self.allocated -= size
        self.requested -= block.requested
        pool = block.pool
        keys, blocks = pool.keys, pool.blocks
        inactive = self.inactive
        before = block.prev
        if before is not None and before.state == FREE:
            at = bisect_left(keys, before.key)
            del keys[at], blocks[at]
            inactive -= before.size
            size += before.size
            block.address = before.address
            block.prev = further = before.prev
            if further is not None:
                further.next = block
            pool.spare.append(before)
        after = block.next
        if after is not None and after.state == FREE:
            at = bisect_left(keys, after.key)
            del keys[at], blocks[at]
            inactive -= after.size
            size += after.size
            block.next = further = after.next
            if further is not None:
                further.prev = block
            pool.spare.append(after)
        block.size = size
        block.state = FREE
        block.born = pool.kind.searches
        block.key = key = (size << SHIFT) + block.address
        at = bisect_left(keys, key)
        keys.insert(at, key)
        blocks.insert(at, block)
        if block.prev is not None or block.next is not None:
            inactive += size
        self.inactive = inactive
        if inactive > self._peak_inactive:
            self._peak_inactive = inactive

    def request_free(self, block: Block) -> None:
        """The program lets go of a block that other streams may still use: no longer allocated, still active."""
        self.allocated -= block.size
        self.pending += block.size

    def complete_free(self, block: Block) -> None:
        """The other streams are done with a block that ``request_free`` gave up."""
        self.pending -= block.size
        self.allocated += block.size
        self.free(block)

    def empty_cache(self) -> None:
        """Whole free segments go back to the device (``torch.cuda.empty_cache``)."""
        release_cached(self)

    def rounded(self, requested: int) -> int:
        """The bytes a request is served with (pytorch CUDACachingAllocator.cpp:round_size).

        >>> CachingAllocator(AllocatorSettings(roundup_power2_divisions=(4,) * 16)).rounded(1200 * 1024) // 1024
        1280
        """
        if requested < 1:
            raise InputError("bytes", requested, "is no size to allocate", "an empty tensor takes no block: leave it out")
        index = min(max((requested // MIB).bit_length() - 1, 0), INTERVALS - 1)
        divisions = self.settings.roundup_power2_divisions[index]
        if divisions > 1 and requested > BLOCK * divisions:
            floor = 1 << (requested.bit_length() - 1)
            step = floor // divisions  # pytorch CUDACachingAllocator.cpp:roundup_power2_next_division
            return -(-requested // step) * step
        return (requested + MASK) & ~MASK

    def statistics(self) -> Statistics:
        """What is counted now."""
        active = self.allocated + self.pending
        return Statistics(self.requested, self.allocated, active, self.reserved, 0 if self.expandable else self.inactive)

    def peaks(self) -> Statistics:
        """The highest each count has been since the last reset, each at its own instant."""
        active = max(self._peak_active, self._peak_allocated)
        inactive = 0 if self.expandable else self._peak_inactive
        return Statistics(self._peak_requested, self._peak_allocated, active, self._peak_reserved, inactive)

    def reset_peaks(self) -> None:
        """Peaks start again from what is counted now (``torch.cuda.reset_peak_memory_stats``)."""
        self._peak_allocated, self._peak_requested = self.allocated, self.requested
        self._peak_active = self.allocated + self.pending
        self._peak_reserved, self._peak_inactive = self.reserved, self.inactive

    def hold(self, action: str, address: int, size: int, stream: int) -> None:
        """Segments or pages come (``segment_alloc``, ``segment_map``) or go (``segment_free``, ``segment_unmap``)."""
        self.reserved += size if action in ("segment_alloc", "segment_map") else -size
        self._peak_reserved = max(self._peak_reserved, self.reserved)
        if self.on_segment is not None:
            self.on_segment(action, address, size, stream)

    def all_pools(self, small: bool) -> Iterator[Pool]:
        """The pools of one size class, by stream."""
        return (self.pools[stream][not small] for stream in sorted(self.pools))

    def _open(self, stream: int) -> tuple[Pool, Pool]:
        small, large = self.kinds
        return self.pools.setdefault(stream, (Pool(small, stream), Pool(large, stream)))


def _allowed(settings: AllocatorSettings, total: int | None) -> int | None:
    """Bytes this process may hold (pytorch CUDACachingAllocator.cpp:setMemoryFraction); None without a limit."""
    if settings.per_process_memory_fraction >= 1.0:
        return None
    if total is None:
        path = "per_process_memory_fraction"
        raise InputError(
            path, settings.per_process_memory_fraction, "is a share of a device of unknown size", "give its capacity"
        )
    return int(settings.per_process_memory_fraction * total)
