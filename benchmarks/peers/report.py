"""docs/comparison.md: errors, times, and what each tool leaves out, from what is kept in results.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import mean, median
from typing import Any

from benchmarks.peers.cases import GROUPS, chosen, group
from benchmarks.peers.words import ANALYTIC, BEHAVIOUR, HEAD, REPRODUCE, TIMES, TOLD, TRACE
from benchmarks.published.predict import KEPT, KEPT_ANALYTIC, read_kept
from benchmarks.published.records import Record
from benchmarks.published.report import percent, signed
from benchmarks.published.scope import engine_of, why_not

PROCESS = ("reserved", "device")
"""Metrics that hold more than tensors: a tool's figure with its allowance for allocator and context is compared with these."""


def page(records: list[Record], kept: Mapping[str, Any]) -> str:
    """The whole page."""
    runs = chosen(records)
    told = predictions(runs, kept)
    parts = [
        HEAD.rstrip(),
        "## Errors",
        _errors(runs, told),
        "## Times",
        TIMES,
        _times(kept),
        "## What each says, and leaves out",
    ]
    parts += [_tools(kept), "## What was seen", BEHAVIOUR.strip(), "## Why cases have no answer", _reasons(runs, kept)]
    parts += ["## Case by case", CASES, _listed(runs, told), "## Again", REPRODUCE.strip()]
    return "\n\n".join(parts) + "\n"


CASES = "Errors in percent of what was measured; – where a tool has no answer."


def predictions(runs: list[Record], kept: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Tool, then run, to bytes: memcalc's as they are kept for the published runs in its engines' scope, then every tool's."""
    told = {TRACE: _own(runs, "trace"), ANALYTIC: _own(runs, "analytic")}
    for name, one in kept["tools"].items():
        if one["answers"]:
            told[name] = {
                run.id: int(answer["process" if run.metric in PROCESS else "tensors"])
                for run in runs
                if "tensors" in (answer := one["answers"].get(run.id, {}))
            }
    return told


def _own(runs: list[Record], engine: str) -> dict[str, int]:
    """An engine's predictions, those that stand in for something else left out; of a model alone the analytic engine's."""
    said = read_kept(KEPT if engine == "trace" else KEPT_ANALYTIC)
    return {
        run.id: int(said[run.id]["predicted"])
        for run in runs
        if said.get(run.id, {}).get("predicted") is not None and not why_not(run, engine) and engine_of(run, engine) == engine
    }


def error(run: Record, predicted: int) -> float:
    """As a share of what was measured."""
    return predicted / int(run.measured or 0) - 1


def _errors(runs: list[Record], told: Mapping[str, Mapping[str, int]]) -> str:
    parts = []
    for name in GROUPS:
        found = [run for run in runs if group(run) == name]
        lines = [
            f"### {name[0].upper()}{name[1:]}: {len(found)} runs", "",
            f"| tool | n | median | worst | bias | {TRACE} on the same runs: n | median |", "|---|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        lines += [row(tool, found, said, told[TRACE]) for tool, said in told.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def row(tool: str, runs: list[Record], said: Mapping[str, int], traced: Mapping[str, int]) -> str:
    """One tool's errors over the runs it has an answer for, and the trace's over those of them that it has one for too."""
    mine = [error(run, said[run.id]) for run in runs if run.id in said]
    if not mine:
        return f"| {tool} | 0 | – | – | – | | |"
    sizes = [abs(one) for one in mine]
    other = [abs(error(run, traced[run.id])) for run in runs if run.id in said and run.id in traced]
    beside = f"{len(other)} | {percent(median(other))}" if other and tool != TRACE else " | "
    return f"| {tool} | {len(mine)} | {percent(median(sizes))} | {percent(max(sizes))} | {signed(mean(mine))} | {beside} |"


def _times(kept: Mapping[str, Any]) -> str:
    lines = [
        "| tool | cold process: processor, s | cold process: wall, s | in process: processor, ms | case |",
        "|---|--:|--:|--:|---|",
    ]
    for name, one in kept["tools"].items():
        inside = "–" if one["seconds"] is None else _milliseconds(one["seconds"])
        lines.append(f"| {name} | {one['cold_cpu_seconds']:.2f} | {one['cold_seconds']:.2f} | {inside} | {one['timed']} |")
    machine = kept["machine"]
    return "\n".join([*lines, "", f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}."])


def _milliseconds(seconds: float) -> str:
    """To three digits, as 3,870 or 0.00645."""
    told = 1000 * seconds
    return f"{told:,.0f}" if told >= 100 else f"{told:.3g}"


def _tools(kept: Mapping[str, Any]) -> str:
    lines = ["| tool | version | what it estimates | how it is asked here | what it leaves out |", "|---|---|---|---|---|"]
    for name, (claims, how, out) in TOLD.items():
        number = kept["tools"].get(name, {}).get("version") or "–"
        lines.append(f"| {name} | {number} | {claims} | {how} | {out} |")
    return "\n".join(lines)


def _reasons(runs: list[Record], kept: Mapping[str, Any]) -> str:
    lines = ["| tool | reason | runs |", "|---|---|--:|"]
    told: dict[str, list[str]] = {TRACE: _own_reasons(runs, "trace"), ANALYTIC: _own_reasons(runs, "analytic")}
    for name, one in kept["tools"].items():
        answers = [one["answers"].get(run.id, {"reason": "not asked yet"}) for run in runs if one["answers"]]
        told.setdefault(name, []).extend(each["reason"].partition(": 'case/")[0] for each in answers if "reason" in each)
    for name, reasons in told.items():
        counts = sorted(Counter(reasons).items(), key=lambda one: (-one[1], one[0]))
        lines += [f"| {name} | {reason} | {count} |" for reason, count in counts]
    return "\n".join(lines)


def _own_reasons(runs: list[Record], engine: str) -> list[str]:
    """Why an engine is not asked, by feature, or that it leaves null what it is asked."""
    mine = [run for run in runs if engine_of(run, engine) == engine]
    answered = _own(runs, engine)
    found = [run for run in mine if run.id not in answered]
    return [", ".join(sorted({reason.feature for reason in why_not(run, engine)})) or "not modelled yet" for run in found]


def _listed(runs: list[Record], told: Mapping[str, Mapping[str, int]]) -> str:
    lines = ["| run | metric | measured | " + " | ".join(told) + " |", "|---|---|--:|" + "--:|" * len(told)]
    for run in runs:
        cells = [f"{100 * error(run, said[run.id]):+.1f}" if run.id in said else "–" for said in told.values()]
        lines.append(f"| {run.id} | {run.metric} | {int(run.measured or 0) / 1e9:.3f} GB | {' | '.join(cells)} |")
    return "\n".join(lines)
