"""A timeline thinned to what a picture can show, without losing a peak that it could."""

from __future__ import annotations

import numpy as np

from memcalc.timeline.lives import Ints
from memcalc.timeline.timeline import Timeline

COLUMNS = 1600
"""Stretches a picture is cut into: more than a printed page or a screen shows apart."""
VISIBLE = 1000
"""A difference below a thousandth of the highest value is less than a pixel of any picture that is drawn."""


def kept(timeline: Timeline, columns: int = COLUMNS, start: int = 0, stop: int | None = None) -> Ints:
    """The instants to draw of ``start <= i < stop``, ascending; all of them where there are few.

    The instants are cut into ``columns`` equal stretches. Of each are kept: its first, the highest and lowest of the total, and
    the highest of each role and of ``allocated`` and ``reserved`` where that is higher than what is kept already by more than
    a thousandth of the picture's height. So no curve has a local peak that is visible and not drawn. The first and last
    instants of every phase and the peak are kept too.
    """
    end = len(timeline) if stop is None else stop
    if end - start <= 2 * columns:
        return np.arange(start, end)
    edges = np.unique(np.linspace(start, end, columns + 1).astype(np.int64))
    lows, highs = edges[:-1], edges[1:]
    extra = [series for series in (timeline.allocated, timeline.reserved) if series is not None]
    rows = [timeline.total, *timeline.live, *extra]
    threshold = max(int(series[start:end].max()) for series in rows) / VISIBLE
    chosen = {int(lows[0]), end - 1, *(int(low) for low in lows)}
    for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
        total = timeline.total[low:high]
        mine = [low, low + int(total.argmax()), low + int(total.argmin())]
        for series in rows[1:]:
            at = low + int(series[low:high].argmax())
            if series[at] - series[mine].max() > threshold:
                mine.append(at)
        chosen.update(mine)
    bounds = [edge for stay in timeline.lives.stays for edge in (stay.start, stay.stop - 1)]
    chosen.update(edge for edge in (*bounds, timeline.peak.instant) if start <= edge < end)
    return np.array(sorted(chosen), dtype=np.int64)
