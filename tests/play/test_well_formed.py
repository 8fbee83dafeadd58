"""A played tape, written out turn by turn, frees only what is alive: also where layers that are repeated hand something on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.played.cases import MODELS, NOT_CHECKPOINTED
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import play_job
from memcalc.families.base import load_family
from memcalc.tape.events import Alloc, Free
from memcalc.tape.unroll import unroll

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
DEEP = 6
"""Layers, of which those between the first and the last are played once."""
BY_KIND = {"gpt_neo", "qwen2", "gpt_oss", "deepseek_v2", "deepseek_v3"}
"""Families whose other keys say which layer is of which kind."""


def job(family: str, checkpointing: str) -> dict[str, Any]:
    """A small model of it, deep enough for layers to be repeated."""
    deeper = {} if family in BY_KIND else {key: DEEP for key in DEPTHS if key in MODELS[family]}
    model = {"model_type": load_family(family).model_type, **MODELS[family], **deeper}
    reads = {"sequence_length": 16} if "sequence_length" in load_family(family).inputs else {}
    return {"model": model, "optimizer": "torch:SGD", "precision": "bf16-pure", "micro_batch_size": 2, **reads,
            "activation_checkpointing": checkpointing}  # fmt: skip


@pytest.mark.parametrize("family", MODELS)
def test_nothing_is_freed_that_is_not_alive(family):
    """T5's gradients of its position biases are added to by every layer: each turn lets go of the one before it."""
    for checkpointing in ("none",) if family in NOT_CHECKPOINTED else ("none", "full"):
        alive: Counter[int] = Counter()
        for event in unroll(play_job(job(family, checkpointing)).events):
            if isinstance(event, Alloc):
                alive[id(event.buffer)] += 1
            elif isinstance(event, Free):
                alive[id(event.buffer)] -= 1
                assert alive[id(event.buffer)] >= 0, (checkpointing, event.buffer.site)


@pytest.mark.parametrize(("checkpointing", "traced"), [
    ("none", (74_175_236, 74_189_824, 74_189_824, 75_497_472)), ("full", (70_136_964, 70_157_312, 70_157_312, 71_303_168)),
])  # fmt: skip
def test_a_deep_t5_is_its_trace(checkpointing, traced):
    """Recorded with engine trace: requested, rounded, allocated and reserved at the peak, to the byte."""
    model = {"model_type": "t5", "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 6, "num_decoder_layers": 6,
             "num_heads": 4, "vocab_size": 256}  # fmt: skip
    asked = {**job("t5", checkpointing), "model": model, "optimizer": "sgd", "sequence_length": 64}
    peak = estimate_mapping(asked).peak
    assert (peak.requested, peak.rounded, peak.allocated, peak.reserved) == traced
