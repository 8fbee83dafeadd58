"""Replay: a tape played through the allocator, which alone gives ``allocated`` and ``reserved``.

>>> from memcalc.tape.events import Buffer, Free, Mark
>>> weight, gradient = Buffer("w", 3 * 2**20, "parameter"), Buffer("w.grad", 1000, "gradient")
>>> played = replay([Mark("forward"), Alloc(weight), Mark("backward"), Alloc(gradient), Free(gradient)])
>>> top = played.peak("allocated")
>>> top.bytes, top.phase, top.site, played.peak("reserved").bytes // 2**20
(3146752, 'backward', 'w.grad', 22)
>>> played.at(top.event).roles
{'parameter': 3145728, 'gradient': 1024}
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate
from operator import index as as_int

from memcalc.allocator.blocks import Block, Memory
from memcalc.allocator.caching import MASK, CachingAllocator
from memcalc.allocator.played import MEASURES, Measure, Replay, Span
from memcalc.allocator.settings import AllocatorSettings, parse_settings
from memcalc.tape.events import PHASES, Alloc, Event, Mark
from memcalc.tape.unroll import Leaf, Pairs, unroll


def replay(
    tape: Iterable[Event], settings: AllocatorSettings | str | None = None, capacity: int | None = None,
    *, total: int | None = None, descending: bool = False,
) -> Replay:  # fmt: skip
    """Play the device buffers of a tape of one job through the allocator, each on its stream.

    Args:
        tape: its events. A ``Free`` gives back the youngest live buffer that is the same object, else the youngest equal one.
        settings: the allocator's, or their text as PYTORCH_CUDA_ALLOC_CONF has it.
        capacity: bytes the device can give in segments; the replay stops where they do not suffice. None for no end.
        total: bytes of the whole device, for ``per_process_memory_fraction``; ``capacity`` if left out.
        descending: lay new segments below the earlier ones, not above (see ``memcalc.allocator.blocks.Memory``).

    Raises:
        InputError: something is freed that is not alive, or the tape stands for many jobs.
    """
    chosen = parse_settings(settings) if isinstance(settings, str) else settings or AllocatorSettings()
    allocator = CachingAllocator(chosen, capacity, total, Memory(capacity, descending))
    played = _play(list(unroll(tape)), allocator)
    played.capacity = capacity
    return played


def _play(events: list[Leaf], allocator: CachingAllocator) -> Replay:
    """One pass, which notes what each event changed; sums and highest points are left to the arrays' own functions."""
    needs, sizes, inactive = array("q"), array("q"), array("q")
    changes: list[tuple[int, int]] = [(0, 0)]
    allocator.on_segment = lambda *_: changes.append((len(sizes), allocator.reserved))
    played = Replay(allocator.settings, events, {}, [], sizes)
    live: Pairs[Block] = Pairs()
    malloc, free, given = allocator.malloc, allocator.free, live.given
    marks: list[tuple[int, int]] = []
    for number, event in enumerate(events):
        need = size = 0
        if event.__class__ is Mark:
            marks.append((number, allocator.peaks().reserved))
            allocator.reset_peaks()
        elif (buffer := event.buffer).place == "device" and buffer.requested:  # type: ignore[union-attr]
            need = buffer.requested if buffer.requested.__class__ is int else as_int(buffer.requested)
            key = id(buffer)
            if event.__class__ is Alloc:
                block = malloc(need, buffer.stream)
                if block is None:
                    played.out_of_memory, need = allocator.out_of_memory, 0
                else:
                    given[key] = buffer, block, given.get(key)  # Pairs.add, without the call
                    size = block.size
            else:
                if event.below:  # type: ignore[union-attr]
                    block = live.take_below(buffer, number, event.below)  # type: ignore[union-attr]
                    needs.append(-need)
                    sizes.append(-block.size)
                    free(block)
                    inactive.append(allocator.inactive)
                    continue
                entry = given.pop(key, None)
                block = live.take(buffer, number, entry) if entry is None or entry[2] is not None else entry[1]
                need, size = -need, -block.size
                free(block)
        needs.append(need)
        sizes.append(size)
        inactive.append(allocator.inactive)
        if played.out_of_memory is not None:
            del events[number + 1 :]
            break
    marks.append((len(events), allocator.peaks().reserved))
    played.series = _series(needs, sizes, inactive if not allocator.expandable else array("q", bytes(8 * len(sizes))), changes)
    played.spans = list(_spans(played, marks))
    return played


def _series(
    needs: array[int], sizes: array[int], inactive: array[int], changes: list[tuple[int, int]]
) -> dict[Measure, array[int]]:
    """Each measure after each event, from what the events changed."""
    allocated = array("q", accumulate(sizes))
    reserved = array("q")
    for (_, held), (end, _) in zip(changes, [*changes[1:], (len(sizes), 0)], strict=True):
        reserved.extend(array("q", [held]) * (end - len(reserved)))
    lists = (
        array("q", accumulate(needs)),
        array("q", accumulate([(need + MASK) & ~MASK if need > 0 else -(-need + MASK & ~MASK) for need in needs])),
        allocated,
        allocated,  # a tape defers no free, so that active is allocated
        reserved,
        inactive,
    )
    return dict(zip(MEASURES, lists, strict=True))


def _spans(played: Replay, marks: list[tuple[int, int]]) -> Iterator[Span]:
    """The stretches between marks; before the first mark is ``init``."""
    first = next((event for event in played.events if isinstance(event, Mark)), Mark("init"))
    phase, iteration, start = PHASES[0], first.iteration, 0
    for number, high in marks:
        if number > start or not played.events:
            peaks = {}
            for measure, values in played.series.items():
                top = max(values[start:number], default=0)
                peaks[measure] = top, values.index(top, start, number) if number > start else 0
            # pages that were mapped and given back within one request, as memory ran short, are in no series
            peaks["reserved"] = max(high, peaks["reserved"][0]), peaks["reserved"][1]
            yield Span(phase, iteration, start, number, peaks)
        if number < len(played.events):
            mark = played.events[number]
            assert isinstance(mark, Mark)
            phase, iteration, start = mark.phase, mark.iteration, number
