"""What fits: the largest size of each way of training, found and judged."""

from __future__ import annotations

import pytest

from memcalc.api import estimate_mapping
from memcalc.errors import InputError
from memcalc.fit import Grid, fit, grid_of

MODEL = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 1001}  # fmt: skip
JOB = {"model": MODEL, "sequence_length": 256, "memory": 4 * 2**30}
WAYS = Grid(["adamw", "sgd"], ["amp-bf16", "bf16-pure"], ["none", "full"])


@pytest.fixture(scope="module")
def found():
    """The grid on four gibibytes."""
    return fit(JOB, WAYS)


def test_the_largest_fits_and_a_little_more_does_not(found):
    """Of each way, the largest batch is said to fit, and one that is a twentieth larger is not."""
    for one in found:
        assert one.verdict == "fits"
        job = {**JOB, "optimizer": one.optimizer, "precision": one.precision, "activation_checkpointing": one.checkpointing}
        more = estimate_mapping({**job, "micro_batch_size": one.largest + 1 + one.largest // 20})
        assert more.fits.verdict != "fits"


def test_ways_come_largest_first_and_each_once(found):
    """Eight ways, no two alike, in falling order of their batch."""
    assert len({(one.optimizer, one.precision, one.checkpointing) for one in found}) == 8
    assert [one.largest for one in found] == sorted((one.largest for one in found), reverse=True)


def test_checkpointing_pays_in_batch(found):
    """With everything else equal, recomputing lets more samples in."""
    sizes = {(one.optimizer, one.precision, one.checkpointing): one.largest for one in found}
    for optimizer in ("torch:AdamW", "torch:SGD"):
        for precision in WAYS.precisions:
            assert sizes[optimizer, precision, "full"] > sizes[optimizer, precision, "none"]


def test_the_longest_sequence_is_found_too():
    """With --largest sequence it is the tokens that grow, at the batch asked for."""
    (one,) = fit(
        {**JOB, "micro_batch_size": 2, "attention": "flash"}, Grid(["sgd"], ["bf16-pure"], ["full"]), largest="sequence"
    )
    assert one.footprint.job["training"]["sequence_length"] == one.largest > 256


def test_what_cannot_be_played_says_why_and_stops_nothing():
    """A way over several ranks that is not played has no answer and a reason; the others have theirs."""
    found = fit({**JOB, "precision": "fp32", "dp": 2}, Grid(["sgd"], ["fp32"], ["none"], [0, 1]))
    assert {one.zero_stage for one in found} == {0, 1}
    assert all(one.largest is not None or one.reason for one in found)


def test_a_device_must_be_named():
    """Without hardware nothing can be said to fit."""
    with pytest.raises(InputError, match=r"hardware\.gpu: is missing; name a device with --gpu, or bytes with --memory"):
        fit({"model": MODEL})


def test_words_that_are_no_grid_are_refused():
    """A ZeRO stage is a number from 0 to 3; a size is a batch or a sequence."""
    with pytest.raises(InputError, match="--zero-stages: 4 is no ZeRO stage"):
        grid_of([], [], [], ["4"])
    with pytest.raises(InputError, match="largest: width is no size"):
        fit(JOB, WAYS, largest="width")


def test_stages_that_fsdp2_lacks_are_torchs():
    """Over FSDP2 every ZeRO stage is tried, 0 and 1 as DDP and ZeroRedundancyOptimizer."""
    found = fit(
        {**JOB, "memory": 5 * 2**30, "dp": 8, "zero_backend": "fsdp2"}, Grid(["adamw"], ["bf16-pure"], ["full"], [0, 1, 2, 3])
    )
    sizes = {one.zero_stage: one.largest for one in found}
    assert min(sizes.values()) > 0
    assert {one.zero_stage: one.footprint.job["parallelism"]["zero_backend"] for one in found} == {
        0: "torch", 1: "torch", 2: "fsdp2", 3: "fsdp2",
    }  # fmt: skip
