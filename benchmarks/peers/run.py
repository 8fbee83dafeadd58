"""Ask memcalc and its peers of the same published cases, each in a process of its own, and keep what they say.

    python -m benchmarks.peers.run --python hf-mem=ENV/bin/python --python accelerate=ENV/bin/python ...
    python -m benchmarks.peers.run --page          # docs/comparison.md from what is kept, nobody asked

No peer is a dependency: each runs under the interpreter that its flag gives, and one without a flag stays as it was kept.
memcalc and EleutherAI's formulas run under this one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.cases import case, chosen, job
from benchmarks.published.records import load
from memcalc.errors import InputError
from memcalc.records import dataclass

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
PAGE = ROOT / "docs" / "comparison.md"
REPEAT, COLD = 3, 3
"""Times a case is answered in process, the fastest counting, and cold processes that are timed, their median counting."""
TIMED = "litgpt-hub-tiny-llama-full"
"""The case whose cold process is timed: a Llama of 1.1 billion parameters, trained whole on one GPU, which every estimator of
training here takes. memcalc is asked for it as transformers has it."""
TIMED_ALONE = "hf-bertlarge-weights"
"""For a tool that knows weights alone."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A column of the comparison.

    Attributes:
        name: as it is called here.
        script: its adapter, with arguments.
        package: on PyPI; empty for what runs under this interpreter.
        answers: whether it is asked of every case, or only timed: what memcalc says is kept beside the published cases.
    """

    name: str
    script: tuple[str, ...]
    package: str = ""
    answers: bool = True


TOOLS = (
    Tool("memcalc trace", ("for_memcalc.py", "--trace"), answers=False),
    Tool("memcalc analytic", ("for_memcalc.py",), answers=False),
    Tool("hf-mem", ("for_hf_mem.py",), "hf-mem"),
    Tool("accelerate", ("for_accelerate.py",), "accelerate"),
    Tool("EleutherAI's formulas", ("for_eleutherai.py",)),
    Tool("llm-analysis", ("for_llm_analysis.py",), "llm-analysis"),
    Tool("fitcheck-llm", ("for_fitcheck.py",), "fitcheck-llm"),
    Tool("torch-kitsune", ("for_kitsune.py",), "torch-kitsune"),
    Tool("torch-kitsune, tokens", ("for_kitsune.py", "--tokens"), "torch-kitsune"),
)


def ask(tool: Tool, python: str, cases: list[dict[str, Any]], repeat: int = 1) -> dict[str, Any]:
    """What a tool says of cases, from a process of its own.

    Raises:
        InputError: an adapter that does not come to its end, which means that its interpreter lacks the tool.
    """
    path = HERE / "adapters" / tool.script[0]
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    if not tool.package:
        surroundings["PYTHONPATH"] = str(ROOT)
    told = subprocess.run(
        [python, str(path), *tool.script[1:]], input=json.dumps({"cases": cases, "repeat": repeat}), text=True,
        capture_output=True, check=False, env=surroundings, cwd=ROOT,
    )  # fmt: skip
    if told.returncode:
        last = (told.stderr.strip().splitlines() or ["no word"])[-1]
        path_of = f"--python {tool.package or tool.name}"
        raise InputError(path_of, python, f"its adapter ends with {last!r}", "install the tool there")
    answers: dict[str, Any] = json.loads(told.stdout)
    return answers


def cold(tool: Tool, python: str, one: dict[str, Any]) -> tuple[float, float]:
    """Seconds from nothing to one answer (the interpreter, the imports, the estimate), and the processor's share of them."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ask(tool, python, [one])
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def answers_of(tool: Tool, python: str, cases: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A tool's version and what it says of every case."""
    found = ask(tool, python, list(cases.values()) if tool.answers else [])
    for each in found["answers"]:
        each.pop("seconds", None)
    return {"version": found["version"], "answers": {each.pop("id"): each for each in found["answers"]}}


def times(asked: Mapping[str, tuple[Tool, str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Every tool's times, the tools taking turns, so that a busy moment of the machine falls on all."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    for _ in range(COLD):
        for name, (tool, python, one) in asked.items():
            rounds[name].append(cold(tool, python, one))
    told = {}
    for name, (tool, python, one) in asked.items():
        inside = ask(tool, python, [one], REPEAT)["answers"][0].get("seconds")
        told[name] = {
            "timed": one["id"], "cold_seconds": round(median(wall for wall, _ in rounds[name]), 3),
            "cold_cpu_seconds": round(median(cpu for _, cpu in rounds[name]), 3),
            "seconds": None if inside is None else float(f"{inside:.3g}"),
        }  # fmt: skip
    return told


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="PACKAGE=PATH", help="a peer's interpreter")
    parser.add_argument("--page", action="store_true", help="write the page from what is kept, and ask nobody")
    told = parser.parse_args(arguments)
    from benchmarks.peers.report import page

    records = load()
    kept: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"tools": {}}
    if not told.page:
        kept = _asked(records, dict(pair.split("=", 1) for pair in told.python), kept)
        RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(records, kept), encoding="utf-8")
    return 0


def _asked(records: list[Any], pythons: Mapping[str, str], kept: Mapping[str, Any]) -> dict[str, Any]:
    known = {tool.package for tool in TOOLS if tool.package}
    for name in set(pythons) - known:
        raise InputError("--python", name, "is no peer", f"use {', '.join(sorted(known))}")
    cases = {record.id: case(record) for record in chosen(records)}
    as_transformers = replace(next(record for record in records if record.id == TIMED), implementation="transformers")
    tools = {name: dict(one) for name, one in kept.get("tools", {}).items()}
    clock: dict[str, tuple[Tool, str, dict[str, Any]]] = {}
    for tool in TOOLS:
        python = pythons.get(tool.package) if tool.package else sys.executable
        if python is None:
            continue
        tools[tool.name] = answers_of(tool, python, cases)
        said = tools[tool.name]["answers"]
        print(f"{tool.name}: {sum('tensors' in one for one in said.values())} of {len(said)} answered", file=sys.stderr)
        if tool.package:
            timed = cases[TIMED if "tensors" in said[TIMED] else TIMED_ALONE]
        else:
            timed = {**cases[TIMED], "job": job(as_transformers, "trace" if "--trace" in tool.script else "analytic")}
        clock[tool.name] = (tool, python, timed)
    for name, told in times(clock).items():
        tools[name] |= told
    machine = {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()}
    return {"machine": machine, "tools": {tool.name: tools[tool.name] for tool in TOOLS if tool.name in tools}}


if __name__ == "__main__":
    sys.exit(main())
