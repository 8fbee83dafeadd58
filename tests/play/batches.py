"""Batches and lengths as arrays, played once, against each job played alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from memcalc.engines.analytic.step import play_step
from memcalc.families.base import load_family
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.plan import make_plan
from memcalc.readers.config import build_model
from memcalc.tape.fold import fold, requested

POINTS = [(2, 24), (3, 16), (7, 72)]
"""Rows and tokens."""


def check_arrays(mapping: dict[str, Any], **keys: Any) -> None:
    """Highest point and what is left are the same, element by element; ``keys`` are more of the config."""
    asked, family = read_job(mapping), load_family(mapping["model"]["model_type"])
    config = family.config.model_validate({**mapping["model"], **keys})

    def folded(rows: Any, tokens: Any) -> Any:
        model = build_model(family, config, family.usual, name="", dtype=None)
        training = asked.training.model_copy(update={"micro_batch_size": rows, "sequence_length": tokens})
        step = play_step(asked.model_copy(update={"training": training}), make_plan(asked), model, family, Behaviour())
        found = fold(step.events, requested).stretch
        return found.top, found.total

    top, total = folded(*(np.array(column, dtype=np.int64) for column in zip(*POINTS, strict=True)))
    for place, point in enumerate(POINTS):
        assert (top[place], total[place]) == folded(*point)
