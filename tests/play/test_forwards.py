"""Forwards without gradients: held against traces, against counts by hand and real caches, and what cannot be asked."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from benchmarks.played.cases import MODELS
from benchmarks.played.forwards import height, jobs, name_of, recorded
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.engines.analytic.evaluating import play_job, tape_of
from memcalc.engines.analytic.many import peaks
from memcalc.errors import InputError, MemcalcError, NotModelledError
from memcalc.families.base import known_families, load_family
from memcalc.job import read_job
from memcalc.readers.source import read_model

RECORDED = recorded()
LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 5, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 99}  # fmt: skip
CLASSIC = {"opt": "num_hidden_layers", "bloom": "n_layer", "falcon": "num_hidden_layers", "gptj": "n_layer",
           "gpt_neo": "num_layers", "mpt": "n_layers"}  # fmt: skip
"""Decoders before llama, each with its word for how many layers there are."""
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
WHOLE = {"llama", "mistral", "gemma3_text", "deepseek_v3", "gpt_bigcode", "t5"}
"""Families of which every recorded forward is played; of the others an evaluation, a prefill and a step of decoding."""
LIKE = {"mistral": {"sliding_window": 40}, "gemma2": {"sliding_window": 40, "head_dim": 16}}


def job(mode: str, **keys: Any) -> dict[str, Any]:
    """A small llama at work."""
    return {"model": LLAMA, "mode": mode, "precision": "bf16", "micro_batch_size": 2, **keys}


def held(mapping: dict[str, Any]) -> tuple[int, int]:
    """What its forward comes to, and what its cache holds in the end."""
    return height(tape_of((), play_job(mapping)))


@pytest.mark.parametrize("family", sorted(RECORDED))
def test_a_played_forward_is_its_trace(family):
    """The cache is the trace's to the byte, the height within a thousandth, what the allocator counts within a hundredth."""
    known = RECORDED[family]
    assert known["model"] == MODELS[family], "record it anew: python -m benchmarks.played.forwards"
    for one in list(jobs(family))[: None if family in WHOLE else 3]:
        whole, seen = estimate_whole(read_job(one), read_model(one["model"])), known["forwards"][name_of(one)]
        found, (top, _) = whole.footprint, height(whole.tape)
        assert found.components.cache == seen["cache"], name_of(one)
        assert abs(top - seen["top"]) <= 0.001 * seen["top"], (name_of(one), top, seen["top"])
        beside = found.components.workspace
        assert found.peak.allocated == pytest.approx(seen["allocated"], abs=0.01 * (seen["allocated"] - beside)), name_of(one)


def test_every_family_with_a_cache_is_held_against_its_trace():
    """No family keeps keys and values without a recorded trace of them."""
    assert set(RECORDED) >= {name for name in known_families() if load_family(name).caches}


def test_a_step_of_decoding_by_hand():
    """A dynamic cache grows layer by layer: all that is new and, of the last layer's values, what was there before."""
    layers, rows, heads, dim, context = 5, 2, 2, 16, 300
    token = 2 * rows * heads * dim
    found = estimate_mapping(job("decode", context_length=context))
    assert found.components.cache == 2 * layers * (context + 1) * token + context * token
    assert held(job("decode", context_length=context))[1] == 2 * layers * (context + 1) * token
    parts = asdict(found.components)
    nothing = ("gradients", "optimizer_states", "master_parameters", "activations", "communication", "parameter_copies")
    assert {parts[name] for name in nothing} == {0}
    assert parts["parameters"] == 2 * found.model.num_parameters


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize("cache", ["dynamic", "static", "quantized-fp8"])
def test_layers_played_once_and_counted_are_the_layers_played_one_by_one(mode, cache):
    """A stack played as first, middle times n, last comes to what one does whose layers are all played."""
    sizes = {"sequence_length": 33} if mode == "prefill" else {"context_length": 33}
    asked = job(mode, cache=cache, **sizes)
    folded, whole = (tape_of((), play_job(asked, count=2, unrolled=unrolled)) for unrolled in (False, True))
    assert height(folded) == height(whole)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", CLASSIC)
def test_layers_of_the_decoders_before_llama_are_counted_too(family, cache):
    """Of those whose layers hand on weights, and of those that do not, five layers folded come to five played one by one."""
    model = {"model_type": family, **MODELS[family], CLASSIC[family]: 5}
    model |= {"attention_types": [[["global", "local"], 2], [["global"], 1]]} if family == "gpt_neo" else {}
    asked = {**job("decode", context_length=33, cache=cache), "model": model}
    folded, whole = (tape_of((), play_job(asked, count=2, unrolled=unrolled)) for unrolled in (False, True))
    assert height(folded) == height(whole)
    token = 2 * 5 * 2 * 96 * 2  # keys and values of five layers and two rows, 96 wide
    assert height(whole)[1] == 34 * token + (5 * 8 if cache == "static" else 0)


@pytest.mark.parametrize(
    ("model", "mode", "key", "values"),
    [
        (LLAMA, "decode", "context_length", [1, 2, 39, 40, 41, 4096]),
        ({**LLAMA, "model_type": "mistral", **LIKE["mistral"]}, "decode", "context_length", [1, 38, 39, 40, 41, 500]),
        ({**LLAMA, "model_type": "gemma2", **LIKE["gemma2"]}, "prefill", "sequence_length", [1, 2, 39, 40, 41, 90]),
        (LLAMA, "evaluate", "micro_batch_size", [1, 2, 7, 64]),
        ({"model_type": "opt", **MODELS["opt"]}, "decode", "context_length", [1, 2, 40, 290]),
        ({"model_type": "falcon", **MODELS["falcon"], "alibi": True}, "decode", "context_length", [1, 2, 40, 500]),
        ({"model_type": "bloom", **MODELS["bloom"]}, "prefill", "sequence_length", [1, 2, 40, 90]),
    ],
)
def test_arrays_of_sizes_are_each_size_alone(model, mode, key, values):
    """Batches, prompts and contexts as int64 arrays give, element by element, the peak of each job alone."""
    asked = {**job(mode), "model": model}
    together = peaks(read_job(asked), read_model(model), key, values)
    alone = [estimate_mapping({**asked, key: value}, replayed=False).peak.rounded for value in values]
    assert together.tolist() == alone
    assert together.dtype == np.int64


def test_a_window_bounds_what_a_cache_holds():
    """Beyond its window a sliding layer's cache grows no further, neither grown nor fixed; before it, it is like any other."""
    model = {**LLAMA, "model_type": "mistral", "sliding_window": 40}
    sizes = {c: held({**job("decode", context_length=c), "model": model})[1] for c in (20, 39, 40, 400)}
    token = 2 * 5 * 2 * 2 * 16 * 2
    assert sizes == {20: 21 * token + 40, 39: 40 * token + 40, 40: 40 * token + 40, 400: 40 * token + 40}
    fixed = {**job("decode", context_length=400, cache="static", max_cache_length=999), "model": model}
    assert held(fixed)[1] == 40 * token + 40


def test_a_prefill_computes_the_last_positions_logits_alone():
    """As generate() asks for them: a vocabulary of any size adds one row of logits to a prompt, and a loss adds all."""
    small, large = ({**LLAMA, "vocab_size": size} for size in (1000, 201000))
    tops = {
        mode: [held({**job(mode, sequence_length=64), "model": model})[0] for model in (small, large)]
        for mode in ("prefill", "evaluate")
    }
    assert tops["prefill"][1] - tops["prefill"][0] <= 2 * 2 * 200000
    assert tops["evaluate"][1] - tops["evaluate"][0] >= 2 * 64 * 4 * 200000


def test_explained_buffers_of_a_cache_add_up():
    """Keys and values are listed by the layers that hold them, and with all else add up to each component."""
    told = estimate_mapping(job("decode", context_length=50), explained=True)
    for component in ("cache", "inputs", "temporaries", "workspace", "parameters"):
        lines = [held.requested * held.times for held in told.buffers if held.component == component]
        assert sum(lines) == getattr(told.components, component), component
    names = [held.name for held in told.buffers if held.component == "cache"]
    assert any("layers.*.self_attn keys bfloat16[2, 2, 51, 16]" in name for name in names)


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"mode": "decode", "optimizer": "adamw"}, InputError,
         "training.optimizer: adamw is of no use in mode decode, where nothing trains; leave it out"),
        ({"mode": "evaluate", "activation_checkpointing": "full"}, InputError, "training.activation_checkpointing: full is of"),
        ({"mode": "evaluate", "context_length": 3}, InputError, "inference.context_length: 3 is of no use in mode evaluate"),
        ({"mode": "prefill", "context_length": 3}, InputError, "give the prompt as sequence_length"),
        ({"mode": "decode", "sequence_length": 3}, InputError, "give the tokens before it as context_length"),
        ({"context_length": 3}, InputError,
         "inference.context_length: 3 is of no use in training; set mode to prefill or decode"),
        ({"mode": "decode", "max_cache_length": 3}, InputError,
         "inference.max_cache_length: 3 is of no use to a dynamic cache"),
        ({"mode": "decode", "cache_args": {"nbits": 4}}, InputError, "inference.cache_args"),
        ({"mode": "decode", "cache": "static", "context_length": 9, "max_cache_length": 9}, InputError,
         "inference.max_cache_length: 9 is less than the 10 tokens that the step puts into it; make it longer"),
        ({"mode": "decode", "cache": "static", "precision": "amp-bf16"}, InputError, "takes keys and values of one dtype"),
        ({"mode": "decode", "cache": "static", "model": {"model_type": "falcon", **SMALL, "alibi": True}}, InputError,
         "inference.cache: static does not go with alibi in Falcon"),
        ({"mode": "decode", "dp": 2}, NotModelledError, "2 ranks are not modelled in mode decode; ask for one rank"),
        ({"mode": "decode", "precision": "megatron-bf16"}, InputError, "is a layout for training under megatron"),
        ({"mode": "decode", "model": {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}}, InputError,
         "has no head that gives a next token"),
        ({"mode": "decode", "cache": "quantized-fp8", "model": {**LLAMA, "model_type": "mistral", "sliding_window": 40}},
         InputError, "takes no layers that slide"),
    ],
)  # fmt: skip
def test_what_does_not_apply_is_refused(asked, kind, said):
    """Keys of training or of another mode name their path, value, rule and way out."""
    with pytest.raises(kind) as error:
        estimate_mapping({"model": LLAMA, **asked})
    assert said in str(error.value)


def test_what_is_not_played_with_a_cache_has_no_peak():
    """A family whose cache is not played yet has its parameters, no peak, and the reason; evaluation it has all the same."""
    model = {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 99}
    told = estimate_mapping({"model": model, "mode": "decode", "precision": "bf16"})
    assert told.peak.requested is None
    assert told.components.cache is None
    assert any("not modelled with a cache" in warning for warning in told.warnings)
    assert estimate_mapping({"model": model, "mode": "evaluate", "precision": "bf16"}).peak.requested is not None


def test_compare_and_sweep_refuse_what_does_not_train():
    """Neither has anything to set side by side where no optimizer is."""
    from memcalc.api import compare_mapping
    from memcalc.sweep.resolve import setting

    with pytest.raises(MemcalcError, match="is of no use in mode decode"):
        compare_mapping(job("decode"), ["adam"])
    assert "mode: decode is not swept yet" in (setting({"mode": "decode"}).error or "")


def test_liger_s_fused_loss_is_training_s():
    """In evaluation Liger's forward has whole logits and the plain loss (liger-kernel 0.8.2 transformers/model/llama.py)."""
    job = {"model": "llama-3.2-1b", "mode": "evaluate", "precision": "bf16", "micro_batch_size": 1, "sequence_length": 64}
    assert estimate_mapping({**job, "cross_entropy": "liger"}).peak == estimate_mapping(job).peak


def test_a_batch_that_nobody_heeds_is_said():
    """Without training too, a family that knows nothing of padding has no peak, rather than that of a full batch."""
    job = {"model": "gpt2", "mode": "evaluate", "batch": "packed", "precision": "bf16", "sequence_length": 64}
    found = estimate_mapping(job)
    assert found.peak.allocated is None
    assert any("batch" in said for said in found.warnings)


@pytest.mark.parametrize(
    "job", [{"model": "gemma-2b", "optimizer": "adalomo"}, {"model": "gemma-3-4b-pt", "optimizer": "adamw"}]
)
def test_bounds_hold_what_they_bound(job):
    """Where a step lets go early of what the states count, the lower bound is no higher than the peak."""
    peak = estimate_mapping({**job, "precision": "bf16-pure", "micro_batch_size": 1, "sequence_length": 64}).peak
    assert peak.low <= peak.allocated <= peak.high
