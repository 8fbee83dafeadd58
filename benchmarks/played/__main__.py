"""``python -m benchmarks.played [FAMILY …] [--diff] [--only KEY=VALUE …]``: the grid, a line a job; exit code 1 for a miss."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from benchmarks.played.against import difference, heights, played, traced
from benchmarks.played.cases import MODELS, jobs

TOP_TOLERANCE = 0.001
"""How far the highest point may be off, as a share; what is saved and what is left behind must be equal."""


def main(
    families: Annotated[list[str] | None, typer.Argument(help="Families; all of them by default.")] = None,
    diff: Annotated[bool, typer.Option(help="Show where the events of a miss part.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Jobs with this value, as precision=fp16.")] = None,
    most: Annotated[int, typer.Option(help="Differences shown.")] = 20,
) -> None:
    """Play every job of the grid and hold it against its trace."""
    misses = total = 0
    for family in families or sorted(MODELS):
        for job in jobs(family):
            if not all(str(job.get(key)) == value for key, _, value in (each.partition("=") for each in only or ())):
                continue
            total += 1
            misses += not _one(family, job, diff=diff, most=most)
            sys.stdout.flush()
    print(f"{total - misses} of {total} agree")
    raise typer.Exit(1 if misses else 0)


def _one(family: str, job: dict[str, Any], *, diff: bool, most: int) -> bool:
    name = " ".join(str(value) for key, value in job.items() if key not in ("model", "optimizer"))
    try:
        first, second = traced(job), played(job)
    except Exception as error:  # a job that cannot run is a miss with its reason
        print(f"{family:14s} {name:45s} {type(error).__name__}: {error}")
        if diff:
            raise
        return False
    trace, mine = heights(first), heights(second)
    off = (mine.top - trace.top) / trace.top
    good = trace.saved == mine.saved and trace.net == mine.net and abs(off) <= TOP_TOLERANCE
    print(
        f"{family:14s} {name:45s} saved {trace.saved} {mine.saved - trace.saved:+d}  top {trace.top} {off:+.3%}  "
        f"left {mine.net - trace.net:+d}  {'' if good else 'MISS'}"
    )
    if diff and not good:
        print("\n".join(difference(first, second, most)))
    return good


if __name__ == "__main__":
    typer.run(main)
