"""Every so manieth layer recomputed, against traces; what no code is compiled for; and a job as QLoRA's authors run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.played.against import _steps, heights
from benchmarks.played.cases import BERT, CLASSIC, GEMMA3, ROTARY
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError

MODELS = {
    "llama": {"model_type": "llama", **ROTARY, "num_hidden_layers": 5},
    "gpt2": {"model_type": "gpt2", **CLASSIC, "n_embd": 96, "n_layer": 5, "n_head": 6, "n_positions": 300},
    "gemma3_text": {"model_type": "gemma3_text", **GEMMA3, "num_hidden_layers": 7},
    "bert": {"model_type": "bert", **BERT},
}
RECORD = Path(__file__).with_name("recomputed.json")
CASES: list[tuple[str, int, dict[str, Any]]] = [
    *((model, often, {}) for model in MODELS for often in (1, 2, 3)),
    ("llama", 2, {"lora": {"r": 4}}),
    ("llama", 2, {"precision": "amp-fp16", "gradient_accumulation_steps": 2}),
]


def job(model: str, often: int, more: dict[str, Any]) -> dict[str, Any]:
    """A small model, every ``often``-th of whose layers is recomputed."""
    return {"model": MODELS[model], "optimizer": "sgd", "precision": "bf16-pure", "micro_batch_size": 2, "sequence_length": 65,
            "attention": "eager", "activation_checkpointing": f"every-{often}", **more}  # fmt: skip


def record() -> None:
    """Trace every case anew (needs torch, transformers and peft): python -m tests.play.test_recomputed."""
    from memcalc.engines.trace.estimate import trace_job
    from memcalc.job import read_job

    found = []
    for case in CASES:
        one = heights(_steps(trace_job(read_job({**job(*case), "engine": "trace"})).tape, 2))
        found.append([one.top, one.net, one.saved])
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{model}-{often}-{more}" for model, often, more in CASES])
def test_every_so_manieth_layer_recomputed_is_its_trace(number):
    """What is saved and left is the trace's to the byte, and the highest point within a thousandth."""
    top, left, saved = json.loads(RECORD.read_text())[number]
    mine = heights(_steps(play_job(job(*CASES[number])).events, 2))
    assert (mine.net, mine.saved) == (left, saved)
    assert abs(mine.top - top) <= 0.001 * top


def test_so_many_layers_are_recomputed():
    """Of five layers every third is one, every second two, and every ninth none."""
    saved = {
        mode: heights(_steps(play_job({**job("llama", 1, {}), "activation_checkpointing": mode}).events, 2)).saved
        for mode in ("none", "every-2", "every-3", "every-9")
    }
    shared = 2 * 65 * 65 * 2 + 65 * 8  # mask and positions, which a recomputed layer keeps with its other arguments
    layer = saved["none"] + shared - saved["every-3"]
    assert saved["every-9"] == saved["none"]
    assert saved["every-2"] == saved["none"] + shared - 2 * layer


@pytest.mark.parametrize("asked", ["every-0", "every", "some", "every--2", "every-2.5"])
def test_another_word_is_refused(asked):
    """The error names the ways there are."""
    with pytest.raises(InputError, match="use none, selective, full, or every-2"):
        estimate_mapping({"model": "gpt2", "activation_checkpointing": asked})


def test_compiled_code_is_refused():
    """torch.compile keeps what its compiler decides: nothing is claimed of it."""
    with pytest.raises(NotModelledError, match=r"training\.compile: True lets a compiler decide"):
        estimate_mapping({"model": "gpt2", "compile": True})


def test_a_model_without_layers_in_a_list_is_said():
    """Albert runs one layer again and again: which turns were recomputed is not modelled."""
    found = estimate_mapping({"model": {"model_type": "albert"}, "optimizer": "sgd", "activation_checkpointing": "every-2"})
    assert found.peak.requested is None
    assert "training.activation_checkpointing: every-2 is not modelled" in " ".join(found.warnings)


def test_qlora_as_its_authors_run_it():
    """4 bits doubly quantised, adapters on every linear layer, paged AdamW: parameters by what they stand for, pages apart."""
    found = estimate_mapping(
        {"model": "llama-3.1-8b", "optimizer": "paged-adamw", "precision": "bf16-pure", "quantization": "nf4-double",
         "lora": {"r": 64, "target_modules": "all-linear"}, "sequence_length": 512, "activation_checkpointing": "full"},
    )  # fmt: skip
    # rows of 64: (in + out) of q, k, v, o, gate, up and down in each of 32 layers
    adapters = 32 * 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert found.model.num_trainable_parameters == adapters
    assert found.model.num_parameters == 8_030_261_248 + adapters
    # A of 64 × in and B of out × 64, of which all but k's and v's B (65 536) reach 100 000 elements
    small = 32 * 2 * 64 * 1024
    assert found.host["managed_optimizer_states"] == 8 * (adapters - small)
    assert found.optimizer_states == {"momentum": 4 * small, "variance": 4 * small}
    assert any("managed memory page" in each for each in found.assumptions)
    assert found.peak.allocated is not None
    # bitsandbytes: half a byte a weight; a byte for 64 of them; an FP32 number for 256 of those
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    halves = 2 * (8_030_261_248 - linear + adapters)
    assert found.components.parameters == linear // 2 + halves


if __name__ == "__main__":
    record()


def test_albert_is_told_the_one_way_it_has():
    """Its layer runs many times, and transformers refuses to recompute it: nothing but none is offered."""
    found = estimate_mapping({"model": "albert-base-v2", "activation_checkpointing": "every-1"})
    assert any(
        "every-1 is not modelled where one layer runs many times, as ALBERT's do; use none;" in w for w in found.warnings
    )
