"""How fast a sweep is, on one core: computing, writing, in points and in models; and what memory it takes.

    python benchmarks/sweep.py [--runs 5] [--json]

Processor time of this process, median of the runs, after one that is thrown away. ``textbook`` is configs/sweeps/textbook.yaml:
100,000 points of bare sizes by optimizer, ZeRO stage and ranks. ``models`` is twenty shipped models by five optimizers by four
precisions by 1 to 64 ranks. Memory is the resident set's high mark of a process that does nothing else.
Targets: 300,000 textbook points a second computed and 50,000 rows a second written; time in proportion to the points, and
memory that does not grow with them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from memcalc.sweep import load_sweep, run

TEXTBOOK = Path(__file__).parent.parent / "configs" / "sweeps" / "textbook.yaml"
MODELS = [
    "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3.1-8b", "llama-3.1-70b",
    "llama-3.2-1b", "llama-3.2-3b", "mistral-7b-v0.1", "qwen2.5-0.5b", "qwen2.5-7b", "phi-2", "gemma-2-9b", "bert-base-uncased",
    "t5-base", "vit-base-patch16-224", "mixtral-8x7b-v0.1",
]  # fmt: skip


def models(stage: int) -> dict[str, Any]:
    """A grid of shipped models under one ZeRO stage, FSDP2's from stage 2 on."""
    return {
        "base": {"zero_stage": stage, **({"zero_backend": "fsdp2"} if stage > 1 else {})},
        "grid": {
            "model": MODELS, "optimizer": ["adam", "adamw8bit", "sgd-momentum", "adafactor", "lion"],
            "precision": ["fp16", "bf16", "fp32", "bf16-pure"], "dp": {"from": 1, "to": 64},
        },
    }  # fmt: skip


def bare(points: int) -> dict[str, Any]:
    """That many textbook points: ten to each size."""
    sizes = {"from": 10**6, "to": 10**6 + points // 10 - 1}
    return {"grid": {"params": sizes, "zero_stage": [1], "optimizer": ["adam", "sgd-momentum"], "dp": [1, 8, 64, 512, 4096]}}


def computed(spec: Any) -> int:
    """Rows of a sweep, computed and dropped."""
    return sum(table.rows for table in run(spec).tables())


def written(spec: Any, form: str) -> int:
    """Rows of a sweep, computed and written."""
    with tempfile.TemporaryDirectory() as folder:
        return run(spec).write(Path(folder) / f"rows.{form}").rows


def rate(work: Callable[[], int], runs: int) -> tuple[int, float]:
    """(rows, median seconds of processor time)."""
    rows, seconds = work(), []
    for _ in range(runs):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return rows, median(seconds)


def high_mark(points: int) -> int:
    """The resident set's high mark, in bytes, of a process that writes so many points as CSV."""
    code = (
        "import sys, resource; sys.path.insert(0, sys.argv[1]); import sweep; "
        "sweep.written(sweep.bare(int(sys.argv[2])), 'csv'); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(points)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    spec = load_sweep(TEXTBOOK)
    tasks: dict[str, Callable[[], int]] = {
        "textbook, computed": lambda: computed(spec),
        **{f"textbook, written as {form}": lambda form=form: written(spec, form) for form in ("csv", "jsonl", "parquet")},  # type: ignore[misc]
        **{f"models, ZeRO-{stage}, computed": lambda stage=stage: computed(models(stage)) for stage in (0, 1, 3)},  # type: ignore[misc]
        **{f"{points:,} points, computed": lambda points=points: computed(bare(points)) for points in (10**5, 10**6)},  # type: ignore[misc]
    }
    results = []
    for name, work in tasks.items():
        rows, seconds = rate(work, options.runs)
        results.append({"task": name, "rows": rows, "seconds": round(seconds, 3), "per_second": round(rows / seconds)})
        if not options.json:
            print(f"{name:<34} {rows:>10,} rows {seconds:>8.3f} s {rows / seconds:>12,.0f} rows/s", flush=True)
    for points in (10**5, 10**6):
        mark = high_mark(points)
        results.append({"task": f"{points:,} points, written as csv", "high_mark": mark})
        if not options.json:
            print(f"{points:>10,} points written as csv: {mark / 2**20:,.0f} MiB at most", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
