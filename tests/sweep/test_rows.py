"""Every row of a sweep is the single estimate of its job, number for number and word for word."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memcalc.sweep.resolve as resolve
from memcalc.catalog import shipped
from memcalc.optimizers.names import all_optimizers
from memcalc.sweep import run
from memcalc.sweep.solve import Solver
from tests.sweep.oracle import differences

MODELS = [
    {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000},
    {"model_type": "llama", "hidden_size": 96, "intermediate_size": 300, "num_hidden_layers": 5, "vocab_size": 999},
    {"model_type": "llama", "tie_word_embeddings": True, "num_hidden_layers": 3},
    {"params": 1_000_000},
    {"params": 7_000_000_001},
    {"params": "7B"},
    {"params": 3 * 2**60},
    {"params": 0},
    "gpt2",
    "llama-3.1-8b",
    "mixtral-8x7b-v0.1",
    "whisper-tiny",
    "resnet-50",
    "mamba-130m-hf",
    "nope",
    {"model_type": "llam"},
]
AXES = {
    "model": MODELS,
    "optimizer": ["adam", "adamw8bit", "sgd", "sgd-momentum", "adagrad", "adafactor", "lion", "adam-mini", "admw"],
    "precision": [
        "fp16",
        "bf16",
        "amp-bf16",
        "amp-fp16",
        "fp32",
        "apex-o2",
        "deepspeed-fp16",
        "deepspeed-bf16",
        "megatron-bf16",
        "fsdp2-mixed",
        "fp17",
    ],
    "zero_stage": [0, 1, 2, 3],
    "zero_backend": [None, "deepspeed", "fsdp2", "megatron", "torch"],
    "dp": [None, 1, 2, 3, 8, 64, 0],
    "dp_shard": [None, 1, 4],
    "dp_replicate": [None, 2],
    "tp": [1, 2],
    "gradient_accumulation_steps": [1, 4],
    "gpu": [None, "h100-80gb", "h101"],
    "memory": [None, "24GiB", 10**9],
    "headroom": ["5%", 0.0],
    "scope": ["states", "step"],
}


@st.composite
def sweeps(draw):
    """A few axes in any order, a base that sets some of the rest, and patches beside the grid."""
    names = draw(st.permutations(list(AXES)))
    axes = draw(st.integers(1, 4))
    grid = {name: draw(st.lists(st.sampled_from(AXES[name]), min_size=1, max_size=3, unique_by=repr)) for name in names[:axes]}
    base = {name: draw(st.sampled_from(AXES[name])) for name in names[axes : axes + 3]}
    if "model" not in grid:
        base["model"] = draw(st.sampled_from(MODELS))
    free = [name for name in names if name not in grid]
    patch = st.dictionaries(st.sampled_from(free), st.none(), min_size=1, max_size=3)
    patches = [{name: draw(st.sampled_from(AXES[name])) for name in keys} for keys in draw(st.lists(patch, max_size=3))]
    mapping = {"base": base, "grid": grid, "include": [{"model": "gpt2", **draw(st.sampled_from([{}, {"dp": 4}]))}]}
    return {**mapping, "list": patches} if patches else mapping


@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sweeps())
def test_each_row_equals_the_single_estimate(spec):
    """Whatever varies, together or alone, a row has the figures and the error of the one job's estimate."""
    sweep = run(spec)
    assert differences(sweep, list(sweep)) == []


def test_drawn_points_of_large_grids_equal_their_estimates():
    """Of thousands of points over models, optimizers, precisions, stages, engines and ranks, any drawn one is right."""
    draw = random.Random(1)
    chosen = {
        name: draw.sample(AXES[name], min(len(AXES[name]), most))
        for name, most in (("model", 5), ("optimizer", 4), ("precision", 3), ("zero_stage", 2), ("zero_backend", 2), ("dp", 4))
    }
    sweep = run({"base": {"memory": "40GiB", "scope": "states"}, "grid": chosen})
    rows = list(sweep)
    assert [row["index"] for row in rows] == list(range(sweep.points))
    good = [row for row in rows if row["error"] is None]
    drawn = draw.sample(good, min(len(good), 60)) + draw.sample(rows, 30)
    assert differences(sweep, drawn) == []


@pytest.mark.parametrize(
    ("keys", "ranks", "every"),
    [
        ({"zero_stage": 1}, [2, 7], 2),
        ({"zero_stage": 3, "zero_backend": "fsdp2"}, [2, 7], 3),
        ({"precision": "amp-bf16"}, [1], 1),
    ],
)
def test_every_shipped_model_goes_as_arrays(strict, keys, ranks, every):
    """Models of one family and the same switches are evaluated together, and each row is its own model's estimate.

    All of them on one rank, and over ranks as many as leave each family some.
    """
    base = {"precision": "bf16", "scope": "states", **keys}
    sweep = run({"base": base, "grid": {"model": list(shipped("models"))[::every], "dp": ranks}})
    rows = list(sweep)
    refused = [row for row in rows if row["error"]]
    assert all(row["error"].startswith("model: logit_scale has no dimension to shard") for row in refused)
    assert differences(sweep, [*refused, *random.Random(0).sample(rows, 15)]) == []


def test_steps_of_every_size_go_as_arrays(strict):
    """Batches, lengths, depths and widths that differ from point to point are played together, structure by structure."""
    sweep = run(
        {
            "base": {"precision": "amp-bf16", "optimizer": "sgd", "attention": "flash", "memory": "1GiB"},
            "grid": {
                "model": [{**one, "num_attention_heads": 8, "num_key_value_heads": 2} for one in SMALL],
                "micro_batch_size": [1, 2, 5],
                "sequence_length": [64, 65, 200],
                "activation_checkpointing": ["none", "full"],
                "gradient_accumulation_steps": [1, 3],
            },
        }
    )
    rows = list(sweep)
    assert len(rows) == 108
    assert all(row["activations"] > 0 and row["peak_requested"] <= row["peak_rounded"] <= row["peak_bound"] for row in rows)
    assert differences(sweep, random.Random(1).sample(rows, 24)) == []


def test_steps_over_fsdp2_go_as_arrays(strict):
    """Ranks, replicas, batches, depths and widths that differ are played together; what is gathered is in every row."""
    base = {
        "precision": "fsdp2-mixed",
        "zero_backend": "fsdp2",
        "optimizer": "sgd",
        "attention": "flash",
        "sequence_length": 130,
    }
    sweep = run(
        {
            "base": {**base, "zero_args": {"reduce_in_float32": True}},
            "grid": {
                "model": [{**one, "num_attention_heads": 8, "num_key_value_heads": 2} for one in SMALL],
                "micro_batch_size": [2, 5],
                "dp_shard": [1, 2, 7],
                "dp_replicate": [1, 2],
                "zero_stage": [2, 3],
            },
        }
    )
    rows = list(sweep)
    assert len(rows) == 72
    assert all(row["parameter_copies"] > 0 and row["communication"] > 0 for row in rows if row["dp_shard"] > 1)
    assert differences(sweep, random.Random(2).sample(rows, 12)) == []


SMALL = [
    {
        "model_type": "llama",
        "hidden_size": 64 * n,
        "intermediate_size": 100 * n + 1,
        "num_hidden_layers": n,
        "vocab_size": 1000 * n + 3,
    }
    for n in (1, 2, 5)
]


@pytest.mark.parametrize(
    ("keys", "ranks", "which", "every"),
    [
        ({"precision": "fp32"}, [1], slice(0, None, 3), 3),
        ({"precision": "bf16", "zero_stage": 3, "zero_backend": "fsdp2"}, [2, 3, 7], slice(None), 16),
    ],
)
def test_every_optimizer_goes_as_arrays(strict, keys, ranks, which, every):
    """Each optimizer's states of models of odd sizes, whole or in uneven pieces, are on arrays what they are alone.

    Quantised ones among them leave tensors of some sizes whole, so that the fullest rank need not be the first. In pieces
    it is all of them; whole, a third, for each library's own tests hold arrays to single jobs.
    """
    base = {"scope": "states", **keys}
    sweep = run({"base": base, "grid": {"optimizer": list(all_optimizers())[which], "model": SMALL, "dp": ranks}})
    rows = list(sweep)
    assert sum(row["error"] is None for row in rows) > len(rows) / 2
    assert differences(sweep, rows[::every]) == []


@pytest.mark.parametrize(("stage", "evaluations"), [(3, 2), (1, 42)])
def test_models_that_differ_in_numbers_alone_are_one_evaluation(strict, monkeypatch, stage, evaluations):
    """Twenty widths by eight rank counts by two optimizers take two evaluations over arrays, not 320.

    Under ZeRO-1 cuts fall elsewhere in each model, so that the two are tried and each model then takes one of its own; that
    is of the states, for its step is another on each number of ranks.
    """
    taken = Counter()
    together, exact = Solver.together, Solver._exact
    monkeypatch.setattr(Solver, "together", lambda self, *rest: (taken.update(["arrays"]), together(self, *rest))[1])
    monkeypatch.setattr(Solver, "_exact", lambda self, points: (taken.update(["scalars"]), exact(self, points))[1])
    sweep = run(
        {
            "base": {"model": {"model_type": "llama", "num_hidden_layers": 2}, "zero_stage": stage, "scope": "states"},
            "grid": {
                "optimizer": ["adam", "adamw8bit"],
                "model.intermediate_size": {"from": 100, "to": 2000, "step": 100},
                "dp": {"from": 2, "to": 256, "factor": 2},
            },
        }
    )
    rows = list(sweep)
    assert (len(rows), taken) == (320, {"arrays": evaluations})
    assert differences(sweep, rows[::17]) == []


def test_a_job_is_validated_for_each_value_not_for_each_point(monkeypatch):
    """Ten thousand points of three settings resolve three jobs and three plans."""
    counted = Counter()
    for name in ("setting", "plan"):
        real = getattr(resolve, name)
        monkeypatch.setattr(resolve, name, lambda *rest, real=real, name=name: (counted.update([name]), real(*rest))[1])
    grid = {"params": {"from": 10**6, "to": 10**9, "step": 10**6}, "optimizer": ["adam", "sgd", "lion"], "dp": [2, 4, 8, 16]}
    assert len(list(run({"base": {"zero_stage": 1}, "grid": grid}))) == 12000
    assert counted == {"setting": 3, "plan": 3}


def test_a_total_of_2_to_the_63_is_an_error_and_one_below_is_exact():
    """Where int64 would wrap around, rows say what an estimate says; just below, every byte is right."""
    counts = [2**49, 2**50, 2**58, 10**18, 2**59, 2**60, 2**62, 2**63 - 1]
    sweep = run({"grid": {"params": counts, "optimizer": ["adam", "sgd"], "dp": [1, 3], "zero_stage": [0, 1]}})
    rows = list(sweep)
    assert differences(sweep, rows) == []
    fates = {row["num_parameters"]: row["error"] for row in rows if (row["optimizer"], row["zero_stage"]) == ("torch:Adam", 0)}
    assert fates[2**50] is None
    assert "bytes are 2**63 or more" in fates[2**62]


def test_products_that_wrap_int64_back_into_range_are_caught():
    """A wide model whose bytes pass 2**64 has a small int64 sum of its own; the row is an error all the same."""
    sizes = {"vocab_size": 2**40, "intermediate_size": 2**40, "num_hidden_layers": 2**20}
    sweep = run(
        {
            "base": {"model": {"model_type": "llama", **sizes}, "precision": "fp32"},
            "grid": {"model.hidden_size": [32, 64, 2**12, 2**20], "dp": [1, 2]},
        }
    )
    rows = list(sweep)
    assert all("2**63" in row["error"] for row in rows)
    assert differences(sweep, rows) == []


def test_greedy_partitions_fall_back_to_single_jobs():
    """Engines that deal whole tensors to ranks (Megatron's, torch's) are taken job by job, and rows are still right."""
    grid = {"zero_backend": ["megatron", "torch"], "model": ["gpt2", "gpt2-medium"], "dp": [2, 3, 8]}
    sweep = run({"base": {"zero_stage": 1, "precision": "bf16"}, "grid": grid})
    rows = list(sweep)
    assert [row["error"] for row in rows] == [None] * 12
    assert differences(sweep, rows) == []


def test_chunks_do_not_change_a_row():
    """Whatever the chunk, down to one point, rows are the same."""
    spec = {
        "base": {"zero_stage": 1},
        "grid": {"params": [10**6, 10**7, 0], "optimizer": ["adam", "lion", "admw"], "dp": [1, 2, 5]},
        "exclude": [{"optimizer": "lion", "dp": 5}],
        "include": [{"model": "gpt2"}, {"params": "1M", "dp": -1}],
    }
    whole = list(run(spec))
    for chunk in (1, 2, 7, 26, 1000):
        assert list(run(spec, chunk=chunk)) == whole


MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 1000, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


MISTRAL = {**MODELS[0], "model_type": "mistral"}


@pytest.mark.parametrize(
    ("model", "axis"), [(MIXTRAL, {"model.num_experts_per_tok": [1, 3]}), (MISTRAL, {"model.sliding_window": [4, 80]})]
)
def test_models_of_one_size_do_not_answer_for_each_other(model, axis):
    """Models that differ in a number that no parameter depends on keep their own steps, chunk after chunk."""
    spec = {"base": {"model": model}, "grid": {"sequence_length": [64, 100], "micro_batch_size": [2, 3], **axis}}
    for chunk in (4, 3, 100):
        sweep = run(spec, chunk=chunk)
        assert differences(sweep, list(sweep)) == []


def test_absurd_sizes_do_not_wrap():
    """Steps of more bytes than int64 holds are errors, and those just below are exact, as they are alone."""
    sizes = [2, 2**16, 2**31 - 1, 2**31, 2**40]
    for attention in ("auto", "eager"):
        base = {"model": MODELS[0], "attention": attention, "optimizer": "sgd", "precision": "bf16"}
        sweep = run({"base": base, "grid": {"micro_batch_size": sizes, "sequence_length": sizes}})
        rows = list(sweep)
        assert differences(sweep, rows) == []
        assert 5 < sum(row["error"] is not None for row in rows) < len(rows) - 5


def test_what_does_not_apply_is_null():
    """A sequence length is null for a model of images and for a bare size, and stands for a model of text."""
    rows = list(
        run({"base": {"sequence_length": 128, "micro_batch_size": 4}, "grid": {"model": ["resnet-50", "gpt2", {"params": 9}]}})
    )
    assert [row["sequence_length"] for row in rows] == [None, 128, None]
    assert {row["micro_batch_size"] for row in rows} == {4}


def test_a_refused_point_has_no_figures_and_says_what_it_was():
    """The row of an unknown device names its model, optimizer and ranks, and holds no number of bytes."""
    (row,) = run({"base": {"model": "gpt2", "gpu": "h101", "dp": 2, "name": "mine"}})
    assert row["error"].startswith("hardware.gpu: h101 is not")
    assert (row["name"], row["model"], row["optimizer"], row["dp"]) == ("mine", "gpt2", "torch:Adam", 2)
    assert (row["parameters"], row["states_rounded"], row["verdict"], row["headroom"]) == (None, None, None, None)
