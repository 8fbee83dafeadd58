"""Write docs/accuracy.md and the README's table of errors from the committed records, so that neither can drift from them.

python docs/accuracy.py           # write them
python docs/accuracy.py --check   # exit 1 if one is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

from memcalc.bounds import FEW, interval, recorded
from memcalc.device_total import device_total, running_range
from memcalc.devices_context import RUNNING
from memcalc.errors import InputError
from memcalc.formats.differences import SUMMARY_HEADER, counted, summary_body
from memcalc.formats.rows import as_markdown
from memcalc.units import MIB
from memcalc.verify.files import verify_records
from memcalc.verify.judge import PASSED, Verdict
from memcalc.verify.summary import summary

ROOT = Path(__file__).parents[1]
TARGET = Path(__file__).parent / "accuracy.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- accuracy: begin -->\n", "<!-- accuracy: end -->"
HEAD = """# Accuracy

Generated from the records in `measurements/` by `python docs/accuracy.py`; do not edit.

An error is that of what is kept from step to step (parameters, masters, buffers, gradients, optimizer states), measured less
predicted, in percent of what was measured, on the rank that differs most. *exact* counts the records in which no tensor differs
by a byte; *median*, *p90* and *worst* are of the sum of all tensors' differences, each without its sign, so that no two of them
cancel; *bias* is the mean with its sign. `memcalc verify measurements/` gives the same, record by record.

How far the peak of a whole step may be off is at the end of the page.
"""
NO_GPU = "No record of a GPU is committed yet. `benchmarks/campaign.sh` makes them; no number is shown until it has run."

BOUNDS = """## How far a peak may be off

`peak.low` and `peak.high` bound what a step allocates. They rest on runs that were both measured and predicted
(`memcalc/recorded.json`, which `python -m benchmarks.bounds` writes from `benchmarks/published/` and
`measurements/`): what counts is the ratio of measured to predicted, widened by what the published figure was rounded
by, and the bound is the smallest and the largest ratio of the same engine and family. A figure of a single digit
("about 4 GB") is left out, however well it was met: its rounding would be the bound. Of n ratios drawn alike, the
largest is above a share b of all with confidence 1 - b^n, whatever they are distributed like; the table gives b for
95 %. A family of fewer than {few} records says too little, and all of its engine's stand in for it; an engine of
fewer has no bound, and nothing is said to fit. `peak.low` is never below what is kept for good, which is known to the
byte.

{table}

What this is not: the runs are no random sample. Most are of one project's code (litgpt's), cluster by model, and are
without compilation; a step of other code is assumed to be predicted as well as theirs. Reserved peaks on record are
too few for a bound of them.

## What must fit on the device

A process holds what the allocator reserved, its CUDA context, the kernels it loaded, and what libraries allocate by
themselves, with NCCL's buffers where there are ranks. No formula gives the context, so `peak.device_low` and
`peak.device_high` are a range, each part a line with its source (`--explain`; `outside` in the JSON). It comes from
{n} processes that ran out of memory and said so ({least} to {most} MiB beside PyTorch's own;
`memcalc/devices_context.py`). By compute capability there are fewer than {few} of each, so the range of all stands
for every one: {share:.0%} of processes like these stay below its end, with 95 % confidence. NCCL's buffers are
computed from its source, at most.

## When a step fits

Reserved memory decides nothing by itself: where memory runs short the allocator gives its cached blocks back and asks
again before it fails. So:

- **does not fit**: the least the step allocates (`peak.low`) and the least context exceed the usable memory.
- **fits**: `peak.high` and the largest context stay within it, and the step can be played through the allocator's
  model, from its first allocation to the end of a steady iteration, in what that context leaves, divided by the
  factor of `peak.high`: a step that takes so much more than predicted in that much memory is the predicted one in so
  much less. Both orders in which a driver may lay out its segments have to go through, so that fragmentation is in
  it.
- **tight**: neither.
- **unknown**: no bound of the engine, no end of the context (a GPU that is not NVIDIA's, several nodes, a torch
  before 1.13), or no step to play.

`--headroom` is taken off the memory first."""


def bounds() -> str:
    """The sections on bounds, with what they rest on today."""
    body = []
    keys = {(one.engine, one.metric, one.family) for one in recorded()}
    for engine, metric in sorted({key[:2] for key in keys}):
        families = sorted(family for key in keys if key[:2] == (engine, metric) for family in key[2:])
        for family in ["all", *families]:
            mine = [one for one in recorded() if (one.engine, one.metric) == (engine, metric) and family in ("all", one.family)]
            ratios = [one.measured / one.predicted for one in mine]
            found = interval(engine, family, metric)
            used = "none" if found is None else f"{float(found.low):.3f} to {float(found.high):.3f}"
            rests = "" if found is None else f"{found.n}{' (pooled)' if found.pooled and family != 'all' else ''}"
            share = "" if found is None else f"{found.share:.0%}"
            body.append(
                [engine, metric, family, str(len(mine)), f"{min(ratios):.3f}", f"{max(ratios):.3f}", used, rests, share]
            )
    header = ["engine", "metric", "family", "n", "lowest", "highest", "bound", "of", "b"]
    ranges = [running_range(one) for one in RUNNING]
    high = device_total({}, 0).high
    assert high == max(last for _, last in ranges)
    return BOUNDS.format(
        few=FEW, table=as_markdown(header, body, right=range(3, 9)), n=len(RUNNING), share=0.05 ** (1 / len(RUNNING)),
        least=min(first for first, _ in ranges) // MIB, most=-(-high // MIB),
    )  # fmt: skip


def judged(folder: Path = ROOT / "measurements") -> list[Verdict]:
    """Every record, held against today's prediction; none where there are none."""
    try:
        return verify_records(folder)
    except InputError:
        return []


def page(folder: Path = ROOT / "measurements") -> str:
    """The whole page."""
    verdicts = judged(folder)
    parts = [HEAD.rstrip()]
    for kind, title, none in (("cpu", "On a CPU", "No record of a CPU is committed."), ("cuda", "On a GPU", NO_GPU)):
        mine = [verdict for verdict in verdicts if verdict.record and verdict.record.environment.device.kind == kind]
        parts += [f"## {title}", *(_section(mine) if mine else [none])]
    unread = [verdict for verdict in verdicts if verdict.record is None]
    if unread:
        parts.append("\n".join(f"- not read: {Path(verdict.source).name}: {verdict.reason}" for verdict in unread))
    parts.append(bounds())
    return "\n\n".join(parts) + "\n"


def _section(verdicts: list[Verdict]) -> list[str]:
    devices = sorted({verdict.record.environment.device.name for verdict in verdicts if verdict.record})
    parts = [f"{counted(verdicts)}. Devices: {', '.join(devices)}."]
    if rows := summary(verdicts):
        parts.append(as_markdown(SUMMARY_HEADER, summary_body(rows), right=range(2, 9)))
    bad = [[verdict.case, verdict.outcome, verdict.reason] for verdict in verdicts if verdict.outcome != PASSED]
    if bad:
        parts.append(as_markdown(["record", "outcome", "reason"], bad))
    return parts


def table(verdicts: list[Verdict]) -> str:
    """The README's table: a line for each kind of machine, empty for those nobody has measured on."""
    kinds: dict[str, list[Verdict]] = {
        "one process, CPU": [],
        "2 to 4 ranks, CPU (gloo)": [],
        "one GPU": [],
        "several GPUs": [],
    }
    names = list(kinds)
    for verdict in verdicts:
        if verdict.record is not None:
            on_gpu, several = verdict.record.environment.device.kind == "cuda", len(verdict.record.ranks) > 1
            kinds[names[2 * on_gpu + several]].append(verdict)
    body = []
    for kind, mine in kinds.items():
        rows = summary_body(summary(mine, ["all"]))
        body.append([kind, *(rows[0][2:] if rows else ["0", *["-"] * 6])])
    return as_markdown(["real steps", *SUMMARY_HEADER[2:]], body, right=range(1, 8))


def with_table(text: str, verdicts: list[Verdict]) -> str:
    """The README with its table as it is today."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table(verdicts)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    fresh = {TARGET: page(), README: with_table(README.read_text(), judged())}
    if "--check" in sys.argv[1:]:
        stale = [file.name for file, text in fresh.items() if not file.exists() or file.read_text() != text]
        sys.exit(f"{' and '.join(stale)}: stale, run python docs/accuracy.py" if stale else 0)
    for file, text in fresh.items():
        file.write_text(text)
