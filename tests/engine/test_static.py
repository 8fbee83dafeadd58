"""What is kept, to the byte: the textbook, hand-worked steps, and arrays held equal to scalars."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.api import estimate_read
from memcalc.engines.analytic.static import accounts
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from memcalc.models import Model
from memcalc.plan import make_plan
from memcalc.readers.config import model_from_config
from memcalc.tensors import Span, Tensor


def flat(count: int) -> Model:
    """A model of one tensor."""
    return Model("flat", "test", (Tensor("weight", (count,), kind="linear"),))


def footprint(model: Model, **keys):
    return estimate_read(read_job({"model": "m", **keys}), model)


TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_textbook_card(optimizer):
    """FP16 parameters 2P, gradients 2P, and 12P of FP32: momentum 4P, variance 4P, master 4P; nothing else."""
    count = 1_000_003
    shown = footprint(flat(count), optimizer=optimizer)
    parts = shown.components
    assert (parts.parameters, parts.gradients, parts.master_parameters, parts.optimizer_states) == (
        2 * count, 2 * count, 4 * count, 8 * count,
    )  # fmt: skip
    assert shown.optimizer_states == {"momentum": 4 * count, "variance": 4 * count}
    assert (parts.parameter_copies, parts.buffers, parts.communication) == (0, 0, 0)
    assert (parts.activations, parts.inputs, parts.workspace, parts.context, parts.temporaries) == (None,) * 5
    assert shown.host == {"optimizer_states": 4}
    assert shown.textbook["optimizer_states"] == 12 * count
    assert shown.bytes_per_parameter["optimizer_states"] + shown.bytes_per_parameter["master_parameters"] == 12


def test_roles_at_the_peak_sum_to_it_exactly():
    """What is live at the states' peak adds up to it in rounded bytes, and requested never exceeds rounded."""
    for keys in ({}, {"precision": "amp-bf16"}, {"zero_stage": 2, "dp": 4}, {"optimizer": "adamw8bit"}, {"optimizer": "came"}):
        states = footprint(model_from_config(TINY), **keys).states
        assert sum(states.at_peak.values()) == states.rounded
        assert states.requested <= states.rounded <= states.bound


def test_rounding_is_per_buffer():
    """Three layers of a 5-element tensor are three blocks of 512 B in each copy, not one."""
    model = Model("m", "m", (Tensor("h.*.w", (5,), count=3, kind="linear", spans=(Span(3),)),))
    shown = footprint(model, precision="fp32", optimizer="sgd")
    assert shown.states.requested == 3 * 20 * 2
    assert shown.states.rounded == 3 * 512 * 2


def test_autocast_copies_meet_gradients_only_when_accumulating():
    """With one micro-batch the copies are gone when gradients are whole; with two, the second forward holds both."""
    model = flat(10_000_000)
    once, twice = (footprint(model, precision="amp-bf16", optimizer="sgd", gradient_accumulation_steps=n) for n in (1, 2))
    assert once.components.parameter_copies == twice.components.parameter_copies == 20_000_000
    assert once.states.requested == 8 * 10_000_000
    assert twice.states.requested == 10 * 10_000_000
    assert (twice.states.phase, once.states.phase) == ("backward", "backward")


def test_an_optimizer_that_frees_gradients_holds_the_largest_alone():
    """LOMO updates in the backward hook: gradient memory is the largest tensor's, not P's, and that alone is listed."""
    model = Model("m", "m", (Tensor("a", (100,), kind="linear"), Tensor("b", (300,), kind="linear")))
    shown = footprint(model, optimizer="lomo", precision="fp16-pure")
    assert shown.components.gradients == 300 * 2
    held = [(one.requested, one.times, one.lives) for one in shown.buffers if one.component == "gradients"]
    assert held == [(600, 1, "backward, one at a time")]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"optimizer": "admaw"}, r"^training\.optimizer: admaw is not a known optimizer; did you mean"),
        ({"precision": "fp61"}, r"^training\.precision: fp61 is not a known precision; did you mean fp16"),
        ({"optimizer_args": {"fussed": True}}, r"^training\.optimizer_args\.fussed: True is not an option of torch:Adam"),
        ({"optimizer_args": {"amsgrad": 3}}, r"^training\.optimizer_args\.amsgrad: 3 is not true or false"),
        ({"dp": 0}, r"^parallelism\.dp: 0 is not above 0"),
        ({"dp": 8, "dp_shard": 3}, r"^parallelism\.dp: 8 is not dp_shard"),
        ({"dp_shard": 2}, r"^parallelism\.dp_shard: 2 shards nothing under zero_stage 0"),
        ({"zero_stage": 4}, r"^parallelism\.zero_stage: 4 is above 3"),
        ({"precision": "megatron-bf16", "zero_backend": "torch"}, r"^parallelism\.zero_backend: torch does not have the"),
        ({"optimizer": "torch:Muon", "precision": "fp32"}, r"^training\.optimizer: torch:Muon takes only"),
        ({"micro_batch_size": -1}, r"^training\.micro_batch_size: -1 is not above 0"),
        ({"sequence_length": 2**50}, r"^training\.sequence_length: 1125899906842624 is above"),
        ({"sequence_length": 3.5}, r"^training\.sequence_length: 3\.5 is not a whole number"),
        ({"max_grad_norm": float("nan")}, r"^training\.max_grad_norm: nan is not"),
        ({"optimiser": "adam"}, r"^optimiser: is not a known key; did you mean optimizer"),
        ({"training": {"optimizer": "adam"}, "optimizer": "sgd"}, r"given twice"),
    ],
)  # fmt: skip
def test_bad_jobs_are_refused_in_one_sentence(keys, message):
    """Each bad value is answered with its path, its value, the rule and a way out."""
    with pytest.raises(InputError, match=message):
        footprint(model_from_config(TINY), **keys)


def test_a_flat_partition_is_not_handed_to_an_optimizer_of_matrices():
    """ZeRO-1 gives the optimizer one flat vector, which torch's Muon refuses: an error, not a fault."""
    model = Model("m", "m", (Tensor("w", (8, 8), kind="linear"),))
    with pytest.raises(InputError, match=r"^training\.optimizer: torch:Muon takes only .* deepspeed hands it 1-D tensors"):
        footprint(model, optimizer="torch:Muon", precision="bf16", zero_stage=1, dp=2)


@pytest.mark.parametrize("key", ["tp", "pp", "cp", "ep"])
def test_what_is_not_modelled_is_said(key):
    """Parallelism beyond data parallelism is not guessed at."""
    with pytest.raises(NotModelledError, match=rf"^parallelism\.{key}: 2 asks for .* not modelled yet"):
        footprint(flat(10), **{key: 2})


def test_totals_of_two_to_the_63_are_errors():
    """A model whose states no int64 can count is refused, not wrapped."""
    with pytest.raises(InputError, match=r"2\*\*63"):
        footprint(flat(2**60))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "bf16-pure"])
def test_zero_shares_what_it_says(precision):
    """Under ZeRO-1 the states of eight ranks are an eighth of one rank's, up to the padding of sixteen elements."""
    model = model_from_config(TINY)
    alone = footprint(model, precision=precision, zero_stage=1, dp=1)
    eighth = footprint(model, precision=precision, zero_stage=1, dp=8)
    whole, part = alone.components.optimizer_states, eighth.components.optimizer_states
    assert 0 <= part * 8 - whole <= 16 * 8


def test_flat_and_grouped_keys_mean_the_same():
    """A job reads alike with its keys in groups or flat."""
    model = flat(1000)
    grouped = footprint(model, training={"optimizer": "sgd"}, parallelism={"dp": 2, "zero_stage": 1})
    assert grouped.to_dict() == footprint(model, optimizer="sgd", dp=2, zero_stage=1).to_dict()


sizes = st.fixed_dictionaries(
    {
        "hidden_size": st.integers(1, 40).map(lambda n: n * 8),
        "intermediate_size": st.integers(1, 5000),
        "num_hidden_layers": st.integers(1, 9),
        "vocab_size": st.integers(1, 70_000),
    }
)
QUESTIONS = [
    {}, {"optimizer": "adamw8bit"}, {"optimizer": "came", "precision": "amp-bf16"},
    {"optimizer": "sgd-momentum", "precision": "fp32"}, {"zero_stage": 1},
    {"zero_stage": 2, "optimizer": "torchao:AdamW4bit"}, {"zero_stage": 3}, {"precision": "apex-o2"},
    {"zero_stage": 3, "zero_backend": "fsdp2", "precision": "bf16-pure"}, {"precision": "deepspeed-bf16", "zero_stage": 1},
    {"optimizer": "adafactor", "precision": "fp32"}, {"optimizer": "shampoo", "precision": "fp32"},
]  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(sizes, st.integers(1, 64), st.integers(1, 3)), min_size=2, max_size=5), st.sampled_from(QUESTIONS))
def test_arrays_equal_scalars(points, question):
    """Many jobs evaluated at once give each job's own numbers, to the byte, in every measure and role."""
    from dataclasses import replace

    from memcalc.readers.config import stack_configs

    # DDP's buckets close tensor by tensor, and DeepSpeed's partitions cut tensor by tensor, which arrays of sizes do not have:
    # the sweep takes those models one by one
    if question.get("zero_stage") in (1, 2) and question.get("precision") != "deepspeed-bf16":
        points = [(points[0][0], dp, gas) for _, dp, gas in points]
    jobs = [
        read_job({"model": "m", "dp": dp if "zero_stage" in question else 1, "gradient_accumulation_steps": gas, **question})
        for _, dp, gas in points
    ]
    models = [model_from_config({**TINY, "num_attention_heads": 1, **size}) for size, _, _ in points]
    plans = [make_plan(job) for job in jobs]
    one_size = all(model.config == models[0].config for model in models)
    stacked = models[0] if one_size else stacked_model(models[0], stack_configs([model.config for model in models]))
    together = replace(
        plans[0],
        shards=np.array([plan.shards for plan in plans]), replicas=np.array([plan.replicas for plan in plans]),
        accumulation=np.array([plan.accumulation for plan in plans]),
    )  # fmt: skip
    ranks = 2 if "zero_stage" in question else 1
    many = accounts(together, stacked, ranks)[0]
    for index, (plan, model) in enumerate(zip(plans, models, strict=True)):
        one = accounts(plan, model, ranks)[0]
        pick = lambda value, at=index: int(np.broadcast_to(value, len(points))[at])  # noqa: E731
        for ours, theirs in zip(
            (many.by_requested, many.by_rounded, many.by_bound), (one.by_requested, one.by_rounded, one.by_bound), strict=True
        ):
            assert pick(ours.stretch.top) == theirs.stretch.top
            assert {r: pick(v) for r, v in ours.stretch.role_top.items() if pick(v)} == {
                r: v for r, v in theirs.stretch.role_top.items() if v
            }
        assert {p: pick(v) for p, v in many.parts.items() if pick(v)} == {p: v for p, v in one.parts.items() if v}
        assert (pick(many.host), pick(many.managed)) == (one.host, one.managed)


def stacked_model(model: Model, config) -> Model:
    """The model of stacked configs."""
    from memcalc.families.base import load_family
    from memcalc.readers.config import build_model

    family = load_family(model.family)
    return build_model(family, config, model.architecture, name="many", dtype=None)
