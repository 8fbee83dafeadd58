"""The trace as the page's script reads it: every event, in a few characters each.

``kinds`` hold what many buffers share: (operator, dtype, shape, requested, bytes, role, stream), the first two as indices into
``strings``, the role as one into ``roles`` or -1 for what is not on the device. A buffer is a kind, a site and a module. An
event is 0 where the next buffer is born, and otherwise how many births ago the buffer that dies was born. ``allocated`` (less
the total) and ``reserved`` are written where they change: instant, value, instant, value.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from memcalc.formats.palette import LABELS
from memcalc.formats.timeline.document import Table
from memcalc.timeline.lives import Ints
from memcalc.timeline.timeline import Timeline


def packed(timeline: Timeline) -> dict[str, Any]:
    """The page's data."""
    strings, kinds = Table(), Table()
    number = {role: at for at, role in enumerate(timeline.roles)}
    buffers, lives = timeline.lives.buffers, timeline.lives
    kind = [
        kinds.number(
            (strings.number(one.operator), strings.number(one.dtype), one.shape, int(one.requested), size,
             number[one.role] if size else -1, one.stream)
        )
        for one, size in zip(buffers, timeline.sizes.tolist(), strict=True)
    ]  # fmt: skip
    born = lives.events > 0
    births = born.cumsum()
    top = timeline.highest(timeline.allocated)
    return {
        "measure": timeline.measure,
        "peak": timeline.peak.instant,
        "allocated_peak": None if top is None else top.instant,
        "window": list(timeline.window),
        "roles": list(timeline.roles),
        "labels": [LABELS[role] for role in timeline.roles],
        "phases": [[stay.phase, stay.iteration, stay.start, stay.stop] for stay in lives.stays],
        "kinds": kinds.values(),
        "kind": kind,
        "site": strings.column(one.site for one in buffers),
        "module": strings.column(one.module for one in buffers),
        "strings": strings.values(),
        "events": np.where(born, 0, births + lives.events + 1).tolist(),
        "allocated": None if timeline.allocated is None else _changes(timeline.allocated - timeline.total),
        "reserved": None if timeline.reserved is None else _changes(timeline.reserved),
    }


def island(data: dict[str, Any]) -> str:
    r"""JSON that may stand in a script element whatever names are in it: no ``<``, ``>`` or ``&``, and nothing but ASCII.

    >>> island({"name": "</script><!--\u2028"})
    '{"name":"\\u003c/script\\u003e\\u003c!--\\u2028"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _changes(series: Ints) -> list[int]:
    at = np.flatnonzero(np.diff(series, prepend=series[0] - 1))
    return np.stack([at, series[at]], axis=1).ravel().tolist()
