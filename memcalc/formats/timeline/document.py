"""A timeline as JSON, every event of it; ``memcalc schema timeline`` says what each key means.

Strings stand once, in ``strings`` and ``shapes``; buffers are columns, so that a trace of 60,000 events is a few megabytes and
reads into a data frame as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from typing import Any

from memcalc.footprint import Footprint
from memcalc.timeline.groups import BYS, by_rows, life_row, modules
from memcalc.timeline.timeline import Moment, Timeline

TIMELINE_VERSION = 1
LARGEST = 100
"""Buffers at the peak that are written out in full."""


class Table:
    """Values numbered in the order they were first seen."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}

    def number(self, value: Hashable) -> int:
        """The value's number."""
        return self.numbers.setdefault(value, len(self.numbers))

    def column(self, values: Iterable[Hashable]) -> list[int]:
        """The numbers of many."""
        return [self.number(value) for value in values]

    def values(self) -> list[Any]:
        """The values, each at its number."""
        return list(self.numbers)


def made(timeline: Timeline, footprint: Footprint | None, *, title: str, suffix: str = ".json") -> bytes:
    """The document as UTF-8 text that ends in a line feed; long columns stand on a line each."""
    lines = [f"{json.dumps(key)}: {_dumps(value)}" for key, value in document(timeline, footprint, title=title).items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def document(timeline: Timeline, footprint: Footprint | None = None, *, title: str = "") -> dict[str, Any]:
    """The document as plain data; see :data:`memcalc.formats.timeline.schema.SCHEMA` for what each key means."""
    return {
        "schema_version": TIMELINE_VERSION,
        "title": title,
        "measure": timeline.measure,
        "instants": len(timeline),
        "window": list(timeline.window),
        "roles": list(timeline.roles),
        "phases": phases(timeline),
        "peak": peak(timeline),
        **_columns(timeline),
        "total": timeline.total.tolist(),
        "allocated": None if timeline.allocated is None else timeline.allocated.tolist(),
        "reserved": None if timeline.reserved is None else timeline.reserved.tolist(),
        "footprint": None if footprint is None else footprint.to_dict(),
    }


def phases(timeline: Timeline) -> list[dict[str, Any]]:
    """Each phase's stretch of instants and its highest point."""
    return [
        {"phase": stay.phase, "iteration": stay.iteration, "start": stay.start, "stop": stay.stop,
         "peak": {"instant": top.instant, "bytes": top.bytes}}
        for stay in timeline.lives.stays for top in [timeline.top(stay)]
    ]  # fmt: skip


def peak(timeline: Timeline) -> dict[str, Any]:
    """The peak, what it is made of in three groupings and a tree, and the peaks of the allocator's two series."""
    at = timeline.peak.instant
    series = {"allocated": timeline.allocated, "reserved": timeline.reserved}
    return {
        **_moment(timeline.peak),
        **{name: None if values is None else int(values[at]) for name, values in series.items()},
        "by_role": timeline.by_role(at),
        **{f"by_{how}": by_rows(timeline, how) for how in BYS if how != "role"},
        "modules": modules(timeline).to_dict(),
        "largest": [life_row(life) for life in timeline.largest(LARGEST)],
        **{f"highest_{name}": _moment(timeline.highest(values)) for name, values in series.items()},
    }


def _moment(moment: Moment | None) -> Any:
    if moment is None:
        return None
    return {"instant": moment.instant, "bytes": moment.bytes, "phase": moment.phase, "iteration": moment.iteration}


def _columns(timeline: Timeline) -> dict[str, Any]:
    """The buffers' columns, and the tables their numbers point into."""
    strings, shapes = Table(), Table()
    buffers, lives = timeline.lives.buffers, timeline.lives
    columns: dict[str, Any] = {
        name: strings.column(getattr(one, name) for one in buffers)
        for name in ("site", "role", "module", "operator", "dtype", "place")
    }
    columns["shape"] = shapes.column(one.shape for one in buffers)
    columns["requested"] = [int(one.requested) for one in buffers]
    columns["stream"] = [one.stream for one in buffers]
    columns["born"] = lives.born.tolist()
    columns["dies"] = [None if at == len(timeline) else at for at in lives.dies.tolist()]
    return {
        "strings": strings.values(),
        "shapes": [None if shape is None else list(shape) for shape in shapes.values()],
        "buffers": columns,
        "events": lives.events.tolist(),
    }


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
