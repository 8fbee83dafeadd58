"""What tracing a training step costs: processor and wall seconds, memory, and what of it the tracker takes.

    python benchmarks/trace.py [--models gpt2 llama-3.1-8b …] [--runs 3] [--json]

Each model has a process of its own, in which a model of two layers was traced before, so that every import is done. ``first``
is the first trace there, which finds few shapes known; the others are medians of the runs. ``traced`` is all one waits for:
model, two iterations of the step, tape, replay, footprint. ``step`` is the same model and iterations on the same fake tensors
with nobody watching, and ``own`` that with PyTorch's shape rules in place of memcalc's. ``RSS`` is the highest above what the
process had before. The 405B shape comes with a quarter, half and all of its layers: seconds must grow as operators do.
Target: Llama-3.1-8B in 5 s and 0.8 GiB; ``traced`` at most twice ``step``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

MODELS = {"gpt2": 1024, "llama-3.1-8b": 2048, "llama-3.1-70b": 2048, "llama-3.1-405b": 2048}
"""Model to tokens of a sequence."""
QUARTERS = ("llama-3.1-405b/4", "llama-3.1-405b/2", "llama-3.1-405b")
"""The largest with a quarter, half and all of its layers."""


def job_of(model: str, layers: int | None = None) -> Any:
    """Its pure-bf16 AdamW step, with another number of layers where that is asked."""
    from memcalc.job import read_job
    from memcalc.readers.source import find_config

    name, _, part = model.partition("/")
    config = dict(find_config(name).config)  # type: ignore[union-attr]
    key = "n_layer" if "n_layer" in config or config["model_type"] == "gpt2" else "num_hidden_layers"
    if layers or part:
        config[key] = layers or int(config[key]) // int(part)
    return read_job(
        {
            "model": config,
            "micro_batch_size": 1,
            "sequence_length": MODELS[name],
            "precision": "bf16-pure",
            "optimizer": "adamw",
        }
    )


def untracked(job: Any) -> None:
    """The loop of a trace with nobody watching."""
    from memcalc.engines.trace.bridge import cuda_is_here
    from memcalc.engines.trace.kernels import Kernels
    from memcalc.engines.trace.loop import Asked, Loop
    from memcalc.engines.trace.machine import machine_of
    from memcalc.engines.trace.sites import Sites
    from memcalc.engines.trace.thrift import no_values, own_garbage
    from memcalc.engines.trace.tracker import Tracker
    from memcalc.plan import make_plan
    from memcalc.runtime.build import build
    from memcalc.runtime.losses import make_loss

    training = job.training
    asked = Asked(
        plan=make_plan(job), arguments={}, accumulation=1, max_norm=None, checkpointing=training.activation_checkpointing,
        loss=make_loss(None)[1],
    )  # fmt: skip
    machine = machine_of(job)
    with own_garbage(), cuda_is_here(machine) as mode:
        with no_values():
            built = build(job)
        loop = Loop(asked, Tracker(Sites(), Kernels(machine.behaviour)), mode)
        loop.build(built)
        loop.run()


@contextlib.contextmanager
def torchs_own() -> Iterator[None]:
    """Without memcalc's shape rules."""
    from memcalc.engines.trace.shapes import Rules

    answer = Rules.answer
    Rules.answer = lambda self, *call: self.ask(*call)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Rules.answer = answer  # type: ignore[method-assign]


def timed(work: Callable[[], Any], runs: int) -> tuple[float, float, Any]:
    """Processor and wall seconds, medians, and the last result."""
    cpu, wall, result = [], [], None
    for _ in range(runs):
        result = None
        began = time.process_time(), time.perf_counter()
        result = work()
        cpu.append(time.process_time() - began[0])
        wall.append(time.perf_counter() - began[1])
    return median(cpu), median(wall), result


def status(field: str) -> float:
    """MiB that Linux counts for this process, 0 where there is no such file."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    return 0.0


def one(model: str, runs: int) -> dict[str, Any]:
    """One model, in this process."""
    from memcalc.engines.trace.estimate import trace_job

    logging.disable()
    trace_job(job_of(model, layers=2))
    before, job = status("VmRSS"), job_of(model)
    first, _, _ = timed(lambda: trace_job(job), 1)
    cpu, wall, traced = timed(lambda: trace_job(job), runs)
    memory = status("VmHWM") - before
    step, _, _ = timed(lambda: untracked(job), runs)
    with torchs_own():
        own, _, _ = timed(lambda: untracked(job), 1)
    return {
        "model": model, "operators": sum(traced.operators.values()), "events": len(traced.tape), "first_cpu_s": round(first, 2),
        "cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "step_cpu_s": round(step, 2), "torchs_own_cpu_s": round(own, 2),
        "times_step": round(cpu / step, 2), "rss_mib": round(memory),
    }  # fmt: skip


def elsewhere(model: str, runs: int) -> dict[str, Any]:
    """One model, in a process of its own."""
    command = [sys.executable, __file__, "--one", model, "--runs", str(runs)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS, *QUARTERS[:-1]])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.runs)))
        return
    results = []
    if not options.json:
        print(
            f"{'':<18} {'operators':>9} {'events':>8} {'first':>7} {'traced':>7} {'wall':>7} {'step':>7} {'own':>7} {'RSS':>9}"
        )
    for model in options.models:
        found = elsewhere(model, options.runs)
        results.append(found)
        if not options.json:
            seconds = " ".join(
                f"{found[key]:>5.2f} s" for key in ("first_cpu_s", "cpu_s", "wall_s", "step_cpu_s", "torchs_own_cpu_s")
            )
            print(f"{model:<18} {found['operators']:>9,} {found['events']:>8,} {seconds} {found['rss_mib']:>5} MiB", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
