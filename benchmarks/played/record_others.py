"""What traces of other projects' modules come to, kept in a file, so that the played step is held against them without torch.

    python -m benchmarks.played.record_others timm
    python -m benchmarks.played.record_others torchtune CLONE

traces every case of ``timm_cases`` or ``torchtune_cases``, a second or two each: forward and backward of a steady step, and for
those with checkpointing in BF16 the peaks of two whole steps under AdamW.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.played import timm_cases, torchtune_cases
from benchmarks.played.against import heights
from benchmarks.played.others import Case, traced

FILE = Path(__file__).with_name("others.json")


def recorded() -> dict[str, dict[str, Any]]:
    """By project: what was traced, and its cases: (name, job, [top, left, saved], [requested, allocated] or None)."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def rows(cases: Iterable[Case]) -> list[list[Any]]:
    """A row a case."""
    found = []
    for case in cases:
        _, steps = traced(case.job, case.make, case.run)
        high = heights(steps)
        peaks = None
        if case.job["precision"] == "bf16-pure" and case.job["activation_checkpointing"] == "full":
            footprint, _ = traced(case.job, case.make, case.run, "AdamW")
            peaks = [footprint.peak.requested, footprint.peak.allocated]
        found.append([case.name, case.job, [high.top, high.net, high.saved], peaks])
        print(*found[-1][2:], case.name, flush=True)
    return found


def main(project: str, clone: str | None = None) -> None:
    """Trace a project's cases and keep what they come to."""
    if project == "timm":
        import importlib.metadata

        told, found = {"version": importlib.metadata.version("timm")}, rows(timm_cases.cases())
    else:
        with tempfile.TemporaryDirectory() as folder:
            told, found = torchtune_cases.COMMITS, rows(torchtune_cases.cases(Path(str(clone)), Path(folder)))
    known = recorded()
    known[project] = {"of": told, "cases": found}
    lines = ",\n".join(
        f'{json.dumps(name)}:{{"of":{json.dumps(one["of"])},"cases":[\n' + ",\n".join(map(json.dumps, one["cases"])) + "]}"
        for name, one in sorted(known.items())
    )
    FILE.write_text("{" + lines + "}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
