"""What is kept never comes to more than the step that was played: over models, optimizers, precisions and ranks."""

from __future__ import annotations

from itertools import cycle

import pytest

from memcalc.api import estimate_mapping
from memcalc.catalog import shipped
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.errors import MemcalcError
from memcalc.families.base import known_families, load_family
from memcalc.job import read_job
from memcalc.models import Model
from memcalc.readers.config import model_from_config
from memcalc.readers.source import read_model
from memcalc.readers.yaml import load_yaml

OPTIMIZERS = (
    "adamw", "lomo-optim:AdaLomo", "came", "torch:SGD", "bitsandbytes:AdamW8bit", "lomo-optim:Lomo", "adafactor",
    "torch:Adagrad", "galore-torch:GaLoreAdamW", "muon-optimizer:SingleDeviceMuonWithAuxAdam", "torch:LBFGS",
)  # fmt: skip
WAYS = (
    {"precision": "amp-fp16", "gradient_accumulation_steps": 2}, {"precision": "bf16-pure"},
    {"precision": "amp-bf16", "gradient_accumulation_steps": 2, "activation_checkpointing": "full"}, {"precision": "fp16"},
    {"precision": "bf16-pure", "optimizer_in_backward": True}, {"precision": "fp32", "set_to_none": False},
    {"precision": "amp-bf16", "lora": {"r": 8, "target_modules": "all-linear"}, "gradient_accumulation_steps": 2},
    {"precision": "apex-o2", "gradient_accumulation_steps": 2}, {"precision": "apex-o2"},
)  # fmt: skip
RANKS = (
    {"dp": 4}, {"dp": 4, "zero_stage": 1, "zero_backend": "torch"}, {"dp": 4, "zero_stage": 1}, {"dp": 4, "zero_stage": 2},
    {"dp": 4, "zero_stage": 3}, {"dp": 4, "zero_stage": 3, "zero_backend": "fsdp2"},
)  # fmt: skip


def one_of_each() -> list[str]:
    """The first shipped model of every family and head."""
    found: dict[tuple[str, str], str] = {}
    for name, path in sorted(shipped("models").items()):
        config = load_yaml(path)
        found.setdefault((config["model_type"], str(config.get("architectures"))), name)
    return sorted(found.values())


NAMES = one_of_each()
GRID = dict(zip(NAMES, zip(cycle(WAYS), cycle(OPTIMIZERS), strict=False), strict=False))
"""Of each the way and the optimizer whose turn it is."""


def job_of(name: str, model: Model, **keys: object) -> dict[str, object]:
    """A short job of it, in which what is kept weighs most."""
    reads = {"sequence_length": 4} if "sequence_length" in load_family(model.family).inputs else {}
    return {"model": name, "micro_batch_size": 1, **reads, **keys}


def held(job: dict[str, object], model: Model) -> tuple[int, int | None]:
    """(what is kept at its highest, the step at its highest), in blocks; nothing of a job that cannot be."""
    try:
        found = estimate_whole(read_job(job), model, replayed=False).footprint
    except MemcalcError:
        return 0, None
    assert sum(found.states.at_peak.values()) == found.states.rounded
    return found.states.rounded, found.peak.rounded


@pytest.mark.parametrize("name", NAMES)
def test_no_family_keeps_more_than_its_step(name):
    """Of each family and head, under the way and the optimizer whose turn it is: what is kept is part of the step."""
    model, (way, optimizer) = read_model(name), GRID[name]
    kept, peak = held(job_of(name, model, **{"optimizer": optimizer, **way}), model)
    assert peak is None or kept <= peak, (way, optimizer)


@pytest.mark.parametrize(("name", "keys"), [
    ("gemma-2b", {"optimizer": "lomo-optim:AdaLomo", "precision": "bf16-pure"}),
    ("gemma-3-4b-pt", {"optimizer": "adamw", "precision": "bf16"}),
    ("deepseek-v2-lite", {"optimizer": "came", "precision": "amp-fp16", "gradient_accumulation_steps": 2}),
    ("falcon-rw-1b", {"optimizer": "sgd", "precision": "amp-bf16", "gradient_accumulation_steps": 2,
                      "activation_checkpointing": "full"}),
])  # fmt: skip
def test_steps_that_once_held_less(name, keys):
    """Steps inside backward, towers that do not run, experts that autocast leaves alone, and views that it casts anew."""
    model = read_model(name)
    kept, peak = held(job_of(name, model, **keys), model)
    assert peak is not None
    assert 0 < kept <= peak


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "smollm2-135m"])
def test_no_rank_keeps_more_than_its_step(name, ranks):
    """Whoever shards: also of a model a part of which gets no gradient."""
    model = read_model(name)
    for precision in ("fp32", "bf16-pure", "deepspeed-bf16"):
        kept, peak = held(job_of(name, model, optimizer="came", precision=precision, **ranks), model)
        assert peak is None or kept <= peak, precision


@pytest.mark.parametrize(("name", "optimizer"), [("gpt2", "lomo-optim:AdaLomo"), ("all-minilm-l6-v2", "adamw")])
def test_nothing_is_kept_beyond_what_the_allocator_counts(name, optimizer):
    """Played through the allocator, the step counts at least what is kept."""
    found = estimate_mapping(job_of(name, read_model(name), optimizer=optimizer, precision="bf16-pure"))
    assert found.states.rounded <= found.peak.rounded <= found.peak.allocated


TOLD = [name for name in known_families() if load_family(name).idle is not None or load_family(name).recast is not None]
UNPLAYED = "ViTForMaskedImageModeling"


@pytest.mark.parametrize("family", [*TOLD, "mixtral", "t5", "gpt_oss"])
def test_gradients_and_copies_are_those_of_the_played_step(family):
    """Of every head of a family that says what is idle or cast anew: a step knows it by having been played.

    So it does of stacked experts, which autocast leaves alone, and of a table that two sides share.
    """
    for head in load_family(family).architectures:
        model = model_from_config({"model_type": family, "architectures": [head]})
        job = read_job(job_of(family, model, precision="amp-bf16", optimizer="torch:SGD"))
        found = estimate_whole(job, model, replayed=False).footprint.components
        states = estimate_whole(job.model_copy(update={"scope": "states"}), model).footprint.components
        if head == UNPLAYED:
            continue
        assert found.parameter_copies == states.parameter_copies, head
        # a gradient that is cut out of a larger one keeps its memory to the step: ViT's positions
        assert states.gradients <= found.gradients < 1.01 * states.gradients, head
