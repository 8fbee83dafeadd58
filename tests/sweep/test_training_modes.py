"""Rows of a sweep over ways to train are the single estimates of their jobs: sizes as arrays, each way a structure."""

from __future__ import annotations

import random

from memcalc.sweep import run
from tests.sweep.oracle import differences

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "vocab_size": 99,
         "num_hidden_layers": 4}  # fmt: skip
WIDE = {**LLAMA, "hidden_size": 96, "intermediate_size": 300}


def swept(grid: dict, **base) -> None:
    """Every row is its job's estimate."""
    made = run({"base": {"precision": "bf16-pure", **base}, "grid": grid})
    rows = list(made)
    assert any(row["error"] is None for row in rows)
    assert differences(made, random.Random(0).sample(rows, min(len(rows), 12))) == []


def test_losses_of_a_head(strict):
    """As many chunks as tokens and vocabulary ask for: jobs of different numbers of them are of different structure."""
    swept(
        {"model": [LLAMA, {**WIDE, "vocab_size": 1000}, {**LLAMA, "model_type": "mixtral", "num_local_experts": 2}],
         "cross_entropy": ["plain", "chunked", "liger", "cce"], "micro_batch_size": [1, 3], "sequence_length": [9, 65]},
        optimizer="sgd",
    )  # fmt: skip


def test_batches_that_are_no_whole_sequences(strict):
    """Masks of every size and window, for two families."""
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": 40}
    swept(
        {"model": [LLAMA, WIDE, mistral], "batch": ["full", "padded", "packed"], "micro_batch_size": [1, 3],
         "sequence_length": [9, 65]},
        optimizer="sgd",
    )  # fmt: skip


def test_updates_inside_backward(strict):
    """Under every size and optimizer; more than one micro-batch to a step is refused row by row."""
    swept(
        {"model": [LLAMA, WIDE], "optimizer": ["adamw", "lomo", "adalomo"], "micro_batch_size": [2, 3],
         "sequence_length": [8, 65], "gradient_accumulation_steps": [1, 2], "optimizer_in_backward": [False, True]},
    )  # fmt: skip
