"""Selective checkpointing, held against traces: every result of a kept operator is kept, and none is made again."""

from __future__ import annotations

import pytest

from benchmarks.played.against import heights, played
from benchmarks.played.cases import MODELS

TRACED = {
    ("llama", "flash", "bf16-pure"): (2177592, 849152, 1520696),
    ("llama", "eager", "amp-bf16"): (4217608, 1698304, 2403336),
    ("gpt2", "auto", "bf16-pure"): (1952120, 563712, 1149752),
    ("gpt2", "efficient", "amp-bf16"): (3264776, 1127424, 1318664),
    ("mixtral", "auto", "bf16-pure"): (3656492, 1644288, 1622824),
}
"""benchmarks.played.against.traced of the jobs below, torch 2.13.0: the highest point, what is left, what is saved."""


@pytest.mark.parametrize(("family", "attention", "precision"), TRACED)
def test_a_selective_step_is_its_trace(family, attention, precision):
    """To the byte: attention keeps its log-sum-exp and random state too, which its backward asks for."""
    job = {"model": {**MODELS[family], "model_type": family}, "precision": precision, "micro_batch_size": 2,
           "sequence_length": 96, "activation_checkpointing": "selective", "attention": attention}  # fmt: skip
    mine = heights(played({**job, "optimizer": "sgd"}, unrolled=False))
    assert (mine.top, mine.net, mine.saved) == TRACED[family, attention, precision]
