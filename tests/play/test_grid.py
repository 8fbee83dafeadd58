"""Every family under every setting, played without torch and held against what its trace came to."""

from __future__ import annotations

import pytest

from benchmarks.played.against import heights, played
from benchmarks.played.cases import MODELS
from benchmarks.played.record import name_of, recorded, sliced
from tests.pairs import covering

RECORDED = recorded()
TOLERANCE = 0.001


@pytest.mark.parametrize("family", sorted(RECORDED))
def test_a_played_step_is_its_trace(family):
    """What is saved and what is left are the trace's to the byte, and the highest point within a thousandth.

    Every two of checkpointing, attention and precision meet in a job; ``python -m benchmarks.played`` is the whole grid.
    """
    known = RECORDED[family]
    assert known["model"] == MODELS[family], "record it anew: python -m benchmarks.played.record"
    # a trace is refused where a model decides by its tensors' values
    jobs = [job for job in sliced(family) if name_of(job) in known["heights"]]
    for place in covering([(job["precision"], job["attention"], job["activation_checkpointing"]) for job in jobs]):
        job = jobs[place]
        top, left, saved = known["heights"][name_of(job)]
        mine = heights(played(job, unrolled=False))
        assert (mine.saved, mine.net) == (saved, left), name_of(job)
        assert abs(mine.top - top) <= TOLERANCE * top, (name_of(job), mine.top, top)


def test_every_family_that_is_played_is_held_against_its_trace():
    """No family has a played step that no trace was recorded for."""
    from memcalc.families.base import known_families, load_family

    played_families = {name for name in known_families() if load_family(name).play is not None}
    assert {name.replace("-", "_") for name in RECORDED} >= played_families - UNTRACED


UNTRACED = {"torchvision_resnet", "torchvision_vit"}
"""Of torchvision, which cannot be installed beside the torch that the others are traced with."""
