"""How long the step from a config takes in process, on one core, and how fast a sweep of whole peaks is.

    python benchmarks/step.py [--runs 15] [--models llama-3.1-8b gpt2 …] [--json]

Processor time of this process; the quickest and the median of the runs, each model read once before. ``first`` is an estimate
without the allocator as the first jobs of a kind are played; ``played`` one of a further job, another batch and other sequences
each time; ``replayed`` the same with the allocator, compiled by numba as a process does it after its first
``summits.PATIENCE`` tapes, and ``in python`` without numba; each is a whole footprint.

Then two iterations through the allocator, in turns: ``replay`` notes every instant, ``bare`` and ``compiled`` the phases'
highest points, which are compared. ``peaks`` is 100,032 jobs of llama-3.1-8b, 64 micro-batch sizes by 1,563 sequence lengths.
Targets: 0.5 ms played and 5 ms replayed; 300,000 peaks a second computed and 50,000 rows a second written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import sweep

from memcalc.allocator import compiled
from memcalc.allocator import summits as bare
from memcalc.allocator.played import Measure
from memcalc.allocator.program import Numbered
from memcalc.allocator.replay import replay
from memcalc.allocator.summits import summits
from memcalc.api import estimate_read
from memcalc.engines.analytic import structures
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.job import read_job
from memcalc.readers.source import read_model

MODELS = ("llama-3.1-8b", "gpt2", "mixtral-8x7b-v0.1", "bert-base-uncased", "resnet-50")
WANTED: tuple[Measure, ...] = ("requested", "allocated", "reserved")
PEAKS = {
    "base": {"model": "llama-3.1-8b"},
    "grid": {"micro_batch_size": {"from": 1, "to": 64}, "sequence_length": {"from": 1025, "to": 2587}},
}


def timed(works: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, turn by turn, so that a machine whose speed drifts slows all of them."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            began = time.process_time()
            work()
            found[name].append((time.process_time() - began) * 1000)
    return {name: {"least": round(min(took), 2), "median": round(median(took), 2)} for name, took in found.items()}


def one(name: str, runs: int) -> dict[str, Any]:
    """One model, micro-batch 1, sequences of 4096 or the longest it takes."""
    model = read_model(name)
    longest = getattr(model.config, "max_position_embeddings", 4096) or 4096
    tokens = {} if model.family.startswith(("resnet", "vit")) else {"sequence_length": min(4096, longest)}
    job = read_job({"model": name, "micro_batch_size": 1, **tokens})
    tape = list(estimate_whole(job, model).tape or ())
    full, in_python, by_numba = replay(tape), _by(None, lambda: summits(tape)), _by(compiled, lambda: summits(tape))
    for place, peaks in full.phases().items():
        assert in_python[place] == by_numba[place] == {key: peaks[key] for key in WANTED}, (name, place)
    numbered = Numbered.of(tape)
    further = itertools.cycle(
        [
            read_job({"model": name, "micro_batch_size": rows, **({"sequence_length": length} if tokens else {})})
            for rows in range(2, 10)
            for length in range(min(4096, longest), min(4096, longest) - 97, -24)
        ]
    )
    for _ in range(structures.ALONE + 1):
        estimate_read(next(further), model, replayed=False)
    took = timed(
        {
            "first": lambda: _forgotten(lambda: estimate_read(job, model, replayed=False)),
            "played": lambda: estimate_read(next(further), model, replayed=False),
            "replayed": lambda: _by(compiled, lambda: estimate_read(next(further), model)),
            "in python": lambda: _by(None, lambda: estimate_read(next(further), model)),
            "replay": lambda: replay(tape), "bare": lambda: _by(None, lambda: summits(numbered)),
            "compiled": lambda: _by(compiled, lambda: summits(numbered)),
        },
        runs,
    )  # fmt: skip
    return {"model": name, "events": len(full.events), **took}


def _by(module: Any, work: Callable[[], Any]) -> Any:
    """Work with the compiled loop, or without one."""
    bare._Compiled.module, bare._Compiled.tried = module, True
    return work()


def _forgotten(work: Callable[[], Any]) -> None:
    """Work as a process does it that has played nothing before."""
    known, structures.KNOWN.known = structures.KNOWN.known, {}
    work()
    structures.KNOWN.known = known


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compiled.ready()
    results: list[dict[str, Any]] = []
    for name in options.models:
        results.append(one(name, options.runs))
        if not options.json:
            ways = ("first", "played", "replayed", "in python", "replay", "bare", "compiled")
            told = "  ".join(f"{way} {results[-1][way]['least']:7.2f} ({results[-1][way]['median']:7.2f}) ms" for way in ways)
            print(f"{name:<20} {results[-1]['events']:>7,} events  {told}", flush=True)
    works = {"computed": lambda: sweep.computed(PEAKS), "written as csv": lambda: sweep.written(PEAKS, "csv")}
    for task, work in works.items():
        rows, seconds = sweep.rate(work, max(3, options.runs // 5))
        results.append({"task": f"peaks, {task}", "rows": rows, "per_second": round(rows / seconds)})
        if not options.json:
            print(f"peaks, {task:<16} {rows:>10,} rows {seconds:>8.3f} s {rows / seconds:>12,.0f} rows/s", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
