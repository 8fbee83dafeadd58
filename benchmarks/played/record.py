"""What traces of a part of the grid come to, kept in a file, so that the played step is held against them without torch.

``python -m benchmarks.played.record [FAMILY …]`` traces the second shape of every setting, a second or two each,
and writes their heights; ``python -m benchmarks.played`` is the whole grid, traced anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.played.against import heights, traced
from benchmarks.played.cases import MODELS, jobs
from memcalc.errors import MemcalcError

FILE = Path(__file__).with_name("traced.json")


def name_of(job: dict[str, Any]) -> str:
    """What tells a family's jobs apart, in one line."""
    return " ".join(str(value) for key, value in job.items() if key not in ("model", "optimizer"))


def recorded() -> dict[str, dict[str, Any]]:
    """By family: the model that was traced, and by job (top, left, saved)."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def sliced(family: str) -> list[dict[str, Any]]:
    """One shape of a family's jobs, the second, in BF16 and under autocast; the textbook's FP16 is BF16 by another name."""
    return [job for job in jobs(family)[1::3] if job["precision"] != "fp16"]


def main(families: list[str]) -> None:
    """Trace families and keep what they come to."""
    for family in families or sorted(MODELS):
        rows = {}
        for job in sliced(family):
            try:
                found = heights(traced(job))
            except MemcalcError as refused:  # BART asks in FP16 whether its values are finite, which a trace does not know
                print(f"{family} {name_of(job)}: {refused}", flush=True)
                continue
            rows[name_of(job)] = [found.top, found.net, found.saved]
        known = recorded()
        known[family] = {"model": MODELS[family], "heights": rows}
        text = json.dumps(dict(sorted(known.items())), indent=0, separators=(",", ":"))
        FILE.write_text(text + "\n")
        print(f"{family}: {len(rows)} jobs", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
