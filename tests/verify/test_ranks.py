"""ZeRO-1 with real processes under gloo: each rank's bytes are those predicted for that rank, not for the fullest."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("torch", reason="ranks are real processes of torch's launcher")

from memcalc.measurement import measurement_from
from memcalc.verify.files import Models
from memcalc.verify.judge import FAILED, PASSED, judge
from memcalc.verify.tolerance import EXACT
from tests.launched import launched
from tests.verify.rank_worker import rank_of

from .conftest import EVEN, UNEVEN


def ranks_of(engine, config, world, folder):
    """Real ranks in processes of their own, and what each of them held."""
    held = launched(world, rank_of, engine, config, logs=folder / "logs")
    return [held[rank] for rank in range(world)]


def record(engine, config, ranks):
    return measurement_from({
        "case": f"zero1-{engine}", "status": "measured", "created": "2026-01-01T00:00:00Z",
        "environment": {"device": {"name": "a CPU", "kind": "cpu"}, "python": "3.11", "platform": "Linux", "memcalc": "0.1.0"},
        "request": {"model": {"name": "small", **config}, "training": {"optimizer": "torch:Adam", "precision": "fp32"},
                    "parallelism": {"dp": len(ranks), "zero_stage": 1, "zero_backend": engine}},
        "job": {}, "ranks": ranks,
    })  # fmt: skip


@pytest.mark.parametrize(("engine", "config"), [("torch", UNEVEN), ("deepspeed", EVEN)], ids=["torch", "deepspeed"])
def test_two_ranks_of_zero_1_match_to_the_byte(engine, config, tmp_path):
    """Two gloo ranks of ZeRO-1 hold exactly what is predicted for each: torch deals out whole tensors, DeepSpeed cuts evenly.

    DeepSpeed keeps the whole gradient of a tensor that a cut goes through, on both sides; here none does.
    """
    if find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    seen = ranks_of(engine, config, 2, tmp_path)
    verdict = judge(record(engine, config, seen), "live", EXACT, Models())
    assert (verdict.outcome, verdict.reason) == (PASSED, "every byte agrees")
    held = [{one.name: one.measured for one in rank.components} for rank in verdict.ranks]
    assert sum(one["optimizer_states"] for one in held) >= 2 * verdict.footprint.model.num_parameters * 4
    assert all(0 < one["optimizer_states"] < 2 * one["parameters"] for one in held), "no rank holds the states of all"
    alike = held[0] == held[1]
    assert alike == (engine == "deepspeed")
    swapped = [{**seen[0], "tensors": seen[1]["tensors"]}, {**seen[1], "tensors": seen[0]["tensors"]}]
    assert judge(record(engine, config, swapped), "live", EXACT, Models()).outcome == (PASSED if alike else FAILED)
