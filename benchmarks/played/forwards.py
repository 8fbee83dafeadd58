"""Forwards without gradients that are held against their traces: every family in each mode, and what the traces came to.

``python -m benchmarks.played.forwards [FAMILY …]`` traces them, the real modules with the real caches of transformers, and
keeps in a file what they come to, so that the played ones are held against them without torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.played.cases import MODELS
from memcalc.families.base import load_family
from memcalc.tape.events import Alloc, Event, Mark
from memcalc.tape.unroll import unroll

FILE = Path(__file__).with_name("forwards.json")
KEPT = ("parameter", "buffer", "workspace")
"""Roles that are left out of a height: they are there throughout, and far larger than all else in a small model."""
SLIDING = {"mistral", "qwen2", "qwen2_moe", "gemma2", "gemma3_text", "olmo3", "gpt_oss"}
"""Families of which some layer slides here, which no quantised cache takes."""
WRITTEN = {"gemma2", "gpt_oss", "gpt_neo", "gptj", "bloom", "mpt"}
"""Families without a kernel."""
READ = {"opt", "mpt"}
"""Families that read on the host how many tokens a static cache holds, which no trace knows."""


def families() -> list[str]:
    """Those that keep keys and values, and a few that are evaluated alone."""
    names = [name for name in MODELS if load_family(name).caches]
    return sorted([*names, "bert", "vit", "albert"])


def jobs(family: str) -> Iterator[dict[str, Any]]:
    """Every job of a family."""
    model = {"model_type": family, **MODELS[family]}
    usual = {"model": model, "micro_batch_size": 3, "precision": "bf16-pure"}
    eager = {"attention": "eager"}
    images = "sequence_length" not in load_family(family).inputs
    yield {**usual, "mode": "evaluate", **({} if images else {"sequence_length": 96})}
    if not load_family(family).caches:
        return
    for kernel in ({}, eager) if family not in WRITTEN else ({},):
        yield {**usual, **kernel, "mode": "prefill", "sequence_length": 96}
        yield {**usual, **kernel, "mode": "decode", "context_length": 200}
    yield {**usual, "mode": "decode", "context_length": 60}
    yield {**usual, "mode": "decode", "context_length": 100, "precision": "amp-bf16"}
    if "source_length" in load_family(family).inputs:
        return
    if family not in READ:
        yield {**usual, "mode": "decode", "context_length": 100, "cache": "static", "max_cache_length": 256}
        yield {**usual, "mode": "decode", "context_length": 200, "cache": "static", "max_cache_length": 256}
        yield {**usual, "mode": "prefill", "sequence_length": 96, "cache": "static", "max_cache_length": 256}
    if family not in SLIDING:
        yield {**usual, "mode": "decode", "context_length": 100, "cache": "quantized-fp8"}


def name_of(job: dict[str, Any]) -> str:
    """What tells a family's jobs apart, in one line."""
    return " ".join(f"{key}={value}" for key, value in job.items() if key not in ("model", "micro_batch_size"))


def height(tape: Iterable[Event]) -> tuple[int, int]:
    """(the highest point of the last forward beside what is there throughout, what its cache holds in the end), requested."""
    live = top = cache = iteration = 0
    for event in unroll(tape):
        if isinstance(event, Mark):
            iteration = event.iteration
        else:
            buffer = event.buffer
            if buffer.role in KEPT or buffer.place != "device":
                continue
            size = int(buffer.requested) * (1 if isinstance(event, Alloc) else -1)
            live += size
            cache += size if buffer.role == "cache" else 0
        if iteration == 2:
            top = max(top, live)
    return top, cache


def traced(job: dict[str, Any]) -> dict[str, int]:
    """What a trace of it comes to: its height, its allocated peak, and what its cache holds at most."""
    from memcalc.engines.trace.estimate import trace_job
    from memcalc.job import read_job

    found = trace_job(read_job({**job, "engine": "trace"}))
    cache, allocated = found.footprint.components.cache, found.footprint.peak.allocated
    assert cache is not None
    assert allocated is not None
    return {"top": height(found.tape)[0], "allocated": allocated, "cache": cache}


def recorded() -> dict[str, dict[str, Any]]:
    """By family: the model that was traced, and by job what it came to."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    return found


def main(chosen: list[str]) -> None:
    """Trace families and keep what they come to."""
    for family in chosen or families():
        rows = {name_of(job): traced(job) for job in jobs(family)}
        known = recorded()
        known[family] = {"model": MODELS[family], "forwards": rows}
        FILE.write_text(json.dumps(dict(sorted(known.items())), indent=0, separators=(",", ":")) + "\n")
        print(f"{family}: {len(rows)} forwards", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
