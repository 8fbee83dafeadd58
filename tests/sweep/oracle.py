"""What a sweep's row must say: the single estimate of the same job, or its error."""

from __future__ import annotations

from memcalc.api import estimate_mapping
from memcalc.errors import MemcalcError
from memcalc.formats.rows import row as estimate_row
from memcalc.sweep import NAMES
from memcalc.sweep.columns import FIGURES


def expected(job: dict) -> dict:
    """The columns a single estimate fills: those of its own row, and what the footprint says of ranks and textbook."""
    try:
        footprint = estimate_mapping(job, allow_code=False, replayed=False)
    except MemcalcError as error:
        return {"error": str(error), **dict.fromkeys(FIGURES), "verdict": None, "headroom": None}
    ranks = footprint.job["parallelism"]
    return {
        **{name: value for name, value in estimate_row(footprint).items() if name in NAMES},
        "dp_shard": ranks["dp_shard"],
        "dp_replicate": ranks["dp_replicate"],
        "gradient_accumulation_steps": footprint.job["training"]["gradient_accumulation_steps"],
        "textbook_optimizer_states_per_rank": (footprint.textbook or {}).get("optimizer_states_per_rank"),
        "gpu": footprint.fits.gpu if footprint.fits else None,
        "error": None,
    }


def differences(sweep, rows) -> list:
    """(the job, column -> (single estimate, row)) of every row that does not say what its job's estimate says."""
    found = []
    for row in rows:
        job = sweep.job(row["index"])
        want = expected(job)
        if wrong := {name: (value, row[name]) for name, value in want.items() if row[name] != value}:
            found.append((job, wrong))
    return found
