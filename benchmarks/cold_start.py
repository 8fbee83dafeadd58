"""Cold starts, whole processes in pairs: memcalc against an empty one-command typer app that validates one pydantic model.

    python benchmarks/cold_start.py [--runs 15]

Each pair runs back to back, so that a machine whose speed drifts slows both; medians of the ratios of processor time are what
to quote. Both find their bytecode ready, as an installed package does, in a folder of their own that a first run fills.
Targets: an estimate of llama-3.1-8b's whole step as JSON at most 1.6 times the empty app, its table at most 1.9 times, and a
model of some 45,000 tensors (deepseek-v3, one matrix an expert) at most 1.3 times a small one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

EMPTY = """
import typer
from pydantic import BaseModel

class Thing(BaseModel):
    name: str
    size: int

app = typer.Typer()

@app.command()
def main(name: str = "x", size: int = 3) -> None:
    print(Thing(name=name, size=size).model_dump_json())

app()
"""
MEMCALC = [sys.executable, "-m", "memcalc"]
SEPARATE = ["--set", "expert_layout=separate"]


def seconds(command: list[str], folder: str) -> float:
    """Processor time of one cold run of a command, its output thrown away."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    own |= {"COLUMNS": "100", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=own)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def paired(ours: list[str], theirs: list[str], runs: int, folder: str) -> dict[str, float]:
    """Medians of both commands and of their ratio, pair by pair, after one warm-up of each."""
    seconds(theirs, folder), seconds(ours, folder)
    pairs = [(seconds(theirs, folder), seconds(ours, folder)) for _ in range(runs)]
    return {
        "theirs_ms": round(median(a for a, _ in pairs) * 1000, 1),
        "ours_ms": round(median(b for _, b in pairs) * 1000, 1),
        "ratio": round(median(b / a for a, b in pairs), 3),
    }


def main() -> None:
    """Run every pair and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY)
        base = [sys.executable, str(empty)]
        small = [*MEMCALC, "estimate", "llama-3.1-8b", "--micro-batch-size", "1", "--sequence-length", "4096"]
        large = [*MEMCALC, "estimate", "deepseek-v3", *SEPARATE, "--format", "json"]
        told = [*small, "--format", "json"]
        results = {
            "json against an empty app (target 1.6)": paired(told, base, runs, folder),
            "table against an empty app (target 1.9)": paired(small, base, runs, folder),
            "deepseek-v3, one matrix an expert, against a small model (target 1.3)": paired(large, told, runs, folder),
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
