"""Write docs/accuracy.md and the README's table of errors from the committed records, so that neither can drift from them.

python docs/accuracy.py           # write them
python docs/accuracy.py --check   # exit 1 if one is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

from memcalc.errors import InputError
from memcalc.formats.differences import SUMMARY_HEADER, counted, summary_body
from memcalc.formats.rows import as_markdown
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

The peak of the whole step is not modelled yet, so there is no error of it to show.
"""
NO_GPU = "No record of a GPU is committed yet. `benchmarks/campaign.sh` makes them; no number is shown until it has run."


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
