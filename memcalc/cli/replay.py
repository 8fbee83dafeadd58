"""``memcalc replay``: a snapshot of PyTorch's allocator, played through the model of it."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from memcalc.cli.app import single

app = single()


class ReplayFormat(StrEnum):
    """How the answer is printed."""

    table = "table"
    json = "json"


@app.command()
def replay(
    snapshot: Annotated[Path, typer.Argument(metavar="SNAPSHOT", help="A file of torch.cuda.memory._dump_snapshot.")],
    allocator: Annotated[
        str | None, typer.Option("--allocator", help="Other settings, as PYTORCH_CUDA_ALLOC_CONF has them.", metavar="SETTINGS")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write it as .html to explore, .json, .png, .svg.", metavar="FILE")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="The N largest buffers at the peak.", metavar="N", min=1)] = 10,
    device: Annotated[int, typer.Option("--device", help="Which device of the file.", metavar="N", min=0)] = 0,
    form: Annotated[ReplayFormat, typer.Option("--format", help="table, json.", metavar="FORM")] = ReplayFormat.table,
) -> None:
    """What a recorded snapshot held at its peak, and what other allocator settings would have made of it.

    Only what was allocated while it was recorded is known.
    """
    from memcalc.allocator.replay import replay as play
    from memcalc.allocator.snapshot import read_snapshot, settings_of, tape_of
    from memcalc.errors import InputError
    from memcalc.formats.timeline import kind, write
    from memcalc.timeline.groups import top_rows
    from memcalc.timeline.timeline import Timeline

    if timeline is not None:
        kind(timeline)
    data = read_snapshot(snapshot)
    tape = tape_of(data, device)
    if not tape:
        raise InputError(str(snapshot), device, "holds no event of that device", "record with _record_memory_history first")
    played = play(tape, allocator if allocator is not None else settings_of(data))
    drawn = Timeline.of(tape, allocated=played.series["allocated"], reserved=played.series["reserved"])
    if timeline is not None:
        write(drawn, timeline, title=snapshot.name)
    told = {name: played.peak(name).bytes for name in ("requested", "rounded", "allocated", "reserved")}
    if form is ReplayFormat.json:
        answer: dict[str, Any] = {"schema_version": 1, "snapshot": str(snapshot), "events": len(tape), "peak": told}
        print(json.dumps({**answer, "top": top_rows(drawn, top)}, indent=2, ensure_ascii=False))
        return
    from memcalc.formats.table import console
    from memcalc.formats.timeline.tables import top_table
    from memcalc.units import format_gib

    out = console()
    out.print(f"{snapshot.name}: {len(tape):,} events", style="bold")
    for name, size in told.items():
        out.print(f"peak {name:<10}{format_gib(size):>14}")
    out.print(top_table(drawn, top))
