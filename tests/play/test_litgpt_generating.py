"""Litgpt's generate/base.py: forwards held against traces of litgpt's own code, a cache and 4 bits by hand, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.played.forwards import height
from benchmarks.played.litgpt_cases import CAPACITY, jobs, name_of, recorded
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.engines.analytic.evaluating import play_job, tape_of
from memcalc.engines.analytic.many import peaks
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from memcalc.readers.source import read_model

RECORDED = recorded()
JOBS = {name_of(name, job): job for name, job in jobs()}
LLAMA = JOBS["llama, grouped 2024-08-02 bf16-pure decode"]
"""5 layers of 4 heads of 16, two of them of keys and values; 64 features, 176 within, 128 words; 40 tokens and one more."""
LAYERS, HEADS, HEAD, WIDTH, INNER, WORDS, CONTEXT = 5, 4, 16, 64, 176, 128, 40


def test_every_job_has_its_trace():
    """Nothing is recorded that is not asked, and nothing asked that is not recorded."""
    assert set(JOBS) == set(RECORDED), "record it anew: python -m benchmarks.played.litgpt_cases CLONE"


@pytest.mark.parametrize("name", [name for name in JOBS if "2024-08-02" in name or "bf16-pure prefill" in name])
def test_a_played_forward_is_its_trace(name):
    """The cache, the height over what is there throughout, and what the allocator counts, to the byte."""
    job, seen = JOBS[name], RECORDED[name]
    whole = estimate_whole(read_job({**job, "micro_batch_size": 1}), read_model(job["model"]))
    assert height(whole.tape) == (seen["top"], seen["cache"])
    assert whole.footprint.peak.allocated == seen["allocated"]


def test_the_cache_has_a_head_for_every_query():
    """Until 17a58dfa keys and values are repeated before they are kept, unless one head serves all."""
    token = 2 * HEAD * 2
    assert estimate_mapping(LLAMA).components.cache == LAYERS * HEADS * CAPACITY * token
    shared = JOBS["falcon 2024-08-02 bf16-pure decode"]
    assert estimate_mapping(shared).components.cache == LAYERS * CAPACITY * token


def test_what_is_there_besides():
    """Rotary tables in FP32 and a mask of bytes are as long as the cache; the positions that are read are whole numbers."""
    parts = estimate_mapping(LLAMA).components
    assert parts.buffers == 2 * 4 * CAPACITY * HEAD + CAPACITY**2
    assert parts.inputs == 2 * 8  # one token and its place
    old = JOBS["llama, grouped 2023-10-16 bf16-pure decode"]
    assert estimate_mapping(old).components.buffers == 2 * 2 * CAPACITY * HEAD + CAPACITY**2


def test_autocast_casts_the_cache_once_and_the_weights_each_time():
    """Under autocast a prompt finds a cache in FP32 and leaves one in BF16; each matrix has a copy to the end."""
    job = JOBS["llama, grouped 2024-08-02 amp-bf16 prefill"]
    matrices = LAYERS * ((HEADS + 2 * 2) * HEAD * WIDTH + WIDTH**2 + 3 * WIDTH * INNER) + WORDS * WIDTH
    found = estimate_mapping(job)
    assert found.components.parameter_copies == 2 * matrices
    assert (
        found.components.cache == LAYERS * HEADS * CAPACITY * 2 * HEAD * 4 + 2 * HEADS * CAPACITY * HEAD
    )  # the first copy too
    assert estimate_mapping({**job, "mode": "decode", "sequence_length": None, "context_length": 40}).components.cache == (
        LAYERS * HEADS * CAPACITY * 2 * HEAD * 2
    )


def test_four_bits_are_read_as_they_are_for_one_token_alone():
    """A prompt dequantises each matrix, to FP16 and then to its own dtype; a single token has a kernel that reads 4 bits."""
    job = {**LLAMA, "quantization": "nf4", "behaviour": {"gpu": "a100-40gb"}}
    found, plain = estimate_mapping(job).components, estimate_mapping(LLAMA).components
    count = LAYERS * 5 + 1
    matrices = LAYERS * ((HEADS + 2 * 2) * HEAD * WIDTH + WIDTH**2 + 3 * WIDTH * INNER) + WORDS * WIDTH
    assert found.parameters == plain.parameters - 2 * matrices + matrices // 2
    assert found.buffers == plain.buffers + 4 * matrices // 64 + count * 4 * 16  # scales of 64 weights, tables of 16 values
    single = height(tape_of((), play_job(job)))[0]
    prompt = height(tape_of((), play_job({**_prompt(job), "sequence_length": 2})))[0]
    widest = 2 * INNER * WIDTH
    assert single < RECORDED["llama, grouped 2024-08-02 bf16-pure decode"]["top"] + 64
    assert prompt - single > 2 * widest
    nested = height(tape_of((), play_job({**job, "quantization": "nf4-double"})))[0]
    assert nested >= single


def _prompt(job: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in job.items() if key != "context_length"}, "mode": "prefill"}


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_layers_played_once_and_counted_are_the_layers_played_one_by_one(mode):
    """A stack played as first, middle times n, last comes to what one does whose layers are all played."""
    job = JOBS[f"phi 2024-08-02 amp-bf16 {mode}"]
    folded, unrolled = (tape_of((), play_job(job, unrolled=each)) for each in (False, True))
    assert height(folded) == height(unrolled)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_many_jobs_at_once_are_each_of_them(mode):
    """An array of sizes gives what every one of them gives by itself."""
    key = "sequence_length" if mode == "prefill" else "context_length"
    job = {**(LLAMA if mode == "decode" else _prompt(LLAMA)), "quantization": "nf4"}
    sizes = [1, 7, 32, 60]
    first, model = read_job({**job, key: sizes[0]}), read_model(LLAMA["model"])
    alone = [estimate_whole(read_job({**job, key: size}), model).footprint.peak.rounded for size in sizes]
    assert np.array_equal(peaks(first, model, key, sizes), alone)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"mode": "evaluate", "context_length": None}, NotModelledError, "litgpt has no mode evaluate yet"),
        (
            {"implementation": "torchtune", "implementation_args": {"builder": "llama2"}},
            NotModelledError,
            "torchtune has no mode decode yet",
        ),
        ({"cache": "dynamic"}, InputError, "inference.cache: dynamic is not litgpt's, whose cache is of a fixed length"),
        ({"context_length": CAPACITY}, InputError, "is less than the 62 tokens"),
        ({"lora": {"r": 8}}, NotModelledError, "is merged into the weights before litgpt generates"),
        (
            {"implementation_args": {"version": "2025-03-01"}},
            NotModelledError,
            "is of code whose cache is another",
        ),
        ({"dp": 2}, NotModelledError, "2 ranks are not modelled in mode decode"),
    ],
)
def test_what_cannot_be_asked(changes, kind, message):
    """Other caches, ranks, adapters and modes are refused, each with its place."""
    told = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    if changes.get("mode") == "evaluate":
        told.pop("max_cache_length")
    with pytest.raises(kind) as caught:
        estimate_mapping(told)
    assert message in str(caught.value)


def test_the_cache_is_told_as_litgpt_keeps_it():
    """The job as understood names a static cache, whose length is what the step needs where nobody says."""
    job = {key: value for key, value in LLAMA.items() if key != "max_cache_length"}
    told = estimate_mapping(job).job["inference"]
    assert (told["cache"], told["max_cache_length"], told["context_length"]) == ("static", CONTEXT + 1, CONTEXT)
