"""What fits: the largest size of each way of training, found and judged."""

from __future__ import annotations

import pytest

from memcalc.api import estimate_mapping
from memcalc.errors import InputError
from memcalc.fit import PRECISIONS, Grid, fit, grid_of
from memcalc.formats.fits import remarks, show

MODEL = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 1001}  # fmt: skip
JOB = {"model": MODEL, "sequence_length": 256, "memory": 4 * 2**30}
WAYS = Grid(["adamw", "sgd"], ["amp-bf16", "bf16-pure"], ["none", "full"])


@pytest.fixture(scope="module")
def found():
    """The grid on four gibibytes."""
    return fit(JOB, WAYS)


def test_the_largest_fits_and_one_more_does_not(found):
    """Of each way, the largest batch is said to fit, and one more is not."""
    for one in found:
        assert one.verdict == "fits"
        job = {**JOB, "optimizer": one.optimizer, "precision": one.precision, "activation_checkpointing": one.checkpointing}
        more = estimate_mapping({**job, "micro_batch_size": one.largest + 1})
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
        {"model": MODEL, "memory": 4 * 2**30, "micro_batch_size": 2, "attention": "flash"},
        Grid(["sgd"], ["bf16-pure"], ["full"]), largest="sequence",
    )  # fmt: skip
    assert one.footprint.job["training"]["sequence_length"] == one.largest > 256


def test_a_context_that_is_taken_back_is_the_longest_all_the_same():
    """Where the allocator needs more than the fold says, what lies between is halved: one more token is too many."""
    job = {"model": "llama-2-7b", "mode": "decode", "memory": 24 * 2**30, "implementation": "litgpt"}
    (one,) = fit(job, Grid(precisions=["fp16"], caches=["static"]), largest="context")
    verdicts = [
        estimate_mapping({**job, "cache": "static", "context_length": one.largest + more}).fits.verdict for more in (0, 1)
    ]
    assert (one.verdict, verdicts) == ("fits", ["fits", "tight"])


def test_what_cannot_be_played_says_why_and_stops_nothing():
    """A way over several ranks that is not played has no answer and a reason; the others have theirs."""
    found = fit({**JOB, "precision": "fp32", "dp": 2}, Grid(["sgd"], ["fp32"], ["none"], [0, 1]))
    assert {one.zero_stage for one in found} == {0, 1}
    assert all(one.largest is not None or one.reason for one in found)


def test_ways_without_an_answer_are_equal_where_they_say_the_same():
    """Two searches of one job find equal ways, those that cannot be said too: none holds on to what was raised."""
    job = {**JOB, "optimizer_args": {"momentum": 0.9}}
    once, again = (fit(job, Grid(["adamw", "sgd"], ["fp32"], ["none"])) for _ in range(2))
    assert once == again
    assert [one.verdict for one in once] == ["fits", "unknown"]


@pytest.mark.parametrize(("keys", "largest", "said"), [
    ({"micro_batch_size": 4}, "batch", "training.micro_batch_size: 4 is given, and the largest batch is what is sought; leave "
     "it out, or seek the largest sequence: --largest sequence"),
    ({"sequence_length": 8}, "sequence", "training.sequence_length: 8 is given, and .*: --largest batch"),
    ({"mode": "decode", "context_length": 8}, "context", "inference.context_length: 8 is given, and .*: --largest batch"),
    ({"mode": "decode", "micro_batch_size": 8}, "batch", "training.micro_batch_size: 8 is given, and .*: --largest context"),
])  # fmt: skip
def test_the_size_that_is_sought_is_not_given(keys, largest, said):
    """A size that would be passed over in silence is an error, with the other size that could be sought."""
    with pytest.raises(InputError, match=said):
        fit({"model": MODEL, "memory": 4 * 2**30, **keys}, WAYS if "mode" not in keys else None, largest=largest)


def test_an_error_of_every_way_is_one_of_the_job():
    """What is wrong with all of a grid is said once, as an error; what is wrong with some of its ways stands beside them."""
    job = {"model": MODEL, "memory": 4 * 2**30, "sequence_length": 8}
    with pytest.raises(InputError, match=r"^behaviour\.allocator\.max_split_size_mb: foo is not a whole number; give digits"):
        fit({**job, "behaviour": {"allocator": "max_split_size_mb:foo"}}, WAYS)
    found = fit(job, Grid(["admw", "nosuch"], ["fp32"], ["none", "full"]))
    assert {one.largest for one in found} == {None}
    told = remarks(found, "batch")
    assert sum("checkpointing none, and " in remark for remark in told) == 2


def test_options_of_a_cache_go_to_those_that_take_them():
    """Of several caches each has its own; where none of them has a use for one, that is an error, and in evaluation too."""
    job = {"model": MODEL, "memory": 4 * 2**30, "mode": "decode", "max_cache_length": 100}
    found = {one.cache: one for one in fit(job, Grid(caches=["dynamic", "static"]), largest="context")}
    assert (found["static"].largest, found["dynamic"].most) == (99, None)
    assert found["dynamic"].largest > 1000
    with pytest.raises(InputError, match=r"max_cache_length: 100 is of no use to a dynamic cache; leave it out, or use"):
        fit(job)
    asked = {**job, "max_cache_length": None, "cache_args": {"nbits": 2}}
    with pytest.raises(InputError, match=r"\{'nbits': 2\} are of no use to a dynamic or quantized-fp8 cache; leave it"):
        fit(asked, Grid(caches=["dynamic", "quantized-fp8"]))
    with pytest.raises(InputError, match="is of no use in mode evaluate, which keeps no cache"):
        fit({**job, "mode": "evaluate"})


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


@pytest.mark.parametrize(("keys", "grid", "said"), [
    ({"mode": "decode"}, Grid(optimizers=["sgd"]), "--optimizers: sgd is of no use in mode decode, where nothing trains; "),
    ({"mode": "decode"}, Grid(checkpointing=["none", "full"]), "--checkpointing: none,full is of no use in mode decode"),
    ({"mode": "prefill"}, Grid(zero_stages=[0, 3]), "--zero-stages: 0,3 is of no use in mode prefill"),
    ({"mode": "evaluate"}, Grid(caches=["dynamic"]), "--caches: dynamic is of no use in mode evaluate, which keeps no cache"),
    ({}, Grid(caches=["static"]), "--caches: static is of no use in mode train, which keeps no cache; leave it out, or"),
])  # fmt: skip
def test_ways_that_a_mode_does_not_have_are_refused(keys, grid, said):
    """Also where what is given is what would be tried anyway: it is not passed over in silence."""
    job = {"model": MODEL, "memory": 4 * 2**30, **keys}
    with pytest.raises(InputError, match=said):
        fit(job, grid)


def test_the_job_speaks_where_the_grid_is_silent():
    """A job's own optimizer, precision and checkpointing are the one way; a grid's stand in their place."""
    (one,) = fit({**JOB, "optimizer": "sgd", "precision": "fp32", "activation_checkpointing": "full"})
    assert (one.optimizer, one.precision, one.checkpointing) == ("torch:SGD", "fp32", "full")
    grid = Grid(precisions=["bf16-pure"], checkpointing=["none", "full"])
    found = fit({**JOB, "optimizer": "sgd", "precision": "fp32"}, grid)
    assert {(one.optimizer, one.precision) for one in found} == {("torch:SGD", "bf16-pure")}


def test_every_default_precision_may_be_given_where_nothing_trains():
    """Given, they are tried each; left open, the job's own alone is."""
    job = {"model": MODEL, "memory": 4 * 2**30, "mode": "decode", "context_length": 64, "precision": "fp32"}
    assert [one.precision for one in fit(job)] == ["fp32"]
    assert {one.precision for one in fit(job, Grid(precisions=list(PRECISIONS)))} == set(PRECISIONS)


def test_a_static_cache_ends_the_search_for_a_context():
    """Its places bound what is found, and a cache too short for one token says so in numbers."""
    job = {"model": MODEL, "memory": 4 * 2**30, "mode": "decode", "cache": "static", "precision": "bf16"}
    (one,) = fit({**job, "max_cache_length": 100}, largest="context")
    assert (one.largest, one.most, one.verdict) == (99, 99, "fits")
    with pytest.raises(InputError, match=r"max_cache_length: 1 is less than the 2 tokens that the step puts into it; make it"):
        fit({**job, "max_cache_length": 1}, largest="context")


def test_sizes_that_cannot_be_are_passed_over():
    """Packed rows under flash-attn's kernels come one at a time, and hold as many tokens as sequences at least."""
    job = {
        "model": "llama-3.2-1b", "memory": "80GiB", "batch": "packed", "packed_sequences": 4, "attention": "flash_attention_2",
    }  # fmt: skip
    grid = Grid(("sgd",), ("bf16-pure",), ("none",))
    (batch,), (sequence,) = (fit(job, grid, largest=largest) for largest in ("batch", "sequence"))
    assert (batch.largest, batch.verdict) == (1, "fits")
    assert sequence.largest is not None
    assert sequence.largest > 1000
    with pytest.raises(InputError, match=r"packed_sequences: 1000000000 ") as refused:
        fit({**job, "packed_sequences": 10**9, "sequence_length": 2}, grid, largest="batch")
    assert "array" not in str(refused.value)


@pytest.mark.parametrize("width", [66, 75, 85, 120])
def test_no_number_is_cut_short(found, width, monkeypatch, capsys):
    """On a narrow terminal whole columns are left out and named, until every number stands in full."""
    monkeypatch.setenv("COLUMNS", str(width))
    show(found, "batch", "table")
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert ("left out for want of width" in " ".join(printed.split())) is (width < 86)
    assert max(map(len, printed.splitlines())) <= width
