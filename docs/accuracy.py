"""Write docs/accuracy.md from the committed records, so that the table of errors and the records cannot drift.

python docs/accuracy.py           # write it
python docs/accuracy.py --check   # exit 1 if it is stale
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
HEAD = """# Accuracy

Generated from the records in `measurements/` by `python docs/accuracy.py`; do not edit.

An error is that of what is kept from step to step (parameters, masters, buffers, gradients, optimizer states), measured less
predicted, in percent of what was measured, on the rank that differs most. *exact* counts the records in which no tensor differs
by a byte; *median*, *p90* and *worst* are of the sum of all tensors' differences, each without its sign, so that no two of them
cancel; *bias* is the mean with its sign. `memcalc verify measurements/` gives the same, record by record.

The peak of the whole step is not modelled yet, so there is no error of it to show.
"""
NO_GPU = "No record of a GPU is committed yet. `benchmarks/campaign.sh` makes them; no number is shown until it has run."


def page(folder: Path = ROOT / "measurements") -> str:
    """The whole page."""
    try:
        verdicts = verify_records(folder)
    except InputError:
        verdicts = []
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


if __name__ == "__main__":
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if TARGET.exists() and TARGET.read_text() == text else f"{TARGET} is stale: run python docs/accuracy.py")
    TARGET.write_text(text)
