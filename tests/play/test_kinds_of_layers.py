"""Models whose layers are of several kinds, in stretches: what is frozen, adapted or updated there is found by its name."""

from __future__ import annotations

import pytest

from memcalc.api import estimate_mapping

SIDES = {
    "t5-small": ["q", "v"], "mt5-small": ["q", "v"], "bart-base": ["q_proj", "v_proj"], "whisper-tiny": ["q_proj", "v_proj"],
}  # fmt: skip
MODELS = ("qwen2.5-0.5b", "qwen3-0.6b", "gemma-3-1b-pt", "gemma-2-2b", "llama-3.2-1b", "gpt2")
JOB = {"precision": "bf16-pure", "micro_batch_size": 1, "sequence_length": 64}


@pytest.mark.parametrize("model", MODELS)
def test_adapters_alone_have_gradients(model):
    """Under LoRA two bytes of gradient for each number of an adapter, and none for what is frozen."""
    found = estimate_mapping({**JOB, "model": model, "optimizer": "sgd", "lora": {"r": 4}}, replayed=False)
    assert found.components.gradients == 2 * found.model.num_trainable_parameters < 10**7


@pytest.mark.parametrize("model", MODELS)
def test_what_is_frozen_has_none(model):
    """With the body frozen and the head its own, the head's gradient is all there is; tied, the embedding's is the body's."""
    body = "transformer" if model == "gpt2" else "model"
    layers = {"freeze": [f"{body}.h" if model == "gpt2" else f"{body}.layers"]}
    found = estimate_mapping({**JOB, **layers, "model": model, "optimizer": "sgd"}, replayed=False)
    assert found.components.gradients == 2 * found.model.num_trainable_parameters


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("keys", [{"optimizer": "lomo"}, {"optimizer": "adamw", "optimizer_in_backward": True}])
def test_every_parameter_is_updated_inside_backward(model, keys):
    """A step is played for each parameter of every kind of layer, and gradients never stand together."""
    found = estimate_mapping({**JOB, **keys, "model": model}, replayed=False)
    assert found.peak.rounded > 2 * found.model.num_parameters
    assert found.components.gradients < 2 * found.model.num_parameters / 1.5


@pytest.mark.parametrize("model", SIDES)
def test_adapters_alone_have_gradients_on_both_sides(model):
    """Attention across sides is adapted as that within one, whose numbers inside a layer are places in a list too."""
    job = {**JOB, "model": model, "optimizer": "sgd", "lora": {"r": 4, "target_modules": SIDES[model]}}
    found = estimate_mapping(job, replayed=False)
    assert found.components.gradients == 2 * found.model.num_trainable_parameters < 10**7
    packed = estimate_mapping({**job, "quantization": "nf4"}, replayed=False)
    assert packed.components.gradients == found.components.gradients
    assert packed.peak.rounded < found.peak.rounded
    for ways in ({"dp": 8, "zero_stage": 1}, {"dp": 8, "zero_stage": 2}, {"optimizer_in_backward": True}):
        spread = estimate_mapping({**job, **ways}, replayed=False)
        assert spread.states.rounded <= spread.peak.rounded, ways
