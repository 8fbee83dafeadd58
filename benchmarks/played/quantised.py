"""Quantised caches that played ones are held against: decoders' forwards traced, and single updates run for real on a CPU.

``python -m benchmarks.played.quantised`` needs optimum-quanto and hqq, and keeps in a file what both come to, so that what is
played is held against them without either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.played.cases import MODELS
from benchmarks.played.forwards import name_of, traced

FILE = Path(__file__).with_name("quantised.json")
KINDS = {"quantized-quanto": -1, "quantized-hqq": 1}
"""Each with its axis beside 0."""
SHORT = {"residual_length": 16, "q_group_size": 16}


def jobs(kind: str) -> Iterator[dict[str, Any]]:
    """Forwards of whole models."""
    axis = KINDS[kind]
    models: dict[str, dict[str, Any]] = {
        name: {"model_type": name, **MODELS[name]} for name in ("llama", "opt", "bloom", "mpt")
    }
    usual = {"model": models["llama"], "micro_batch_size": 2, "precision": "bf16-pure", "cache": kind}
    for name, model in models.items():
        yield {**usual, "model": model, "mode": "decode", "context_length": 60, "cache_args": SHORT}
        if name != "llama":
            continue
        yield {**usual, "mode": "prefill", "sequence_length": 61, "cache_args": SHORT}
        for precision in ("fp16-pure", "amp-bf16", "fp32"):
            yield {**usual, "mode": "decode", "context_length": 60, "cache_args": SHORT, "precision": precision}
    for context, options in (
        (60, {**SHORT, "nbits": 2}), (20, {"q_group_size": 32}), (1, SHORT), (2, SHORT), (16, SHORT),
        (63, {**SHORT, "axis_key": axis, "q_group_size": 4}),
        (15, {"residual_length": 1, "axis_value": axis, "q_group_size": 4}),
    ):  # fmt: skip
        yield {**usual, "mode": "decode", "context_length": context, "cache_args": options}
    if kind == "quantized-hqq":
        for bits in (1, 3, 8):
            yield {**usual, "mode": "decode", "context_length": 60, "cache_args": {**SHORT, "nbits": bits}}


def named(job: dict[str, Any]) -> str:
    """What tells a forward from all others, in one line."""
    return f"{job['model']['model_type']} {name_of(job)}"


def updates() -> Iterator[dict[str, Any]]:
    """Caches of one layer: what they are given, a prompt and then single tokens."""
    sizes = {"rows": 2, "heads": 3, "dim": 32, "dtype": "float32"}
    usual = {**sizes, "tokens": [40, 1, 1, 1, 1]}
    for kind, axis in KINDS.items():
        both = {"axis_key": axis, "axis_value": axis, **({"q_group_size": 6} if axis < 0 else {})}
        for options in ({}, {"nbits": 2}, both, {**both, "axis_value": 0, "nbits": 2 if axis < 0 else 4}):
            yield {"kind": kind, **usual, "options": {"residual_length": 3, "q_group_size": 16, **options}}
    yield {"kind": "quantized-quanto", **sizes, "dtype": "bfloat16", "tokens": [64, 1, 1], "options": {"residual_length": 2}}
    for bits in (1, 3, 8):
        yield {"kind": "quantized-hqq", **sizes, "tokens": [40, 1, 1], "options": {"residual_length": 2, "nbits": bits}}


def told(case: dict[str, Any]) -> str:
    """What tells an update from all others, in one line."""
    return json.dumps(case)


def run(case: dict[str, Any]) -> list[tuple[int, int]]:
    """Of each update on a CPU, as its profiler counts: (the highest point over where it began, what the cache holds then)."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function
    from transformers.cache_utils import HQQQuantizedLayer, QuantoQuantizedLayer

    layer = (QuantoQuantizedLayer if case["kind"] == "quantized-quanto" else HQQQuantizedLayer)(**case["options"])
    shapes = [(case["rows"], case["heads"], tokens, case["dim"]) for tokens in case["tokens"]]
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for shape in shapes:
            given = [torch.randn(shape).to(getattr(torch, case["dtype"])) for _ in range(2)]
            with record_function("update"):
                made = layer.update(*given)
            del given, made
            with record_function("held"):
                pass
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    at_work = [event for event in events if event.name() == "update"]
    after = [event.start_ns() for event in events if event.name() == "held"]
    memory = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return [
        (_top(memory, event.start_ns(), event.start_ns() + event.duration_ns()), sum(size for at, size in memory if at < then))
        for event, then in zip(at_work, after, strict=True)
    ]


def _top(memory: list[tuple[int, int]], start: int, end: int) -> int:
    live = top = 0
    for at, size in memory:
        if start <= at <= end:
            live += size
            top = max(top, live)
    return top


def recorded() -> dict[str, Any]:
    """By kind the forwards that were traced, by job; and the updates that were run, by case."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def main() -> None:
    """Trace and run all of them."""
    found: dict[str, Any] = {kind: {named(job): traced(job) for job in jobs(kind)} for kind in KINDS}
    found["updates"] = {told(case): run(case) for case in updates()}
    FILE.write_text(json.dumps(found, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
