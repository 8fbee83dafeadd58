"""A device's recorded events, replayed: the model must hand out, give back and reserve what the device did, event by event.

A trace (``torch.cuda.memory._snapshot()["device_traces"]``) has every request's bytes, every segment that came or went, and
addresses. ``reserved`` is in it: the sum of its segments. ``allocated`` is not, a block's size being nowhere said; but it
follows from the blocks' addresses, so that what is compared is each event's action, size, stream and address, the last up to
where the segments lie. Equal in all of them, the two allocators are in the same state.

What no model can know is taken from the trace: whether cudaMalloc found room, and the segments' order in memory. One thing it
cannot tell: where an expandable segment lies that was reserved and got no page; a device short of addresses may differ there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from memcalc.allocator.player import COUNTERS, Difference, HistoryReplay, PhaseCounts, Player, Row
from memcalc.allocator.settings import AllocatorSettings

if TYPE_CHECKING:
    from memcalc.measurement import Phase

__all__ = ["Difference", "HistoryReplay", "PhaseCounts", "Row", "compare_counters", "replay_history"]


def replay_history(
    rows: Iterable[tuple[str, int, int, int, str]], settings: AllocatorSettings | None = None, total: int | None = None
) -> HistoryReplay:
    """Replay recorded events and say where the model first differs from them.

    Args:
        rows: (action, address number, bytes, stream number, phase) as ``memcalc.engines.measure.history.unpack`` gives them,
            from an allocator that held nothing when recording began.
        settings: the allocator's when it was recorded.
        total: bytes of the whole device, which only ``per_process_memory_fraction`` asks for.
    """
    return Player([Row(*row) for row in rows], settings, total).play()


def compare_counters(played: HistoryReplay, phases: Sequence[Phase]) -> list[str]:
    """Sentences on every counter of the record's phases, in order, that the replay does not give to the byte."""
    found = []
    if len(phases) != len(played.phases):
        found.append(f"{len(phases)} phases are recorded and {len(played.phases)} replayed")
    for recorded, ours in zip(phases, played.phases, strict=False):
        for when in ("start", "end", "peak"):
            for name in COUNTERS:
                theirs = getattr(getattr(recorded, when), name)
                value = getattr(getattr(ours, when), name)
                if theirs is not None and theirs != value:
                    found.append(f"{ours.phase}, {when}: {name} is {theirs} recorded and {value} replayed")
    return found
