"""Mixtures of experts: counts made by hand, layers counted or played one by one, arrays, operators beside torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcalc.engines.analytic.step import play_job, play_step
from memcalc.errors import NotModelledError
from memcalc.families.base import load_family
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.plan import make_plan
from memcalc.play.graph import Engine
from memcalc.play.grouped import grouped_mm
from memcalc.play.machine import Machine
from memcalc.play.policy import Policy
from memcalc.play.reduce import sum_all
from memcalc.play.reshape import transpose
from memcalc.readers.config import build_model
from memcalc.tape.fold import fold, requested
from tests.play.test_step import saved, sizes

WIDTHS = {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
QWEN = {**WIDTHS, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3}
LATENT = {**WIDTHS, "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3,
          "first_k_dense_replace": 1, "n_shared_experts": 2, "n_group": 4, "topk_group": 2, "q_lora_rank": 40,
          "kv_lora_rank": 24, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 24}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "mixtral": {**WIDTHS, "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3_moe": {**QWEN, "head_dim": 16, "norm_topk_prob": True},
    "qwen2_moe": {**QWEN, "shared_expert_intermediate_size": 56, "decoder_sparse_step": 2},
    "gpt_oss": {**WIDTHS, "head_dim": 16, "num_local_experts": 5, "sliding_window": 16},
    "deepseek_v3": LATENT,
    "deepseek_v2": {**LATENT, "topk_method": "group_limited_greedy"},
}


def job(family: str, layers: int = 5, **keys: Any) -> dict[str, Any]:
    """A small model of that family."""
    model = {"model_type": family, "num_hidden_layers": layers, **SMALL[family], **keys.pop("model", {})}
    return {"model": model, "optimizer": "adamw", "micro_batch_size": 2, "sequence_length": 24, "precision": "bf16", **keys}


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("family", SMALL)
def test_layers_counted_are_the_layers_played(family, checkpointing):
    """First, middle times n, last have the very events of all layers one by one, dense and sparse ones among them."""
    asked = job(family, layers=9, activation_checkpointing=checkpointing)
    assert sizes(play_job(asked).events) == sizes(play_job(asked, unrolled=True).events)


def test_a_mixtral_layer_keeps_what_its_formula_says():
    """By hand, in BF16: what one layer of Mixtral saves for backward, tensor by tensor."""
    tokens, h, width, experts, top = 2 * 24, 48, 40, 5, 2
    norms = 2 * (4 * h + 4 + 2 * h + 2 * h)  # the FP32 copy, 1/root, the cast back, what comes out
    attention = 2 * (64 + 32 + 32) + 2 * 64 + 4 * 4  # queries, keys, values, what the kernel gave, logsumexp of 4 heads
    router = 4 * experts + top * 8 + 4 + 4 * top  # shares, numbers of the best, their sum, a copy of them before it divides
    rows = top * (8 + 8 + 8 + 4)  # order, the tokens' numbers, the way back, weights by expert
    # rows, gate and up, the gate's silu, what goes down, what comes out
    products = top * 2 * (h + 2 * width + width + width + h)
    fixed = 16 + 8 + 4 * experts  # seed, offset, where each expert's rows end
    two, three = (play_job(job("mixtral", layers, attention="flash")) for layers in (2, 3))
    assert saved(three) - saved(two) == tokens * (norms + attention + router + rows + products) + fixed


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_arrays_of_jobs_are_each_job_alone(family):
    """Batches and lengths as int64 arrays give, element by element, the folded heights of each job alone."""
    asked = read_job(job(family))
    loaded = load_family(family)
    config = loaded.config.model_validate({key: value for key, value in job(family)["model"].items() if key != "model_type"})

    def heights(rows: Any, tokens: Any) -> Any:
        model = build_model(loaded, config, loaded.usual, name="", dtype=None)
        training = asked.training.model_copy(update={"micro_batch_size": rows, "sequence_length": tokens})
        played = play_step(asked.model_copy(update={"training": training}), make_plan(asked), model, loaded, Behaviour())
        folded = fold(played.events, requested).stretch
        return folded.top, folded.total

    points = [(2, 24), (3, 16), (40, 72)]  # the last has more rows than are sorted in place
    top, total = heights(*(np.array(column, dtype=np.int64) for column in zip(*points, strict=True)))
    for place, point in enumerate(points):
        assert (top[place], total[place]) == heights(*point)


@pytest.mark.parametrize("key", [{"expert_layout": "separate"}, {"output_router_logits": True}, {"router_jitter_noise": 0.1}])
def test_what_is_not_modelled_is_refused(key):
    """Experts of their own, the routers' loss and noise are refused, not left out."""
    with pytest.raises(NotModelledError):
        play_job(job("mixtral", model=key))


def test_rows_of_grouped_products_are_padded_and_gradients_copied():
    """By hand: rows of 20 BF16 numbers lie 24 apart; a gradient in such rows is copied to lie as its parameter does."""
    machine = Machine(Policy("bfloat16"))
    matrices = machine.parameter("matrices", (3, 16, 20), "expert")
    rows = machine.parameter("rows", (10, 20), "other")
    out = grouped_mm(machine, rows, transpose(machine, matrices, 1, 2), machine.new((3,), "int32", "cumsum"))
    assert out.shape == (10, 16)
    assert out.contiguous
    Engine(machine).run(sum_all(machine, out))
    born = [life.size for sign, life in machine.tape if sign == 1 and life.operator == "_grouped_mm"]
    assert born == [10 * 16 * 2, (3 * 16 * 24 - 4) * 2, (10 * 24 - 4) * 2]  # the result, gradients of matrices, of rows
    copied = [life.size for sign, life in machine.tape if sign == 1 and life.operator == "clone"]
    assert sorted(copied) == [10 * 20 * 2, 3 * 16 * 20 * 2]
