"""DeepSpeed, Megatron-LM and plain data parallelism, against bytes measured in runs of theirs and counts worked by hand."""

from __future__ import annotations

import pytest

from memcalc.errors import InputError
from memcalc.parallelism import deepspeed, megatron
from memcalc.parallelism.base import ScalarOnlyError
from memcalc.parallelism.engines import layouts

from .conftest import model_of, stacked_model, total

MILLION = model_of([(500, 1000), (500, 1000)])
"""A million parameters in two equal tensors, so that two partitions cut through neither."""


def per_parameter(holdings, role=None):
    return total(holdings, role) / 1_000_000


@pytest.mark.parametrize(
    ("stage", "precision", "resident", "backward"),
    [
        # deepspeed 0.19.8 run on CPU under gloo with two ranks, bytes per parameter without states (8/N) and without the bucket
        (1, "bf16", 2 + 4 / 2, 2 + 6 / 2),
        (2, "bf16", 2 + 4 / 2, 2 + 6 / 2),
        (3, "bf16", 2 / 2 + 4 / 2 + 2 / 2, 2 / 2 + 4 / 2 + 2 / 2),
        (1, "deepspeed-bf16", 2 + 4 + 4 / 2, 2 + 4 + 2 + 4 / 2),
    ],
)
def test_deepspeed_holds_what_it_was_measured_to_hold(setting, stage, precision, resident, backward):
    """Between steps and at the end of backward, two ranks hold the published bytes per parameter."""
    (layout,) = deepspeed.layouts(setting(MILLION, precision, stage, 2, stage3_param_persistence_threshold=0), 2)
    kept = per_parameter(layout.resident) - per_parameter(layout.resident, "communication")
    assert kept == resident
    assert kept + per_parameter(layout.gradients) == backward
    assert [p.numel for p in layout.params] == [500_000]


def test_deepspeed_stage_1_peaks_in_the_step_at_six_over_n(setting):
    """The partition's gradients are flattened (2/N) and cast (4/N) on top of what backward left: +6/N, as measured."""
    (layout,) = deepspeed.layouts(setting(MILLION, "bf16", 1, 2), 2)
    assert per_parameter(layout.cast) + per_parameter(layout.step) == 6 / 2


def test_deepspeed_bucket_has_its_size_whatever_the_model(setting):
    """reduce_bucket_size elements are allocated in every backward: 1.0 GB in 16 bit by default, twice with overlap."""
    (one,) = deepspeed.layouts(setting(MILLION, "bf16", 1, 2), 2)
    (two,) = deepspeed.layouts(setting(MILLION, "bf16", 2, 2, overlap_comm=True), 2)
    assert total(one.backward, "communication") == 10**9
    assert total(two.backward, "communication") == 2 * 10**9
    (three,) = deepspeed.layouts(setting(MILLION, "bf16", 3, 2, reduce_bucket_size=1e6), 2)
    assert total(three.resident, "communication") == 2 * 10**6


def test_deepspeed_pads_flat_buffers_to_two_elements_a_rank(setting):
    """Thirteen parameters on four ranks are padded to sixteen; ZeRO-3 pads each tensor alone."""
    odd = model_of([(5,), (8,)])
    layout, *_ = deepspeed.layouts(setting(odd, "fp16", 1, 4), 4)
    assert layout.params[0].numel == 4
    assert total(layout.resident, "parameter") == 16 * 2
    (third,) = deepspeed.layouts(setting(odd, "fp16", 3, 4), 4)
    assert third.params[0].numel == 2 + 2


def test_deepspeed_small_parameters_stay_gathered(setting):
    """ZeRO-3 keeps parameters up to the persistence threshold whole, larger ones not."""
    (layout,) = deepspeed.layouts(setting(model_of([(100, 1000), (100, 1001)]), "fp16", 3, 4), 4)
    assert total(layout.resident, "parameter_copy") == 100_000 * 2


def test_deepspeed_stage_3_steps_by_sub_group(setting):
    """Parameters are gathered into sub-groups in order, each closed once it reaches its size, and stepped one by one."""
    (layout,) = deepspeed.layouts(setting(model_of([(600,), (600,), (100,)]), "fp16", 3, 2, sub_group_size=500), 2)
    assert [p.numel for p in layout.params] == [600, 50]
    assert layout.in_turn
    assert total(layout.step) == 600 * 4


def test_deepspeed_stage_0_flattens_gradients_for_the_fused_optimizer_alone(setting):
    """FP16_Optimizer peaks at 24 bytes a parameter in its step; the unfused wrapper casts tensor by tensor."""
    (unfused,) = deepspeed.layouts(setting(MILLION, "deepspeed-fp16", 0, 1), 1)
    assert per_parameter(unfused.resident) == 6
    assert per_parameter((*unfused.cast, *unfused.step)) == 4


def test_megatron_pads_starts_to_64_and_the_end_to_128(setting):
    """Three odd tensors laid in reverse: starts at multiples of 64, the buffer's end at a multiple of lcm(ranks, 128)."""
    placed, end = megatron.placements(setting(model_of([(100,), (10,), (70,)]), "megatron-bf16", 1, 3))
    assert placed == [(0, 70), (128, 10), (192, 100)]
    assert end == 292
    ranks = megatron.layouts(setting(model_of([(100,), (10,), (70,)]), "megatron-bf16", 1, 3), 3)
    # lcm(3, 128) = 384, so each rank's range is 128 elements: the first holds 70, the second 10 and 64, the third 36
    assert [sorted(p.numel for p in rank.params for _ in range(p.count)) for rank in ranks] == [[10, 64], [70], [36]]
    assert total(ranks[0].resident, "parameter") == 384 * 2
    assert total(ranks[0].resident, "gradient") == 384 * 4


def test_megatron_without_its_distributed_optimizer_is_18_bytes(setting):
    """Parameters 2, main gradients 4, masters 4 and (elsewhere) states 8."""
    (layout,) = megatron.layouts(setting(MILLION, "megatron-bf16"), 1)
    assert per_parameter(layout.resident) == 2 + 4 + 4
    assert layout.gradients == ()


def test_plain_layouts_of_every_precision(setting):
    """Bytes per parameter of each scheme on one rank, kept for good and added by backward."""
    expected = {
        "fp16": (6, 2), "bf16": (6, 2), "fp32": (4, 4), "bf16-pure": (2, 2), "fp16-pure": (2, 2), "as-is": (4, 4),
        "amp-fp16": (4, 4), "amp-bf16": (4, 4), "apex-o2": (6, 6),
    }  # fmt: skip
    for name, figures in expected.items():
        (layout,) = layouts(setting(MILLION, name), "torch", 1)
        assert (
            per_parameter(layout.resident) - per_parameter(layout.resident, "temporary"),
            per_parameter(layout.gradients),
        ) == figures


def test_autocast_copies_matrices_and_tied_heads_alone(setting):
    """Embeddings and norms get no copy; an embedding that a tied head reads does."""
    from dataclasses import replace

    model = stacked_model()
    (layout,) = layouts(setting(model, "amp-bf16"), "torch", 1)
    assert total(layout.forward) == 3 * (192 + 24) * 2
    (tied,) = layouts(setting(replace(model, tied={"head": "embed"}), "amp-bf16"), "torch", 1)
    assert total(tied.forward) == 3 * (192 + 24) * 2 + 800 * 2


def test_frozen_parameters_have_no_gradient_master_or_state(setting):
    """A frozen tensor is held in the working dtype and nothing else is made for it."""
    model = model_of([(10, 10)], trainable=False)
    (layout,) = layouts(setting(model, "fp16"), "torch", 1)
    assert (total(layout.resident), layout.gradients, layout.params) == (200, (), ())


def test_the_textbook_casts_one_gradient_at_a_time(setting):
    """Tensor by tensor the largest alone is cast to fp32; a foreach step casts them all."""
    model = model_of([(10,), (30,)])
    (single,) = layouts(setting(model, "fp16", implementation="single"), "torch", 1)
    (foreach,) = layouts(setting(model, "fp16"), "torch", 1)
    assert (total(single.step), total(foreach.step)) == (30 * 4, 40 * 4)


@pytest.mark.parametrize(("backend", "stage"), [("torch", 2), ("torch", 3), ("megatron", 2), ("fsdp2", 1), ("fsdp2", 0)])
def test_stages_a_backend_does_not_have_are_refused(setting, backend, stage):
    """Asking an engine for a stage it does not implement says so and names the way out."""
    with pytest.raises(InputError, match=r"^parallelism\.zero_stage: .*; use "):
        layouts(setting(MILLION, "fp32", stage, 2), backend, 2)


def test_unknown_engine_options_are_refused(setting):
    """A misspelt option is an error with its neighbour, not silence."""
    with pytest.raises(InputError, match="did you mean reduce_bucket_size"):
        layouts(setting(MILLION, "fp16", 1, 2, reduce_bucketsize=5), "deepspeed", 2)


def test_partitions_that_need_one_job_say_so(setting):
    """Greedy partitions over arrays raise the one error that sends a sweep back to single jobs."""
    import numpy as np

    with pytest.raises(ScalarOnlyError):
        layouts(setting(model_of([(np.array([3, 4]), 5)]), "fp32", 1, 2), "torch", 2)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("reduce_bucket_size", -1, "is below 0; use a size; the default is 500000000"),
    ("reduce_bucket_size", 1.5, "is not a whole number; the default is 500000000"),
    ("overlap_comm", 1, "is not true or false; the default is false"),
    ("sub_group_size", True, "is not a whole number; the default is 1000000000"),
])  # fmt: skip
def test_an_option_of_another_kind_says_which_kind_it_is(setting, key, value, said):
    """Negative sizes, fractions and words for switches each break a rule of their own."""
    with pytest.raises(InputError, match=f"parallelism.zero_args.{key}: {value} {said}"):
        deepspeed.layouts(setting(MILLION, "bf16", 2, 2, **{key: value}), 2)
