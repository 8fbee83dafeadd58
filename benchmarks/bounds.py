"""Write memcalc/recorded.json: every published step that was predicted, and every recorded one, beside what was measured.

python -m benchmarks.bounds           # write it
python -m benchmarks.bounds --check   # exit 1 if it is stale

A published run counts where the committed rule (benchmarks/published/scope.py) asks for it: a whole training step, whose
allocated or reserved peak was measured. A record of ``measurements/`` counts where it is of a GPU and its peak was predicted by
``verify``'s engine; there is none yet. A figure of a single digit ("about 4 GB") says more of how it was rounded than of a
prediction, and does not count. Nothing here is chosen by how a prediction came out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.published.predict import KEPT, KEPT_ANALYTIC, read_kept
from benchmarks.published.records import Record, load
from benchmarks.published.scope import why_not
from memcalc.bounds import FILE
from memcalc.engines.analytic.estimate import estimate_job
from memcalc.errors import MemcalcError
from memcalc.footprint import Footprint
from memcalc.job import read_job
from memcalc.measurement import Measurement
from memcalc.measurement_files import read_measurement, records_in
from memcalc.readers.source import read_model

METRICS = ("allocated", "reserved")
COLUMNS = ("id", "engine", "family", "implementation", "metric", "predicted", "measured", "halfwidth")
DIGITS = 20
"""A figure of two digits is rounded by a twentieth at most: 10 is 9.5 to 10.5."""
MEASUREMENTS = Path(__file__).parents[1] / "measurements"


def published() -> Iterator[list[Any]]:
    """A row for each published step in an engine's scope that it has a prediction of."""
    for engine, file in (("trace", KEPT), ("analytic", KEPT_ANALYTIC)):
        kept = read_kept(file)
        for record in load():
            told = kept.get(record.id, {})
            asked = record.kind == "train_step" and record.metric in METRICS and not why_not(record, engine)
            if asked and _said_closely(record) and told.get("predicted") is not None:
                yield [
                    record.id, told["engine"], family_of(record), record.implementation, record.metric, told["predicted"],
                    record.measured, record.halfwidth,
                ]  # fmt: skip


def _said_closely(record: Record) -> bool:
    """Whether a figure was published to two digits or more."""
    return record.measured is not None and record.halfwidth * DIGITS <= record.measured


def family_of(record: Record) -> str:
    """The architecture as the record names it."""
    return str(record.raw["model"].get("arch", "?"))


def measured(folder: Path = MEASUREMENTS) -> Iterator[list[Any]]:
    """A row for each peak of a recorded step on a GPU, of one rank, that the analytic engine predicts."""
    for file in records_in(folder):
        record = read_measurement(file)
        if record.environment.device.kind != "cuda" or record.status != "measured" or len(record.ranks) != 1:
            continue
        footprint = _predicted(record)
        if footprint is None:
            continue
        steady = [phase for iteration in record.ranks[0].iterations[1:] for phase in iteration.phases]
        for metric in METRICS:
            predicted = getattr(footprint.peak, metric)
            seen = max((getattr(phase.peak, metric) or 0 for phase in steady), default=0)
            if predicted and seen:
                yield [record.case, footprint.engine, footprint.model.family, "transformers", metric, predicted, seen, 0]


def _predicted(record: Measurement) -> Footprint | None:
    try:
        job = read_job(record.request)
        return estimate_job(job, read_model(job.model))
    except MemcalcError:
        return None


def text() -> str:
    """The file: a heading, and a row a run."""
    rows = [*published(), *measured()]
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    source = "written by python -m benchmarks.bounds from benchmarks/published/ and measurements/; do not edit"
    return f'{{\n "source": {json.dumps(source)},\n "columns": {json.dumps(COLUMNS)},\n "rows": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    fresh = text()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if FILE.exists() and FILE.read_text() == fresh else f"{FILE.name}: stale, run python -m benchmarks.bounds")
    FILE.write_text(fresh)
