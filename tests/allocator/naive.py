"""A second caching allocator, written from the C++ rules as plainly as they can be put, to hold the first against.

Nothing is linked or kept sorted: a segment knows its live pieces and, if it can expand, its pages; free blocks are the gaps in
between, found afresh for every question. It shares no code with the model but the record of settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

KIB, MIB = 1024, 1024 * 1024
HUGE = 2**62


@dataclass
class Piece:
    start: int
    size: int
    asked: int
    pending: bool = False


@dataclass
class Segment:
    start: int
    size: int
    stream: int
    small: bool
    pages: set[int] | None = None  # of an expandable segment: numbers of its mapped pages
    pieces: list[Piece] = field(default_factory=list)

    def page(self):
        return 2 * MIB if self.small else self.page_size

    page_size: int = 20 * MIB

    def runs(self):
        """(start, end, mapped) of every gap between live pieces, cut where pages begin and end."""
        found, at = [], self.start
        for piece in sorted(self.pieces, key=lambda piece: piece.start):
            found.append((at, piece.start))
            at = piece.start + piece.size
        found.append((at, self.start + self.size))
        for low, high in found:
            if low == high:
                continue
            if self.pages is None:
                yield low, high, True
                continue
            at = low
            while at < high:
                mapped = (at - self.start) // self.page() in self.pages
                end = at
                while end < high and ((end - self.start) // self.page() in self.pages) == mapped:
                    if not mapped and all(number < (end - self.start) // self.page() for number in self.pages):
                        end = high  # nothing is mapped from here on
                        break
                    end = min(high, self.start + ((end - self.start) // self.page() + 1) * self.page())
                yield at, end, mapped
                at = end


class NaiveAllocator:
    """The rules of DeviceCachingAllocator, default pools only."""

    def __init__(self, settings, capacity=None, total=None, descending=False):
        self.s, self.capacity, self.descending = settings, capacity, descending
        total = capacity if total is None else total
        self.total = total
        self.allowed = int(settings.per_process_memory_fraction * total) if settings.per_process_memory_fraction < 1 else None
        self.gc = self.allowed is not None and settings.garbage_collection_threshold > 0
        self.segments: list[Segment] = []
        self.live: dict[object, tuple[Segment, Piece]] = {}
        self.next, self.searches = 2**42, {True: 0, False: 0}
        self.born: dict[tuple[int, int], int] = {}
        self.trace: list[tuple[str, int, int, int]] = []
        self.peak = {"requested": 0, "allocated": 0, "active": 0, "reserved": 0, "inactive_split": 0}

    # what is counted

    def stats(self):
        pieces = [piece for segment in self.segments for piece in segment.pieces]
        return {
            "requested": sum(piece.asked for piece in pieces),
            "allocated": sum(piece.size for piece in pieces if not piece.pending),
            "active": sum(piece.size for piece in pieces),
            "reserved": self.reserved(),
            "inactive_split": sum(
                end - start
                for segment in self.segments
                if segment.pages is None
                for start, end, _ in segment.runs()
                if end - start < segment.size
            ),
        }

    def reserved(self):
        return sum(len(s.pages) * s.page() if s.pages is not None else s.size for s in self.segments)

    def note(self):
        """After every operation: peaks, and the search count at which each free block appeared."""
        now = self.stats()
        self.peak = {name: max(self.peak[name], value) for name, value in now.items()}
        free = {(start, end) for segment in self.segments for start, end, mapped in segment.runs() if mapped}
        kind = {(start, end): segment.small for segment in self.segments for start, end, _ in segment.runs()}
        self.born = {key: self.born.get(key, self.searches[kind[key]]) for key in free}

    def note_reserved(self):
        self.peak["reserved"] = max(self.peak["reserved"], self.reserved())

    # malloc and free

    def round(self, size):
        if size < 512:
            return 512
        which = min(max(int(math.log2(size)) - 20, 0), 15)
        divisions = self.s.roundup_power2_divisions[which]
        if divisions > 1 and size > 512 * divisions:
            power = 2 ** int(math.log2(size))
            return next(power + power // divisions * k for k in range(divisions + 1) if power + power // divisions * k >= size)
        return (size + 511) // 512 * 512

    def free_blocks(self, small, stream=None, mapped=True):
        """(size, start, segment) of free blocks, in the order of BlockComparatorSize."""
        return sorted(
            (
                (end - start, start, segment)
                for segment in self.segments
                if segment.small == small and stream in (None, segment.stream)
                for start, end, has in segment.runs()
                if has == mapped
            ),
            key=lambda found: (found[2].stream, found[0], found[1]),
        )

    def get_free_block(self, size, stream):
        small = size <= MIB
        if self.gc:
            self.searches[small] += 1
        found = [block for block in self.free_blocks(small, stream) if block[0] >= size]
        if not found:
            return None
        if self.s.expandable_segments:
            ahead = [self.expandable_size(block) for block in found]
            at = 0
            while at + 1 < len(found) and ahead[at + 1] < ahead[at]:
                at += 1
            found = found[at:]
        if size < self.s.max_split_size <= found[0][0]:
            return None
        if size >= self.s.max_split_size and found[0][0] >= size + self.s.max_non_split_rounding_size:
            return None
        return found[0]

    def expandable_size(self, block):
        size, start, segment = block
        after = [end - low for low, end, mapped in segment.runs() if low == start + size and not mapped]
        return size + sum(after)

    def malloc(self, key, asked, stream=0):
        size = self.round(asked)
        block = self.get_free_block(size, stream) or self.new_block(size, stream)
        if block is None:
            self.trace.append(("oom", 0, size, stream))
            self.note()
            return False
        length, start, segment = block
        rest = length - size
        large = size < self.s.max_split_size and rest > MIB
        split = rest >= 512 if segment.small or self.s.expandable_segments else large
        piece = Piece(start, size if split else length, asked)
        segment.pieces.append(piece)
        self.live[key] = (segment, piece)
        self.trace.append(("alloc", start, asked, stream))
        self.note()
        return True

    def free(self, key):
        self.request_free(key)
        self.complete_free(key)

    def request_free(self, key):
        segment, piece = self.live[key]
        piece.pending = True
        self.trace.append(("free_requested", piece.start, piece.asked, segment.stream))
        self.note_active()

    def complete_free(self, key):
        segment, piece = self.live.pop(key)
        segment.pieces.remove(piece)
        self.trace.append(("free_completed", piece.start, piece.asked, segment.stream))
        self.note()

    def note_active(self):
        now = self.stats()
        self.peak = {name: max(self.peak[name], value) for name, value in now.items()}

    # the device

    def new_block(self, size, stream):
        if self.gc:
            self.collect()
        block = self.alloc_block(size, stream)
        if block is None and self.release_available(size, stream):
            block = self.alloc_block(size, stream)
        if block is None:
            self.empty_cache()
            block = self.alloc_block(size, stream)
        return block

    def alloc_block(self, size, stream):
        small = size <= MIB
        if small:
            segment_size = 2 * MIB
        elif size < 10 * MIB:
            segment_size = self.s.large_segment_size
        else:
            segment_size = (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
        if self.allowed is not None and self.reserved() + segment_size > self.allowed:
            return None
        if self.s.expandable_segments:
            return self.expand(size, stream, small)
        if self.capacity is not None and self.reserved() + segment_size > self.capacity:
            return None
        segment = Segment(self.address(segment_size), segment_size, stream, small)
        self.segments.append(segment)
        self.trace.append(("segment_alloc", segment.start, segment_size, stream))
        self.note_reserved()
        return segment_size, segment.start, segment

    def address(self, size):
        start = 2**79 - self.next - size if self.descending else self.next
        self.next += size
        return start

    def expand(self, size, stream, small):
        """Map pages over the lowest stretch of gaps that begins at an unmapped one, or right before one."""
        page = 2 * MIB if small else self.s.large_segment_size
        for low, start, segment in sorted(
            ((start, start, segment) for _, start, segment in self.free_blocks(small, stream, mapped=False)),
            key=lambda found: found[0],
        ):
            runs = list(segment.runs())
            at = [run[0] for run in runs].index(start)
            if at and runs[at - 1][1] == start:
                at -= 1
            low = high = runs[at][0]
            for begin, end, _ in runs[at:]:
                if begin != high:
                    break
                high = end
            if high - low >= size:
                return self.map(segment, low, size)
        room = HUGE // 2**16 if self.total is None else max(self.total + self.total // 8, size)
        room = (room + page - 1) // page * page
        segment = Segment(self.address(room), room, stream, small, set(), page_size=page)
        self.segments.append(segment)
        return self.map(segment, segment.start, size)

    def map(self, segment, low, size):
        """One hole at a time, each hole all or nothing."""
        page = segment.page()
        while True:
            run = next(run for run in segment.runs() if run[0] <= low < run[1])
            if run[2]:
                if run[1] - run[0] >= size and run[0] == low:
                    return run[1] - run[0], low, segment
                hole, missing = run[1], size - (run[1] - run[0])
            else:
                hole, missing = low, size
            end = next(run[1] for run in segment.runs() if run[0] == hole)
            count = (min(missing, end - hole) + page - 1) // page
            if self.capacity is not None and self.reserved() + count * page > self.capacity:
                return None
            first = (hole - segment.start) // page
            segment.pages |= set(range(first, first + count))
            self.trace.append(("segment_map", hole, count * page, segment.stream))
            self.note_reserved()

    def release_available(self, size, stream):
        limit = self.s.max_split_size
        if limit >= 2**63:
            return False
        wanted = max(size, limit)
        blocks = self.free_blocks(size <= MIB, stream)
        enough = [block for block in blocks if block[0] >= wanted]
        if self.s.expandable_segments:
            return False
        if enough:
            self.release(enough[0])
            return True
        done = 0
        for block in reversed(blocks):
            if done >= wanted or block[0] < limit:
                break
            self.release(block)
            done += block[0]
        return done >= wanted

    def release(self, block):
        self.segments.remove(block[2])
        self.trace.append(("segment_free", block[1], block[0], block[2].stream))

    def empty_cache(self):
        for small in (False, True):
            for block in self.free_blocks(small):
                size, start, segment = block
                if segment.pages is None:
                    if size == segment.size:
                        self.release(block)
                    continue
                page = segment.page()
                first = -(-(start - segment.start) // page)
                last = (start + size - segment.start) // page
                if first < last:
                    segment.pages -= set(range(first, last))
                    self.trace.append(("segment_unmap", segment.start + first * page, (last - first) * page, segment.stream))
                if not segment.pages:
                    self.segments.remove(segment)
        self.note()

    def collect(self):
        threshold = int(self.s.garbage_collection_threshold * self.allowed)
        if self.reserved() <= threshold:
            return
        target, done = self.reserved() - threshold, 0
        whole = [block for block in self.free_blocks(False) if block[2].pages is None and block[0] == block[2].size]
        ages = {block[1]: self.searches[False] - self.born[block[1], block[1] + block[0]] for block in whole}
        while whole and done < target:
            mean = sum(ages[block[1]] for block in whole) / len(whole)
            old = [block for block in whole if ages[block[1]] >= mean]
            if not old:
                break
            for block in old:
                self.release(block)
                done += block[0]
            whole = [block for block in whole if block not in old]
