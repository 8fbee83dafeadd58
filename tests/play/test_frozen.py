"""Frozen parts: the played step against traces of the same model, tensors by hand, and names that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.played.cases import BERT, CLASSIC, GEMMA3, ROTARY
from memcalc.api import estimate_mapping
from memcalc.errors import InputError
from tests.play.traced import record, require_traced

LLAMA = {"model_type": "llama", **ROTARY, "num_hidden_layers": 6}
MODELS = {
    "llama": (LLAMA, "embed_tokens", "layers"),
    "gpt2": ({"model_type": "gpt2", **CLASSIC, "n_embd": 96, "n_layer": 6, "n_head": 6, "n_positions": 300}, "wte", "h"),
    "gemma3_text": ({"model_type": "gemma3_text", **GEMMA3, "num_hidden_layers": 7}, "embed_tokens", "layers"),
    "bert": ({"model_type": "bert", **BERT}, "embeddings", "layer"),
}
RECORD = Path(__file__).with_name("frozen.json")
CASES: list[tuple[str, str, dict[str, Any]]] = [
    (model, what, more)
    for model in MODELS
    for what in ("{0}", "{0} {1}.0-1", "{1}.2 {1}.1", "{1}")
    for more in ({}, {"activation_checkpointing": "full"})
] + [("llama", "{0} {1}.0-1", {"precision": "amp-fp16"}), ("llama", "{0} {1}.0-1.mlp", {"activation_checkpointing": "every-2"})]


def job(model: str, what: str, more: dict[str, Any]) -> dict[str, Any]:
    """A small model of which ``what`` is frozen."""
    config, table, layers = MODELS[model]
    return {"model": config, "optimizer": "adamw", "precision": "bf16-pure", "micro_batch_size": 2, "sequence_length": 33,
            "attention": "eager", "freeze": what.format(table, layers).split(), **more}  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{model}-{what}-{more}" for model, what, more in CASES])
def test_a_step_with_frozen_parts_is_its_trace(number):
    """What is saved and left is the trace's to the byte, and both peaks within a thousandth."""
    require_traced(job(*CASES[number]), RECORD, number)


def test_what_is_frozen_has_neither_gradient_nor_state():
    """By hand: two of six layers and the embedding keep their parameters alone."""
    found = estimate_mapping(job("llama", "{0} {1}.0-1", {}))
    layer = 2 * 128 * 128 + 2 * 128 * 32 + 3 * 128 * 344 + 2 * 128
    trained = 4 * layer + 128 + 304 * 128
    assert found.model.num_trainable_parameters == trained
    assert found.components.gradients == 2 * trained
    assert found.optimizer_states == {"momentum": 2 * trained, "variance": 2 * trained}
    assert found.components.parameters == 2 * (trained + 2 * layer + 304 * 128)


def test_a_tied_head_is_frozen_with_its_table():
    """One parameter under two names is frozen by either."""
    tied = {**LLAMA, "tie_word_embeddings": True}
    counts = {
        name: estimate_mapping({**job("llama", "{0}", {}), "model": tied, "freeze": [name]}).components.gradients
        for name in ("embed_tokens", "lm_head")
    }
    assert counts["embed_tokens"] == counts["lm_head"]


def test_data_parallel_engines_know_it_too():
    """Under DeepSpeed's ZeRO frozen parameters are in no partition of states."""
    more = {"precision": "bf16", "dp": 4, "zero_stage": 2}
    whole = estimate_mapping({**job("llama", "{0}", more), "freeze": []})
    some = estimate_mapping(job("llama", "{1}.0-2", more))
    assert some.components.optimizer_states < 0.6 * whole.components.optimizer_states


REFUSED = [
    (["embed_token"], InputError, "training.freeze: embed_token is no module of"),
    (["layers.9"], InputError, "training.freeze: layers.9 asks for a place that is not there: layers has 6; use layers.0-5"),
    (
        ["layers.2-9"],
        InputError,
        "training.freeze: layers.2-9 asks for a place that is not there: layers has 6; use layers.0-5",
    ),
    (["layers.3-1"], InputError, "is a range that ends before it begins"),
    (["layers.*"], InputError, "is no module's name"),
    (["model", "lm_head"], InputError, "has no trainable parameter"),
]


@pytest.mark.parametrize(("names", "kind", "said"), REFUSED, ids=[str(names) for names, _, _ in REFUSED])
def test_names_that_cannot_be_are_refused(names, kind, said):
    """A name that holds no parameter, a place no list has, a range the wrong way round, a pattern, and all of a model."""
    asked = {**job("llama", "{0}", {}), "freeze": names}
    with pytest.raises(kind) as refused:
        estimate_mapping(asked)
    assert said in str(refused.value)


def test_adapters_and_sweeps_are_refused():
    """With adapters all else is frozen already; a sweep does not part its stacks."""
    from memcalc.sweep import run

    with pytest.raises(InputError, match="is frozen already"):
        estimate_mapping({**job("llama", "{0}", {}), "lora": {"r": 4}})
    swept = run({"base": {"model": LLAMA, "freeze": ["embed_tokens"]}, "grid": {"dp": [1, 2]}})
    assert all("training.freeze" in row["error"] and "is not swept yet" in row["error"] for row in swept)
    seeing = {"model": {"model_type": "vit"}, "freeze": ["embeddings"], "activation_checkpointing": "full", "optimizer": "sgd"}
    assert "of a model that sees" in " ".join(estimate_mapping(seeing).warnings)


def test_a_sharded_step_of_them_is_said_not_to_be_played():
    """Under FSDP2 states are exact, and the peak is unknown with its reason."""
    for key, value in (("freeze", ["embed_tokens"]), ("cross_entropy", "liger"), ("batch", "packed")):
        asked = {**job("llama", "{0}", {"dp": 4, "zero_stage": 3, "zero_backend": "fsdp2"}), "freeze": [], key: value}
        found = estimate_mapping(asked)
        assert found.peak.requested is None
        assert f"training.{key}: " in " ".join(found.warnings)


def test_flags_reach_the_job():
    """``--set training.freeze=[…]`` and its like are the job's keys."""
    from memcalc.cli.options import job_mapping

    words = ["training.freeze=[embed_tokens,layers.0-15]", "training.batch=packed", "hidden_size=64"]
    assert job_mapping("gpt2", sets=words) == {
        "freeze": ["embed_tokens", "layers.0-15"], "batch": "packed", "model": {"base": "gpt2", "hidden_size": 64},
    }  # fmt: skip


if __name__ == "__main__":
    record((job(*case) for case in CASES), RECORD)


def test_a_bare_size_has_no_modules_to_freeze():
    """The error says that a size was given, not that its one tensor is called otherwise."""
    said = r"training\.freeze: layers\.5 names a module, and a bare size has none; name a model, or leave it out"
    with pytest.raises(InputError, match=said):
        estimate_mapping({"model": {"params": 1_000_000}, "freeze": ["layers.5"]})
