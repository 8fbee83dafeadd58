"""Caches quantised by quanto and HQQ: held against traces and real updates on a CPU, and counted by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.played.cases import MODELS
from benchmarks.played.forwards import height
from benchmarks.played.quantised import KINDS, SHORT, jobs, named, recorded, told, updates
from memcalc.api import estimate_mapping
from memcalc.cache_options import cache_options
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.engines.analytic.evaluating import play_job, tape_of
from memcalc.engines.analytic.many import peaks
from memcalc.errors import InputError
from memcalc.job import read_job
from memcalc.play.caching_grouped import GroupedCache
from memcalc.play.hqq import HQQ
from memcalc.play.machine import Machine
from memcalc.play.policy import Policy
from memcalc.play.quanto import Quanto
from memcalc.readers.source import read_model

RECORDED = recorded()
NUMBERS = 64
"""Bytes of the numbers that a CPU wraps as tensors for an operator, and CUDA does not."""
LLAMA: dict[str, Any] = {"model_type": "llama", **MODELS["llama"]}


def job(kind: str, **keys: Any) -> dict[str, Any]:
    """A small llama that decodes."""
    usual = {"model": LLAMA, "mode": "decode", "context_length": 60, "cache_args": SHORT}
    return {**usual, "micro_batch_size": 2, "precision": "bf16", "cache": kind, **keys}


@pytest.mark.parametrize("kind", KINDS)
def test_a_played_forward_is_its_trace(kind):
    """Cache and height are a trace's to the byte, with the packages' own code; what the allocator counts within a hundredth."""
    for one in jobs(kind):
        whole, seen = estimate_whole(read_job(one), read_model(one["model"])), RECORDED[kind][named(one)]
        found = whole.footprint
        assert (found.components.cache, height(whole.tape)[0]) == (seen["cache"], seen["top"]), one
        beside = found.components.workspace
        assert found.peak.allocated == pytest.approx(seen["allocated"], abs=0.01 * (seen["allocated"] - beside)), one


@pytest.mark.parametrize("case", updates(), ids=told)
def test_updates_are_real_ones_on_a_cpu(case):
    """A prompt and tokens after it, each update's highest point and what it leaves, are what a profiler counts."""
    options = cache_options(case["kind"], case["options"])
    backend = Quanto(options) if case["kind"] == "quantized-quanto" else HQQ(options, narrow="float32")
    machine, cache = Machine(Policy(case["dtype"])), GroupedCache(0, 0, options, backend)
    machine.recording = machine.training = False
    for tokens, (top, held) in zip(case["tokens"], RECORDED["updates"][told(case)], strict=True):
        shape = (case["rows"], case["heads"], tokens, case["dim"])
        key, value = machine.new(shape, case["dtype"], "given"), machine.new(shape, case["dtype"], "given")
        start = len(machine.tape)
        made = cache.update(machine, key, value)
        live = np.cumsum([sign * life.size for sign, life in machine.tape[start:]])
        del key, value, made
        cache.past += tokens
        assert 0 <= top - live.max() <= NUMBERS
        assert sum(sign * life.size for sign, life in machine.tape) == held


def test_what_is_kept_by_hand():
    """Half a byte an element of what is quantised, with two numbers for each group of 16; the newest tokens as they are."""
    layers, rows, heads, dim, numbers = 2, 2, 2, 16, 2
    token = rows * heads * dim
    in_full = job("quantized-quanto", context_length=59)
    kept = 2 * layers * (60 * token // 2 + 60 * token // 16 * 2 * numbers)  # it has just been quantised anew
    assert height(tape_of((), play_job(in_full)))[1] == kept
    short = job("quantized-quanto", context_length=10)
    kept = 2 * layers * (token // 2 + token // 16 * 2 * numbers + 10 * token * numbers)  # the first of eleven tokens alone
    assert height(tape_of((), play_job(short)))[1] == kept
    said = estimate_mapping(in_full).assumptions
    assert any("the step is the one in 16 that quantises the cache anew" in each for each in said)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_played_once_and_counted_are_the_layers_played_one_by_one(kind):
    """A stack played as first, middle times n, last comes to what one does whose layers are all played."""
    for sizes in ({"context_length": 33}, {"context_length": 5}):
        asked = job(kind, model={**LLAMA, "num_hidden_layers": 5}, **sizes)
        folded, whole = (tape_of((), play_job(asked, count=2, unrolled=unrolled)) for unrolled in (False, True))
        assert height(folded) == height(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_contexts_are_each_context_alone(kind):
    """Contexts as an int64 array give, element by element, the peak of each job alone."""
    values = [1, 2, 15, 16, 17, 60, 501]
    asked = {key: value for key, value in job(kind).items() if key != "context_length"}
    together = peaks(read_job(asked), read_model(LLAMA), "context_length", values)
    assert together.tolist() == [estimate_mapping({**asked, "context_length": c}, replayed=False).peak.rounded for c in values]


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("quanto", {"nbits": 3}, "inference.cache_args.nbits: 3 is not what a quantized-quanto cache takes; use 2 or 4"),
        ("quanto", {"axis_key": 1}, "inference.cache_args.axis_key: 1 is not what a quantized-quanto cache takes; use 0 or -1"),
        ("hqq", {"axis_value": -1}, "inference.cache_args.axis_value: -1 is not what a quantized-hqq cache takes; use 0 or 1"),
        ("hqq", {"bits": 4}, "inference.cache_args.bits: 4 is no option of a quantized-hqq cache; use nbits, axis_key,"),
        ("quanto", {"residual_length": -1}, "residual_length: -1 is no number of them; use an integer from 0 on"),
        ("quanto", {"q_group_size": 0}, "q_group_size: 0 is no number of them; use an integer from 1 on"),
        ("quanto", {"q_group_size": 64}, "q_group_size: 64 does not divide a sample's elements of all heads; use a divisor"),
        ("quanto", {"q_group_size": 64, "axis_key": -1}, "q_group_size: 64 does not divide the tokens of all samples and"),
        ("hqq", {"q_group_size": 48}, "q_group_size: 48 does not divide a layer's keys"),
        ("hqq", {"q_group_size": 2, "nbits": 2}, "nbits: 2 takes a q_group_size that is a multiple of 4; use axis 0 and such"),
        ("hqq", {"nbits": 3, "axis_key": 1}, "nbits: 3 is not read back along axis 1 by HQQ; use axis 0 or 4 bits"),
    ],
)
def test_what_the_packages_do_not_take_is_refused(kind, options, said):
    """Options and groups at which quanto, HQQ or transformers fail name their path, value, rule and way out."""
    with pytest.raises(InputError) as error:
        estimate_mapping(job(f"quantized-{kind}", cache_args={**SHORT, **options}))
    assert said in str(error.value)


def test_layers_that_slide_are_refused():
    """QuantizedCache takes none of them."""
    model = {"model_type": "mistral", **MODELS["mistral"]}
    with pytest.raises(InputError, match="quantized-hqq takes no layers that slide"):
        estimate_mapping(job("quantized-hqq", model=model))


def test_the_record_is_of_these_cases():
    """What was traced and run is what is played."""
    assert {*RECORDED["updates"]} == {json.dumps(case) for case in updates()}
