"""What ``estimate --engine trace`` does beyond a footprint: its progress, its tables, and the files it writes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcalc.errors import InputError, did_you_mean
from memcalc.records import dataclass

if TYPE_CHECKING:
    from memcalc.engines.trace.estimate import Progress, Traced
    from memcalc.footprint import Footprint

GROUPS = ("module", "operator", "role")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked of a trace.

    Attributes:
        timeline: the file its timeline is written to.
        snapshot: the file its allocations are written to, for PyTorch's memory visualiser.
        top: how many of the largest buffers at the peak are listed.
        by: what the peak is grouped by.
    """

    timeline: Path | None = None
    snapshot: Path | None = None
    top: int | None = None
    by: str | None = None

    def checked(self) -> Wanted:
        """The same, refused now rather than after a long trace.

        Raises:
            InputError: another grouping, or a file of another kind.
            MissingPackageError: a picture, without matplotlib.
        """
        if self.by is not None and self.by not in GROUPS:
            raise InputError("--by", self.by, "is no way to group the peak", did_you_mean(self.by, GROUPS))
        if self.timeline is not None:
            from memcalc.formats.timeline import kind

            kind(self.timeline)
        return self


def traced(mapping: Mapping[str, Any], wanted: Wanted, form: str, *, exact: bool, explain: bool, **told: Any) -> Footprint:
    """Trace a job, write what was asked for, and print it."""
    from memcalc.api import trace_read
    from memcalc.formats import show
    from memcalc.job import read_job

    wanted.checked()
    job = read_job(mapping)
    with _progress() as progress:
        found = trace_read(job, progress=progress, **told)
    _write(found, wanted)
    if form == "json" and (wanted.top or wanted.by):
        print(json.dumps(found.footprint.to_dict(explain=explain) | _groups(found, wanted), indent=2, ensure_ascii=False))
        return found.footprint
    show.one(found.footprint, form, exact=exact, explain=explain)
    if form == "table":
        _tables(found, wanted, exact=exact)
    return found.footprint


def _timeline(found: Traced) -> Any:
    from memcalc.timeline.timeline import Timeline

    series = found.replay.series
    steady = found.footprint.peak.iteration
    return Timeline.of(found.tape, allocated=series["allocated"], reserved=series["reserved"], iteration=steady)


def _write(found: Traced, wanted: Wanted) -> None:
    if wanted.timeline is not None:
        from memcalc.formats.timeline import write

        write(_timeline(found), wanted.timeline, found.footprint)
        print(f"timeline: {wanted.timeline}", file=sys.stderr)
    if wanted.snapshot is not None:
        from memcalc.allocator.snapshot import snapshot_bytes
        from memcalc.measurement_files import write_atomically

        write_atomically(wanted.snapshot, snapshot_bytes(found.replay), "--snapshot")
        print(f"snapshot for PyTorch's memory visualiser: {wanted.snapshot}", file=sys.stderr)


def _groups(found: Traced, wanted: Wanted) -> dict[str, Any]:
    from memcalc.timeline.groups import by_rows, top_rows

    timeline = _timeline(found)
    told: dict[str, Any] = {}
    if wanted.top:
        told["top"] = top_rows(timeline, wanted.top)
    if wanted.by:
        told["by"] = {wanted.by: by_rows(timeline, wanted.by)}
    return told


def _tables(found: Traced, wanted: Wanted, *, exact: bool) -> None:
    if not (wanted.top or wanted.by):
        return
    from memcalc.formats.table import console
    from memcalc.formats.timeline.tables import by_table, top_table

    timeline, out = _timeline(found), console()
    if wanted.top:
        out.print()
        out.print(top_table(timeline, wanted.top, exact=exact))
    if wanted.by:
        out.print()
        out.print(by_table(timeline, wanted.by, exact=exact))


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A line on stderr that says what is under way; only a terminal sees it, and it is gone at the end."""
    if not sys.stderr.isatty():
        yield lambda what, count: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[seen]:,} operators"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tracing", total=None, seen=0)
        yield lambda what, count: bar.update(task, description=what, seen=count)
