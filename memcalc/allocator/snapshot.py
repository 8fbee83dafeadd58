"""Snapshots for PyTorch's memory visualiser (pytorch.org/memory_viz), and what real ones hold.

A snapshot is a pickle of plain containers: ``segments`` with their blocks, ``device_traces`` of events, the settings (pytorch
torch/cuda/memory.py:_snapshot). One that is written here replays a tape; each block's frames name the operator, the module it
ran in, and what it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memcalc.allocator.blocks import FREE, UNMAPPED, Block, Memory
from memcalc.allocator.caching import CachingAllocator
from memcalc.allocator.history import Row
from memcalc.allocator.played import Replay
from memcalc.allocator.settings import UNLIMITED, VARIABLES, AllocatorSettings, parse_settings, settings_text
from memcalc.allocator.unpickle import load
from memcalc.errors import InputError
from memcalc.tape.events import ROLES, Alloc, Buffer, Event, Free, Mark, Role
from memcalc.tape.unroll import Leaf, Pairs, unroll

PROTOCOL = 4  # the visualiser reads 2 to 4 (pytorch torch/utils/viz/MemoryViz.js:unpickle)
ACTIONS = frozenset({
    "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "oom",
})  # fmt: skip
"""Events a replay needs; ``snapshot`` and ``user_defined`` are passed over."""


def export_snapshot(
    tape: Replay | Iterable[Event],
    path: Path | str,
    settings: AllocatorSettings | str | None = None,
    capacity: int | None = None,
) -> None:
    """Write a tape, or one that was replayed, as a snapshot that pytorch.org/memory_viz opens.

    Args:
        tape: the tape or its replay, whose settings are taken unless others are given.
        path: the file, overwritten.
        settings: the allocator's, or their text.
        capacity: bytes the device can give in segments.
    """
    Path(path).write_bytes(snapshot_bytes(tape, settings, capacity))


def snapshot_bytes(
    tape: Replay | Iterable[Event], settings: AllocatorSettings | str | None = None, capacity: int | None = None
) -> bytes:
    """What such a file holds; the arguments are those of :func:`export_snapshot`."""
    chosen = parse_settings(settings) if isinstance(settings, str) else settings
    if isinstance(tape, Replay):
        events, chosen = tape.events, chosen or tape.settings
        capacity = tape.capacity if capacity is None else capacity
    else:
        events = list(unroll(tape))
    data = _Recorder(CachingAllocator(chosen, capacity, device=Memory(capacity))).record(events)
    return pickle.dumps(data, protocol=PROTOCOL)


class _Recorder:
    """One playing of a tape, with the events the allocator itself would trace."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.trace: list[dict[str, Any]] = []
        self.pairs: Pairs[tuple[Block, list[dict[str, Any]]]] = Pairs()
        self.where = "init"
        allocator.on_segment = lambda action, address, size, stream: self._note(action, address, size, stream, [], "unknown")

    def record(self, events: list[Leaf]) -> dict[str, Any]:
        """The whole snapshot."""
        for number, event in enumerate(events):
            if isinstance(event, Mark):
                self.where = f"iteration {event.iteration}, {event.phase}"
            elif event.buffer.place == "device" and event.buffer.requested:
                if isinstance(event, Free):
                    self._free(event.buffer, number)
                elif not self._alloc(event.buffer):
                    break
        return {
            "segments": self._segments(),
            "device_traces": [self.trace],
            "allocator_settings": _told(self.allocator.settings),
            "external_annotations": [],
        }

    def _alloc(self, buffer: Buffer) -> bool:
        need, frames = int(buffer.requested), _frames(buffer, self.where)
        block = self.allocator.malloc(need, buffer.stream)
        if block is None:
            failed = self.allocator.out_of_memory
            assert failed is not None
            # an oom entry has the room left where others have an address (pytorch torch/csrc/cuda/Module.cpp)
            self._note("oom", 0, self.allocator.rounded(need), buffer.stream, frames, "unknown")
            self.trace[-1]["device_free"] = failed.free or 0
            del self.trace[-1]["addr"]
            return False
        self.pairs.add(buffer, (block, frames))
        self._note("alloc", block.address, need, buffer.stream, frames, buffer.role)
        return True

    def _free(self, buffer: Buffer, number: int) -> None:
        block, frames = self.pairs.take(buffer, number)
        for action in ("free_requested", "free_completed"):
            self._note(action, block.address, block.requested, buffer.stream, frames, buffer.role)
        self.allocator.free(block)

    def _note(self, action: str, address: int, size: int, stream: int, frames: list[dict[str, Any]], category: str) -> None:
        # the visualiser stumbles over categories without an «unknown» among them (MemoryViz.js:annotate_snapshot)
        self.trace.append({
            "action": action, "addr": address, "size": size, "stream": stream, "device": 0, "pool_id": (0, 0),
            "time_us": len(self.trace), "compile_context": "N/A", "user_metadata": self.where, "frames": frames,
            "category": category,
        })  # fmt: skip

    def _segments(self) -> list[dict[str, Any]]:
        """Segments that are there at the end, each expandable one as its stretches of mapped pages."""
        live = {id(block): (buffer, frames) for buffer, (block, frames) in self.pairs}
        blocks = [block for _, (block, _) in self.pairs]
        blocks += [block for pools in self.allocator.pools.values() for pool in pools for block in pool.blocks]
        heads = [block for block in blocks if block.prev is None or block.prev.state == UNMAPPED]
        return [_segment(head, self.allocator.expandable, live) for head in sorted(heads, key=lambda block: block.address)]


def _segment(head: Block, expandable: bool, live: Mapping[int, tuple[Buffer, list[dict[str, Any]]]]) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    block: Block | None = head
    while block is not None and block.state != UNMAPPED:
        free = block.state == FREE
        blocks.append({
            "address": block.address, "size": block.size, "requested_size": 0 if free else block.requested,
            "state": "inactive" if free else "active_allocated", "frames": [] if free else live[id(block)][1],
        })  # fmt: skip
        block = block.next
    used = [each for each in blocks if each["state"] == "active_allocated"]
    return {
        "device": 0, "address": head.address, "total_size": sum(each["size"] for each in blocks), "stream": head.pool.stream,
        "allocated_size": sum(each["size"] for each in used), "active_size": sum(each["size"] for each in used),
        "requested_size": sum(each["requested_size"] for each in used), "segment_pool_id": (0, 0),
        "segment_type": "small" if head.pool.kind.small else "large", "is_expandable": expandable,
        "frames": [], "blocks": blocks,
    }  # fmt: skip


def _frames(buffer: Buffer, where: str) -> list[dict[str, Any]]:
    """Innermost first, as PyTorch has them: the operator, the module it was called in, what is made, when."""
    about = f"{buffer.dtype}{list(buffer.shape)}" if buffer.shape is not None else f"{buffer.requested} bytes"
    named = (
        (buffer.operator, "operator"),
        (buffer.module, "module"),
        (f"{buffer.site} {about}", buffer.role),
        (where, "phase"),
    )
    return [{"filename": kind, "line": 0, "name": name} for name, kind in named if name]


def _told(settings: AllocatorSettings) -> dict[str, Any]:
    """The settings as a snapshot names them (pytorch torch/csrc/cuda/Module.cpp:THCPModule_memorySnapshot)."""
    limit = settings.max_split_size
    return {
        VARIABLES[0]: settings_text(settings),
        "expandable_segments": settings.expandable_segments,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "max_split_size": limit if limit < UNLIMITED else -1,
        "roundup_power2_divisions": {str(2**index): count for index, count in enumerate(settings.roundup_power2_divisions)},
    }


def read_snapshot(path: Path | str) -> dict[str, Any]:
    """A snapshot's data, of PyTorch's or written here: plain containers, strings and numbers, or nothing.

    Raises:
        InputError: the file is missing, too large, broken, holds anything but plain data, or is no snapshot.
    """
    data = load(Path(path))
    where = str(path)
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("device_traces"), list)
        or not isinstance(data.get("segments"), list)
    ):
        raise InputError(where, type(data).__name__, "is no snapshot of the allocator", "give a file of _dump_snapshot()")
    for number, trace in enumerate(data["device_traces"]):
        for at, entry in enumerate(trace if isinstance(trace, list) else [None]):
            place = f"{where}: device_traces[{number}][{at}]"
            if not isinstance(entry, dict) or not isinstance(entry.get("action"), str):
                raise InputError(place, "an entry", "has no action", "give a file of _dump_snapshot()")
            wrong = [
                key for key in ("addr", "size", "stream") if not isinstance(entry.get(key, 0), int) or entry.get(key, 0) < 0
            ]
            if wrong:
                raise InputError(place, entry[wrong[0]], f"is no {wrong[0]}", "give a file of _dump_snapshot()")
    return data


def settings_of(snapshot: Mapping[str, Any]) -> AllocatorSettings:
    """The settings a snapshot says it was taken under, from their text; the defaults where it says nothing.

    Raises:
        InputError: the text is none of PyTorch's.
        NotModelledError: it asks for what is not modelled.
    """
    told = snapshot.get("allocator_settings")
    text = told.get(VARIABLES[0]) if isinstance(told, Mapping) else None
    return parse_settings(text, "allocator_settings") if isinstance(text, str) else AllocatorSettings()


def rows_of(snapshot: Mapping[str, Any], device: int = 0) -> list[Row]:
    """A snapshot's events as ``replay_history`` takes them, whose record must begin before anything was allocated."""
    return [
        Row(entry["action"], entry.get("addr", 0), entry.get("size", 0), entry.get("stream", 0))
        for entry in _trace(snapshot, device)
        if entry["action"] in ACTIONS
    ]


def tape_of(snapshot: Mapping[str, Any], device: int = 0) -> list[Event]:
    """The tape a snapshot's events stand for: a buffer is born with an ``alloc`` and dies with its ``free_requested``.

    What was allocated before recording began is not in it, nor are its frees. Every buffer is an activation, unless the file
    was written here and says what it is.
    """
    live: dict[int, Buffer] = {}
    tape: list[Event] = []
    for number, entry in enumerate(_trace(snapshot, device)):
        if entry["action"] == "alloc":
            frames = entry.get("frames") or []
            site = next((str(frame.get("name", "")) for frame in frames if isinstance(frame, dict)), f"event {number}")
            role: Role = next((role for role in ROLES if role == entry.get("category")), "activation")
            live[entry["addr"]] = buffer = Buffer(site, entry["size"], role, stream=entry.get("stream", 0))
            tape.append(Alloc(buffer))
        elif entry["action"] == "free_requested" and entry["addr"] in live:
            tape.append(Free(live.pop(entry["addr"])))
    return tape


def _trace(snapshot: Mapping[str, Any], device: int) -> list[dict[str, Any]]:
    traces: list[list[dict[str, Any]]] = snapshot["device_traces"]
    if not 0 <= device < len(traces):
        raise InputError("device", device, f"is none of the snapshot's {len(traces)} devices", "count from 0")
    return traces[device]
