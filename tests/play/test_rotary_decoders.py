"""Decoders with rotary positions: kinds of layer in turns, counts made by hand, arrays, normalisations beside torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcalc.engines.analytic.step import play_job, play_step
from memcalc.families._alternating import in_turns
from memcalc.families._kinds_forward import all_full, every, kinds_in, sliding_from
from memcalc.families.base import load_family
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.plan import make_plan
from memcalc.play.machine import Machine
from memcalc.play.normalised import NORMS
from memcalc.play.policy import Policy
from memcalc.play.values import Value
from memcalc.readers.config import build_model
from memcalc.tape.fold import fold, requested
from tests.play.test_step import saved, sizes

WIDTHS = {"hidden_size": 48, "intermediate_size": 112, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 99}
WINDOW = {"head_dim": 8, "sliding_window": 16}
SMALL: dict[str, dict[str, Any]] = {
    "mistral": {**WINDOW},
    "qwen2": {**WINDOW, "use_sliding_window": True, "max_window_layers": 5},
    "qwen3": {"head_dim": 8},
    "olmo": {"clip_qkv": 4.0},
    "olmo2": {},
    "olmo3": {**WINDOW},
    "stablelm": {"qk_layernorm": True, "hidden_dropout": 0.1},
    "starcoder2": {"residual_dropout": 0.1},
    "phi": {"resid_pdrop": 0.1, "qk_layernorm": True},
    "phi3": {"resid_pdrop": 0.1},
    "cohere": {"use_qk_norm": True},
    "gemma": {"head_dim": 8},
    "gemma2": {**WINDOW},
    "gemma3_text": {**WINDOW, "sliding_window_pattern": 3},
}


def job(family: str, layers: int = 4, **keys: Any) -> dict[str, Any]:
    """A small model of that family."""
    model = {"model_type": family, **WIDTHS, "num_hidden_layers": layers, **SMALL[family]}
    attention = "eager" if family == "gemma2" else "auto"
    asked = {"optimizer": "adamw", "micro_batch_size": 2, "sequence_length": 24, "precision": "bf16", "attention": attention}
    return {"model": model, **asked, **keys}


@pytest.mark.parametrize("family", SMALL)
def test_layers_counted_are_the_layers_played(family):
    """Each stretch as first, middle times n, last has the very events of all layers one by one, kinds in turns among them."""
    layers = {"gemma2": 9, "gemma3_text": 13, "olmo3": 17, "qwen2": 10}.get(family, 5)
    checkpointing = "full" if family in ("gemma2", "qwen2", "phi3", "cohere") else "none"
    asked = job(family, layers, activation_checkpointing=checkpointing, precision="amp-fp16")
    folded, whole = play_job(asked), play_job(asked, unrolled=True)
    assert sizes(folded.events) == sizes(whole.events)
    held = [sum(buffer.requested * times for buffer, times in played.gradients) for played in (folded, whole)]
    assert held[0] == held[1]


def test_orders_of_kinds_are_the_lists_that_transformers_makes():
    """Turns and what is left of them, written out, name the kind of each layer."""
    machine = Machine(Policy("float32"))
    for total in range(1, 15):
        for step in range(1, 6):
            listed = ["sliding_attention" if (place + 1) % step else "full_attention" for place in range(total)]
            assert written(every(machine, total, step)) == written(in_turns(listed)) == listed
            later = ["full_attention" if place < step else "sliding_attention" for place in range(total)]
            assert written(sliding_from(total, step)) == later
    assert kinds_in(machine, all_full(3)) == {"full_attention"}


def written(order: Any) -> list[str]:
    """Every layer's kind."""
    return [kind for turn, times in order for _ in range(times) for kind in turn]


def test_a_sliding_layer_keeps_more_than_a_full_one():
    """By hand, in BF16: what a layer of Gemma 3 saves for backward, under a window's mask and without one."""
    b, s, h, inner, heads, kv, d, rows = 2, 24, 48, 112, 6, 2, 8, 2 * 24
    # the FP32 input, 1/rms, the normalised and one plus the weight in FP32, the result; two of four results go into a product
    norm = 4 * rows * h + 4 * rows + 4 * rows * h + 4 * h
    norms = 4 * norm + 2 * 2 * rows * h
    turned = [4 * rows * n * d + 4 * rows * n + 4 * rows * n * d + 4 * d + 2 * rows * n * d for n in (heads, kv)]
    mlp = 4 * 2 * rows * inner
    assert kept("full_attention") == norms + sum(turned) + 2 * rows * kv * d + kernel(b, s, heads, d) + mlp
    # keys and values are repeated for every head, where there is a mask; their own are not kept
    keys = 2 * 2 * rows * (heads - kv) * d
    bias = 2 * b * s * s  # the mask as an additive one, written out for each row of the batch
    assert kept("sliding_attention") - kept("full_attention") == keys + bias


def kernel(b: int, s: int, heads: int, d: int) -> int:
    """cuDNN's: its result, logsumexp, seed and offset."""
    return 2 * b * s * heads * d + 4 * b * heads * s + 8 + 8


def kept(kind: str) -> int:
    """What one more layer of a kind keeps."""
    both = ["sliding_attention", "full_attention"]
    heights = [
        saved(play_job({**asked, "model": {**asked["model"], "layer_types": [*both, *[kind] * n], "num_hidden_layers": 2 + n}}))
        for asked in [job("gemma3_text")]
        for n in (0, 1)
    ]
    return heights[1] - heights[0]


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2", "stablelm", "phi3", "cohere"])
def test_arrays_of_jobs_are_each_job_alone(family):
    """Batches and lengths as int64 arrays give, element by element, the heights of each job alone."""
    asked = read_job(job(family, 7, activation_checkpointing="none"))
    known = load_family(family)
    model = build_model(
        known, known.config(**{**WIDTHS, "num_hidden_layers": 7, **SMALL[family]}), known.usual, name="", dtype=None
    )

    def heights(rows: Any, tokens: Any) -> Any:
        training = asked.training.model_copy(update={"micro_batch_size": rows, "sequence_length": tokens})
        played = play_step(asked.model_copy(update={"training": training}), make_plan(asked), model, known, Behaviour())
        folded = fold(played.events, requested).stretch
        return folded.top, folded.total

    points = [(2, 24), (3, 41), (5, 32)]
    top, total = heights(*(np.array(column, dtype=np.int64) for column in zip(*points, strict=True)))
    assert [(top[i], total[i]) for i in range(len(points))] == [heights(*point) for point in points]


@pytest.mark.parametrize("name", ["rms", "rms_float_scale", "rms_plus_one", "layer_float", "layer_composed"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_normalisation_saves_what_torch_saves(name, dtype):
    """The distinct memory that backward is kept is that of transformers' own module on the CPU, beside what was there."""
    torch = pytest.importorskip("torch")
    module = module_of(name, 16)
    module = module.to(getattr(torch, dtype)).train()
    value = torch.randn(2, 5, 16, dtype=getattr(torch, dtype), requires_grad=True)
    there = {value.data_ptr(), *(parameter.data_ptr() for parameter in module.parameters())}
    found: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        if tensor.data_ptr() not in there:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(value)
    found.pop(out.data_ptr(), None)
    assert played_norm(name, dtype) == sum(found.values())


def module_of(name: str, width: int) -> Any:
    """The module that a name stands for."""
    from transformers.models.cohere.modeling_cohere import CohereLayerNorm
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.olmo.modeling_olmo import OlmoLayerNorm
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    made = {"rms": LlamaRMSNorm, "rms_float_scale": Olmo2RMSNorm, "rms_plus_one": GemmaRMSNorm, "layer_float": OlmoLayerNorm}
    return made.get(name, CohereLayerNorm)(width)


def played_norm(name: str, dtype: str) -> int:
    """Bytes of what the machine saves, beside parameters, the input and the result."""
    machine = Machine(Policy(dtype))
    given: Value = machine.call("given", machine.parameter, "weight", (2, 5, 16), "other")
    weight = None if name == "layer_float" else machine.parameter("weight", (16,), "norm")
    out = NORMS[name](machine, given, weight, None)
    return sum(life.size for life in born(machine) if life.saved and life is not out.storage.life)


def born(machine: Machine) -> list[Any]:
    """Every life on the tape."""
    return [life for sign, life in machine.tape if sign == 1]
