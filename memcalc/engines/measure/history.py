"""The allocator's event history in few bytes: actions, sizes, order, stream and phase, and no address or stack.

Addresses and streams are numbered in ascending order, from 0: best fit goes by which address is lower, so that a replay needs
their order.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memcalc.measurement import History

ACTIONS = (
    "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "oom",
)  # fmt: skip
"""Names of events (pytorch c10/cuda/CUDACachingAllocator.h:TraceEntry::Action); a row has their number."""
LOOKS = frozenset({"snapshot"})
"""Events that are the measurement's own looking, and are left out."""


def pack(trace: Iterable[Mapping[str, Any]], cuts: Sequence[tuple[str, int]]) -> History:
    """A device's trace, as a record keeps it.

    Args:
        trace: entries of ``torch.cuda.memory._snapshot()["device_traces"]``: action, addr, size, stream.
        cuts: (phase, number of its first entry), in order.

    >>> history = pack([{"action": "alloc", "addr": 7, "size": 512, "stream": 0}], [("forward", 0)])
    >>> unpack(history)
    [('alloc', 0, 512, 0, 'forward')]
    """
    entries = list(trace)
    seen = [entry for entry in entries if str(entry["action"]) not in LOOKS]
    addresses = _ranks(int(entry["addr"]) for entry in seen if "addr" in entry)
    streams = _ranks(int(entry.get("stream", 0)) for entry in seen)
    rows: list[list[int]] = []
    starts = [start for _, start in cuts]
    phase = -1
    for at, entry in enumerate(entries):
        while phase + 1 < len(starts) and starts[phase + 1] <= at:
            phase += 1
        action = str(entry["action"])
        if action in LOOKS:
            continue
        address = addresses[int(entry["addr"])] if "addr" in entry else 0
        stream = streams[int(entry.get("stream", 0))]
        rows.append([ACTIONS.index(action) if action in ACTIONS else -1, address, int(entry["size"]), stream, phase])
    text = json.dumps(rows, separators=(",", ":")).encode()
    return History(phases=[name for name, _ in cuts], count=len(rows), events=base64.b85encode(zlib.compress(text, 9)).decode())


def unpack(history: History) -> list[tuple[str, int, int, int, str]]:
    """(action, address number, bytes, stream number, phase) of every event, in order."""
    rows = json.loads(zlib.decompress(base64.b85decode(history.events)))
    return [
        (ACTIONS[action] if action >= 0 else "?", address, size, stream, history.phases[phase] if phase >= 0 else "before")
        for action, address, size, stream, phase in rows
    ]


def _ranks(numbers: Iterable[int]) -> dict[int, int]:
    return {number: rank for rank, number in enumerate(sorted(set(numbers)))}
