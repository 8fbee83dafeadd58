"""What the traces of the grid come to, kept in a file, so that the played step is held against them without torch.

``python -m benchmarks.played.record [FAMILY …]`` traces the families' jobs (a second or two each) and writes their heights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.played.against import heights, traced
from benchmarks.played.cases import MODELS, jobs

FILE = Path(__file__).with_name("traced.json")


def name_of(job: dict[str, Any]) -> str:
    """What tells a family's jobs apart, in one line."""
    return " ".join(str(value) for key, value in job.items() if key not in ("model", "optimizer"))


def recorded() -> dict[str, dict[str, Any]]:
    """By family: the model that was traced, and by job (top, left, saved)."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def main(families: list[str]) -> None:
    """Trace families and keep what they come to."""
    for family in families or sorted(MODELS):
        rows = {}
        for job in jobs(family):
            found = heights(traced(job))
            rows[name_of(job)] = [found.top, found.net, found.saved]
        known = recorded()
        known[family] = {"model": MODELS[family], "heights": rows}
        text = json.dumps(dict(sorted(known.items())), indent=0, separators=(",", ":"))
        FILE.write_text(text + "\n")
        print(f"{family}: {len(rows)} jobs", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
