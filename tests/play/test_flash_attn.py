"""flash-attn's own kernels under transformers, against its own Python on a CPU and against counts made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import family_of, play_job, play_step
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.plan import make_plan
from memcalc.prepared import prepared
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc
from memcalc.tape.fold import fold, requested
from memcalc.tape.unroll import unroll
from tests.play.flash_attn_cases import CASES, FULL, PACKED, SMALL, asked
from tests.play.test_sharded import told
from tests.play.test_step import sizes

RECORDED = json.loads((Path(__file__).parent / "flash_attn.json").read_text())
LLAMA = {"model_type": "llama", **SMALL}


@pytest.mark.parametrize("name", CASES)
def test_a_played_step_is_that_of_flash_attns_own_python(name):
    """What is saved, the highest point and the gradients are those of transformers on flash-attn's functions, to the byte."""
    found = told(play_job(asked(CASES[name])))
    assert {key: found[key] for key in RECORDED[name]} == RECORDED[name]


@pytest.mark.parametrize("name", ["llama", "llama, packed, recomputed", "gemma2, packed"])
def test_layers_played_once_are_the_layers_played_one_by_one(name):
    """What one layer looks up, packs and keeps is the same in each."""
    job = asked(CASES[name])
    job["model"] = {**job["model"], "num_hidden_layers": 6}
    folded, whole = play_job(job), play_job(job, unrolled=True)
    assert sizes(folded.events) == sizes(whole.events)
    assert fold(folded.events, requested).stretch.top == fold(whole.events, requested).stretch.top


def named(job: dict[str, Any], *sites: str) -> dict[str, int]:
    """The sizes of buffers by these names, each of one size."""
    events = [event.buffer for event in unroll(play_job(job).events) if isinstance(event, Alloc)]
    found = {site: {buffer.requested for buffer in events if buffer.site.startswith(site)} for site in sites}
    assert all(len(each) == 1 for each in found.values()), found
    return {site: each.pop() for site, each in found.items()}


def test_backward_holds_a_block_more_for_each_sequence():
    """By hand: 4 heads of 16, widened to 32, over 96 tokens and 5 blocks of 128 rows; keys for all 4 heads, of 2, in BF16."""
    rows = 96 + 5 * 128
    found = named(asked(CASES["llama, packed"]), "softmax_d", "dq_accum", "dk_expanded", "dv_expanded")
    assert found == {
        "softmax_d": 4 * 4 * rows, "dq_accum": 4 * 4 * rows * 32, "dk_expanded": 2 * 96 * 64, "dv_expanded": 2 * 96 * 64,
    }  # fmt: skip


def test_rows_of_one_length_are_rounded_to_a_block():
    """By hand: two rows of 40 tokens take a block of 128 each, and a logsumexp of their own length."""
    found = named(asked(CASES["llama"]), "softmax_d", "dq_accum")
    assert found == {"softmax_d": 4 * 2 * 4 * 128, "dq_accum": 4 * 2 * 4 * 128 * 32}


def test_packed_rows_need_no_mask_of_their_square():
    """A packed row under torch's kernels has a mask of tokens x tokens, held throughout; flash-attn's need none."""
    job = {"model": {**LLAMA, "max_position_embeddings": 4096}, **PACKED, "sequence_length": 2048, "optimizer": "sgd"}
    ours = told(play_job({**job, "attention": "flash_attention_2"}))
    theirs = told(play_job(job))
    assert theirs["saved"] - ours["saved"] > 2048 * 2048


def test_arrays_of_lengths_are_each_job_alone():
    """Packed rows of several lengths at once have the folded heights of each alone."""
    read = read_job(asked(CASES["llama, packed"]))
    model, plan = prepared(read_model(read.model), read), make_plan(read)

    def heights(tokens: Any) -> Any:
        training = read.training.model_copy(update={"sequence_length": tokens})
        job = read.model_copy(update={"training": training})
        folded = fold(play_step(job, plan, model, family_of(model), Behaviour()).events, requested).stretch
        return folded.top, folded.total

    lengths = [96, 128, 1000]
    top, total = heights(np.array(lengths, dtype=np.int64))
    assert [(top[i], total[i]) for i in range(len(lengths))] == [heights(length) for length in lengths]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"packed_sequences": None}, NotModelledError, r"batch: packed leaves open how many sequences.*packed_sequences"),
        ({"packed_sequences": 1}, InputError, r"packed_sequences: 1 is a row of one sequence.*use batch full"),
        ({"batch": "full"}, InputError, r"packed_sequences: 5 are sequences of packed rows, and these are not"),
        ({"packed_sequences": 97}, InputError, r"packed_sequences: 97 are more than a row's 96 tokens"),
        ({"micro_batch_size": 2}, InputError, r"micro_batch_size: 2 are more than the one row"),
        ({"precision": "fp32"}, InputError, r"flash_attention_2 takes FP16 and BF16 alone"),
        ({"gpu": "v100-32gb"}, InputError, r"flash_attention_2 asks for compute capability 8\.0"),
    ],
)
def test_what_flash_attn_does_not_take_is_an_error(given, error, said):
    """Sequences that nobody counted, several packed rows, FP32 and old GPUs are refused with a way out."""
    with pytest.raises(error, match=said):
        estimate_mapping({**asked({"model": LLAMA, **PACKED}), **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": "padded"}, "padded leaves open how many tokens are left"),
        ({"model": {"model_type": "gpt2"}}, "flash_attention_2 is not modelled of this model"),
        ({"model": {"model_type": "deepseek_v3", "num_hidden_layers": 2}}, "whose values are narrower than queries"),
        ({"model": LLAMA, "implementation": "torchtitan"}, "flash_attention_2 is not modelled of this model"),
    ],
)
def test_what_is_not_modelled_has_no_peak(given, said):
    """Padded rows, other families and other projects' code leave the verdict open."""
    answer = estimate_mapping({**asked({"model": LLAMA, **FULL}), **given})
    assert answer.peak.allocated is None
    assert any(said in warning for warning in answer.warnings), answer.warnings


def test_capped_scores_are_not_dropped():
    """Gemma 2's capped scores under dropout are refused by the kernel, and so here."""
    with pytest.raises(InputError, match="caps no scores under dropout"):
        play_job(asked({**CASES["gemma2, packed"], "model": {**CASES["gemma2, packed"]["model"], "attention_dropout": 0.1}}))
