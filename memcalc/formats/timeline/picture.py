"""A timeline as a picture for a document, ``.png`` or ``.svg``, by matplotlib. Equal timelines make equal bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from memcalc.errors import MissingPackageError
from memcalc.footprint import Footprint
from memcalc.formats.palette import LABELS, LIGHT
from memcalc.formats.sheet import scale
from memcalc.timeline.drawing import kept
from memcalc.timeline.timeline import Timeline
from memcalc.units import format_gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, DPI = (11.0, 5.2), 150
POINTS = 650
"""Stretches drawn: a fifth of a millimetre each at this size, and a drawing of a few hundred kilobytes."""
INK, FAINT = "#1c2733", "#6b7885"
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same letters
    "font.size": 9,
    "svg.hashsalt": "memcalc",
    "svg.fonttype": "path",
    "path.simplify": False,
    "axes.edgecolor": "#c4c9cf",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}


def made(timeline: Timeline, footprint: Footprint | None, *, title: str, suffix: str) -> bytes:
    """The picture's bytes: stacked areas by role, phases marked, the total, what the allocator counts, and the peak.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError.extra("--timeline", "matplotlib", "plot") from None
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(axes, timeline)
        subtitle = "" if footprint is None else _about(footprint)
        axes.text(0, 1.1, subtitle, transform=axes.transAxes, color=FAINT, fontsize=9, parse_math=False)
        height = 1.15 if subtitle else 1.1
        axes.text(0, height, title, transform=axes.transAxes, fontsize=13, fontweight="bold", parse_math=False)
        out = io.BytesIO()
        # neither the time nor the version of what drew it: equal pictures are equal files
        metadata = {"Software": None} if suffix == ".png" else {"Date": None, "Creator": None}
        figure.savefig(out, format=suffix[1:], dpi=DPI, metadata=metadata)
    return out.getvalue()


def _about(footprint: Footprint) -> str:
    from memcalc.formats.sheet import sheet

    return sheet(footprint).about


def _draw(axes: Axes, timeline: Timeline) -> None:
    lines = {"allocated": timeline.allocated, "reserved": timeline.reserved}
    highest = max(int(series.max()) for series in (timeline.total, *lines.values()) if series is not None)
    unit = scale([highest], exact=False)
    at = kept(timeline, POINTS)
    # a step lasts until the next, so the last instant is drawn once more at the end; where instants are left out there are none
    step = "post" if len(at) == len(timeline) else None
    style = "steps-post" if step else "default"
    x, last = [*at.tolist(), len(timeline)], [*at.tolist(), int(at[-1])]
    areas = [timeline.live[row, last] / unit.size for row in range(len(timeline.roles))]
    if areas:
        labels, colours = [LABELS[role] for role in timeline.roles], [LIGHT[role] for role in timeline.roles]
        axes.stackplot(x, *areas, labels=labels, colors=colours, step=step, linewidth=0)
    axes.plot(
        x, timeline.total[last] / unit.size, drawstyle=style, color=INK, linewidth=0.7, label=f"total ({timeline.measure})"
    )
    for (name, series), dash in zip(lines.items(), ("-", "--"), strict=True):
        if series is not None:
            axes.plot(x, series[last] / unit.size, drawstyle=style, color=FAINT, linewidth=1.0, linestyle=dash, label=name)
    axes.set(xlim=(0, len(timeline)), ylim=(0, 1.16 * highest / unit.size or 1), ylabel=unit.unit)
    axes.set_xlabel("instant (allocations and frees, in order)")
    axes.spines[["top", "right"]].set_visible(False)
    _phases(axes, timeline)
    _peak(axes, timeline, unit.size)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _phases(axes: Axes, timeline: Timeline) -> None:
    """A thin rule where each phase starts, its name over it where there is room, and the iteration where that changes."""
    top: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom", "fontsize": 7.5}
    before = None
    for stay in timeline.lives.stays:
        new = stay.iteration != before and stay.iteration > 0
        before = stay.iteration
        axes.axvline(stay.start, color=INK, alpha=0.55 if new else 0.2, linewidth=0.8 if new else 0.6)
        name = stay.phase.replace("_", " ")
        share = (stay.stop - stay.start) / len(timeline)
        if share * 150 > len(name):
            axes.text((stay.start + stay.stop) / 2, 1.005, name, ha="center", color=FAINT, **top)
        if new:
            axes.text(stay.start, 1.045, f" iteration {stay.iteration}", ha="left", color=INK, **top)


def _peak(axes: Axes, timeline: Timeline, size: int) -> None:
    peak = timeline.peak
    left = peak.instant > len(timeline) / 2
    said = f"peak {format_gib(peak.bytes)}, {peak.phase.replace('_', ' ')} of iteration {peak.iteration}"
    axes.plot([peak.instant], [peak.bytes / size], marker="v", color=INK, markersize=5, clip_on=False)
    axes.annotate(
        said,
        (peak.instant, peak.bytes / size),
        xytext=(-8 if left else 8, 10),
        textcoords="offset points",
        ha="right" if left else "left",
        fontweight="bold",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )
