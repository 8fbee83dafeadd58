"""Torchtitan's Llama 3: held against traces of its own code, counted by hand, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.played.against import heights, played
from memcalc import api
from memcalc.engines.analytic.many import peaks
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError
from memcalc.implementations import load_implementation
from memcalc.implementations._torchtitan_versions import LAST, VERSIONS, version_of
from memcalc.job import read_job
from memcalc.prepared import prepared
from memcalc.readers.source import read_model

RECORD = json.loads((Path(__file__).parents[2] / "benchmarks" / "played" / "torchtitan.json").read_text())
MODEL = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 304}  # fmt: skip
JOB = {"model": MODEL, "precision": "bf16-pure", "micro_batch_size": 2, "sequence_length": 96, "optimizer": "sgd",
       "implementation": "torchtitan", "implementation_args": {"version": "2025-06-17"}}  # fmt: skip
ROWS, TOKENS = 2, 96


def job_of(name):
    """The job that a line of the record is of (benchmarks/played/torchtitan.py:name_of)."""
    date, precision, rows, tokens, mode, option, layers, groups, family, *more = name.split()
    model = {**MODEL, "model_type": family, "num_hidden_layers": int(layers), "num_key_value_heads": int(groups)}
    model |= {"head_dim": 24, "tie_word_embeddings": "tied" in more} if family == "qwen3" else {}
    model |= {"vocab_size": 8192} if "wide" in more else {}
    return {**JOB, "model": model, "precision": precision, "micro_batch_size": int(rows), "sequence_length": int(tokens),
            "activation_checkpointing": mode,
            "implementation_args": {"version": date, "selective_ac_option": option}}  # fmt: skip


def saved(**changes):
    """Bytes alive where backward begins."""
    return heights(played({**JOB, **changes}, unrolled=False)).saved


@pytest.mark.parametrize("date", sorted({name.split()[0] for name in RECORD["heights"]}))
def test_a_played_step_is_its_own_code_traced(date):
    """At every commit that was traced, what is saved, what is left and the highest point are equal to the byte."""
    lines = [name for name in RECORD["heights"] if name.startswith(date)]
    assert len(lines) >= 3
    for name in lines:
        top, left, kept = RECORD["heights"][name]
        mine = heights(played(job_of(name), unrolled=False))
        assert (mine.top, mine.net, mine.saved) == (top, left, kept), name


def test_every_other_product_is_kept():
    """Operator by operator a block keeps wq, wv, w1 and w2 and what flash gave, beside the input that ``full`` keeps."""
    wide, narrow, inner, heads = 128, 32, 344, 8
    products = 2 * (wide + narrow + inner + wide)  # BF16; wk, wo and w3 are the second, fourth and sixth
    attention = ROWS * TOKENS * 2 * wide + 4 * ROWS * heads * TOKENS + 16 + 8  # result, log-sum-exp, seed and offset
    each = ROWS * TOKENS * products + attention
    modes = [saved(activation_checkpointing=mode) for mode in ("selective", "full")]
    assert modes[0] - modes[1] == 2 * each


def test_every_second_block():
    """``selective_ac_option: 2`` keeps all of blocks 0, 2, … and the input of the others alone."""
    whole, full = saved(), saved(activation_checkpointing="full")
    arguments = {"version": "2025-06-17", "selective_ac_option": 2}
    assert 2 * saved(activation_checkpointing="selective", implementation_args=arguments) == whole + full


def test_cudnn_was_not_on_the_list():
    """From October 2025 cuDNN comes first, and until December its result is made again in backward, on a GPU that takes it."""
    dates = ("2025-10-17", "2025-12-01")
    early, late = (saved(activation_checkpointing="selective", implementation_args={"version": date}) for date in dates)
    lse, seeds = 4 * ROWS * 8 * TOKENS, 8 + 8
    assert late - early == 2 * (ROWS * TOKENS * 128 * 2 + lse + seeds)


@pytest.mark.parametrize("option", ["op", 3])
def test_blocks_in_between_are_played_once(option):
    """A deep stack whose turns are repeated comes to what its blocks come to one by one, at depths that no turn divides."""
    for layers in (11, 13):
        job = {**JOB, "model": {**MODEL, "num_hidden_layers": layers}, "activation_checkpointing": "selective",
               "implementation_args": {"selective_ac_option": option}}  # fmt: skip
        assert heights(played(job, unrolled=False)) == heights(played(job, unrolled=True))


def test_tensors_are_its_own():
    """Names are torchtitan's, the head is never tied, and FSDP2's groups are paths of those modules."""
    read = read_job({**JOB, "model": {**MODEL, "tie_word_embeddings": True}})
    model = prepared(read_model(read.model), read)
    names = {tensor.name: tensor.shape for tensor in model.tensors}
    assert names["tok_embeddings.weight"] == names["output.weight"] == (304, 128)
    assert names["layers.*.feed_forward.w2.weight"] == (128, 344)
    for date, version in VERSIONS.items():
        read = read_job({**JOB, "implementation_args": {"version": date}})
        names = {tensor.name for tensor in prepared(read_model(read.model), read).tensors}
        for path in (path for group in version.units.groups for path in group):
            assert any(name.startswith(f"{path}.") for name in names), path


def test_a_date_between_two_is_the_earlier_ones():
    """Code is known from one commit to the next."""
    assert version_of("2026-01-26") == VERSIONS["2026-01-25"]
    assert version_of("2023-01-01") is None


def test_logits_in_chunks():
    """A chunk's FP32 logits and log-probabilities go with it but for what backward needs: the peak is lower, and what is saved
    beside the logarithms is each chunk's count of targets.
    """
    long = {"sequence_length": 64, "micro_batch_size": 1}
    wide = {**JOB, **long, "model": {**MODEL, "vocab_size": 4096}}
    whole, chunked = (
        heights(played({**wide, "implementation_args": {"version": "2025-03-25", "loss": loss}}))
        for loss in ("whole", "chunked")
    )
    assert chunked.top < whole.top
    totals = 7 * 4  # of every chunk after the first, what is kept is its own: nll_loss's total weight
    assert chunked.saved - whole.saved == totals
    with pytest.raises(NotModelledError, match="does not part into equal chunks; use a multiple of 8"):
        play_job({**JOB, "sequence_length": 100, "implementation_args": {"loss": "chunked"}})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"implementation_args": {"version": "2024-01-01"}}, InputError, "is before what is known of torchtitan"),
        ({"implementation_args": {"version": "2026-05-01"}}, NotModelledError, f"give a date up to {LAST}"),
        ({"implementation_args": {"version": LAST, "selective_ac_option": 2}}, InputError, "is gone since 2026-03-23"),
        ({"implementation_args": {"selective_ac_option": "ops"}}, InputError, "is none of torchtitan's; use op, or 2"),
        ({"implementation_args": {"loss": "fused"}}, InputError, "use whole or chunked"),
        ({"implementation_args": {"compile": True}}, InputError, "is not known to torchtitan"),
        ({"model": {"model_type": "gpt2"}}, NotModelledError, "is not modelled for GPT2LMHeadModel"),
        (
            {"model": {"model_type": "qwen3"}, "implementation_args": {"version": "2025-03-19"}},
            NotModelledError,
            "from 2025-08-25 on",
        ),
        ({"model": {**MODEL, "head_dim": 32}}, NotModelledError, "takes the width over the heads; use 16"),
        ({"model": {**MODEL, "attention_bias": True}}, NotModelledError, "use no biases"),
        ({"lora": {"r": 8}}, NotModelledError, "is not modelled on torchtitan"),
        ({"quantization": "nf4"}, NotModelledError, "is not modelled on torchtitan"),
    ],
)
def test_refusals(changes, kind, message):
    """What is not known is refused with a reason, and never played as something else."""
    read = read_job({**JOB, **changes})
    with pytest.raises(kind, match=message):
        prepared(read_model(read.model), read)


def test_many_sizes_are_each_one():
    """Peaks over an array of batches are those of single jobs, checkpointed operator by operator."""
    sizes = np.array([1, 2, 5, 8])
    job = {**JOB, "activation_checkpointing": "selective", "implementation_args": {}}
    read = read_job(job)
    together = peaks(read, read_model(read.model), "micro_batch_size", sizes)
    for size, peak in zip(sizes, together, strict=True):
        assert api.estimate_mapping({**job, "micro_batch_size": int(size)}).peak.rounded == peak


def test_logits_were_held_through_backward():
    """Until 2024-06-12 the trainer did not let go of them: what is saved, and the top, are more by the FP32 logits."""
    wide = {**JOB, "model": {**MODEL, "vocab_size": 8192}, "activation_checkpointing": "full"}
    held, gone = (heights(played({**wide, "implementation_args": {"version": date}})) for date in ("2024-06-06", "2024-06-12"))
    logits = ROWS * TOKENS * 8192 * 4
    assert (held.saved - gone.saved, held.top - gone.top, held.net) == (logits, logits, gone.net)


def test_resharding_always():
    """``always`` lets go of the last units after forward too; what is no policy of a job's is said."""
    keys = {**JOB, "precision": "fsdp2-mixed", "dp": 4, "zero_stage": 3, "zero_backend": "fsdp2"}
    told = [{"version": "2025-02-06"}, {"version": "2025-02-06", "reshard_after_forward": "always"}]
    jobs = [read_job({**keys, "implementation_args": one}) for one in told]
    stays, goes = (prepared(read_model(job.model), job) for job in jobs)
    units = load_implementation("torchtitan").units
    assert (units(stays).stays, units(goes).stays) == ((("layers.-1",),), ())
    assert units(stays).groups == units(goes).groups
    with pytest.raises(InputError, match="zero_stage 2"):
        api.estimate(**{**keys, "implementation_args": {"reshard_after_forward": "never"}})
