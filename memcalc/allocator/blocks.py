"""What the allocator keeps book of: blocks, the pools of free ones, and the device the segments come from."""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

from memcalc.allocator.settings import LARGE_SEGMENT, SMALL_SEGMENT
from memcalc.errors import InputError
from memcalc.records import dataclass

FREE, LIVE, UNMAPPED = 0, 1, 2
"""States of a block: in its pool's free list, handed out (or waiting for other streams), or without physical pages."""

SHIFT = 80
"""A free block's place in its list is one number, its size above its address, because one int compares faster than a pair."""

BASE = 2**42
"""Where the model's own addresses begin: high enough to look like a device's, low enough for a visualiser's float64."""
TOP = 2**79
"""The end of all addresses."""
SPACE = 2**46
"""Addresses of an expandable segment where the device's size is not known."""


class Block:
    """A piece of a segment, linked to its neighbours in it.

    Attributes:
        address: its first byte.
        size: its bytes, remainder included.
        requested: bytes that were asked for, while it is handed out.
        state: FREE, LIVE or UNMAPPED.
        prev: the piece before it in the segment.
        next: the piece after it.
        pool: where it goes when freed.
        key: its place in the pool's order while it is free.
        born: the pool's count of searches when it became free, for garbage collection.
    """

    __slots__ = ("address", "born", "key", "next", "pool", "prev", "requested", "size", "state")

    key: int

    def __init__(self, address: int, size: int, pool: Pool, prev: Block | None = None, next: Block | None = None) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.prev = prev
        self.next = next
        self.state = LIVE
        self.requested = 0
        self.born = 0

    @property
    def split(self) -> bool:
        """Whether it shares its segment (pytorch CUDACachingAllocator.cpp:Block::is_split)."""
        return self.prev is not None or self.next is not None


class Kind:
    """What the pools of one size class have in common over all streams."""

    def __init__(self, small: bool, segment_size: int, keeps: int) -> None:
        self.small = small
        self.segment_size = segment_size
        self.keeps = keeps
        self.searches = 0


class Pool:
    """Free blocks of one size class and one stream, by size and then address.

    PyTorch keeps the streams of a size class in one set ordered by stream first (BlockComparatorSize), and leaves every
    search where the stream changes: a list for each stream is the same.
    """

    __slots__ = ("blocks", "keeps", "keys", "kind", "spare", "stream", "unmapped")

    def __init__(self, kind: Kind, stream: int) -> None:
        self.kind = kind
        self.stream = stream
        self.keeps = kind.keeps
        self.keys: list[int] = []
        self.blocks: list[Block] = []
        self.unmapped: list[Block] = []
        self.spare: list[Block] = []

    def insert(self, block: Block) -> None:
        """A block becomes free."""
        block.state = FREE
        block.born = self.kind.searches
        block.key = key = (block.size << SHIFT) + block.address
        at = bisect_left(self.keys, key)
        self.keys.insert(at, key)
        self.blocks.insert(at, block)

    def remove(self, block: Block) -> None:
        """A free block leaves the list."""
        at = bisect_left(self.keys, block.key)
        del self.keys[at], self.blocks[at]
        block.state = LIVE

    def add_unmapped(self, block: Block) -> None:
        """A block without pages, by address."""
        block.state = UNMAPPED
        self.unmapped.insert(bisect_left(self.unmapped, block.address, key=lambda other: other.address), block)


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A request that could not be met, after everything that can be given back was.

    Attributes:
        requested: bytes asked for.
        segment: bytes of the segment that was asked of the device for it.
        free: bytes the device had left; None where that is not known.
        allocated: bytes handed out then.
        reserved: bytes held from the device then.
        stream: the request's.
    """

    requested: int
    segment: int
    free: int | None
    allocated: int
    reserved: int
    stream: int


class Device(Protocol):
    """Where segments come from: cudaMalloc and cudaFree, and for expandable segments the driver's mapping calls."""

    @property
    def free(self) -> int | None:
        """Bytes left; None where that is not known."""

    def allocate(self, size: int) -> int | None:
        """The address of a new segment; None where there is no room (cudaMalloc)."""

    def release(self, address: int, size: int) -> None:
        """A segment is given back (cudaFree)."""

    def reserve(self, size: int) -> int:
        """Addresses without pages (cuMemAddressReserve)."""

    def map(self, address: int, size: int) -> bool:
        """Whether pages were found for these addresses (cuMemCreate and cuMemMap)."""

    def unmap(self, address: int, size: int) -> None:
        """Pages are given back (cuMemUnmap and cuMemRelease)."""


class Memory:
    """A device of known size whose segments lie one after another.

    What cudaMalloc answers is not known, and best fit breaks ties between free blocks of one size by address. Here each new
    segment lies above all earlier ones and no address is used twice, so that of equals the one in the older segment is taken;
    ``descending`` turns that round. The choice can change which segments become free as a whole, hence ``reserved``, and
    through later remainders ``allocated``, in programs that have free blocks of one size in several segments; replaying both
    ways shows how much.

    Args:
        capacity: bytes this process can take in segments; None for no end.
        descending: whether new segments lie below the earlier ones.
    """

    def __init__(self, capacity: int | None = None, descending: bool = False) -> None:
        if capacity is not None and capacity < 0:
            raise InputError("capacity", capacity, "is negative", "give the bytes the process can take, or none at all")
        self.capacity = capacity
        self.used = 0
        self.descending = descending
        self._next = BASE

    @property
    def free(self) -> int | None:
        """Bytes left."""
        return None if self.capacity is None else self.capacity - self.used

    def allocate(self, size: int) -> int | None:
        """The next addresses, while there is room."""
        return self.reserve(size) if self._take(size) else None

    def release(self, address: int, size: int) -> None:
        """Room for others."""
        self.used -= size

    def reserve(self, size: int) -> int:
        """The next addresses."""
        address = self._next if not self.descending else TOP - self._next - size
        self._next += size
        return address

    def map(self, address: int, size: int) -> bool:
        """All of the pages or none (pytorch CUDACachingAllocator.cpp:ExpandableSegment::map)."""
        return self._take(size)

    def unmap(self, address: int, size: int) -> None:
        """Room for others."""
        self.used -= size

    def _take(self, size: int) -> bool:
        if self.capacity is not None and self.used + size > self.capacity:
            return False
        self.used += size
        return True


def size_classes(large_segment: int = LARGE_SEGMENT, keeps: int = 0) -> tuple[Kind, Kind]:
    """The small pools' class and the large ones'; ``keeps`` is the remainder up to which a large block is not split."""
    return Kind(True, SMALL_SEGMENT, 0), Kind(False, large_segment, keeps)
