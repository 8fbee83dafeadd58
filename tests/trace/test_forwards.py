"""Forwards without gradients under torch: real caches on a CPU, and a loop of one's own beside the engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.played.cases import MODELS
from benchmarks.played.forwards import READ, height
from benchmarks.played.loops import looped
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.evaluating import play_job, tape_of
from memcalc.engines.trace.estimate import trace_job
from memcalc.job import read_job
from memcalc.runtime.build import build
from memcalc.runtime.caching import cached_bytes
from memcalc.runtime.inference import Forwards, Running
from memcalc.runtime.inputs import make_batch

CACHED = {
    "llama": {}, "mistral": {"sliding_window": 24}, "gemma3_text": {"sliding_window": 24}, "deepseek_v3": {}, "gpt2": {},
    "gpt_bigcode": {}, "t5": {}, "opt": {}, "bloom": {}, "falcon": {}, "gptj": {}, "gpt_neo": {}, "mpt": {},
}  # fmt: skip
"""Grouped queries, windows, kinds that alternate, latents, as many keys as heads, one key, two sides, and position biases."""
ONE_KEY = {key: value for key, value in MODELS["falcon"].items() if key not in ("num_kv_heads", "new_decoder_architecture")}
FALCONS = [
    {**ONE_KEY, "multi_query": True, "alibi": True, "bias": True},
    {**ONE_KEY, "multi_query": False, "alibi": True, "parallel_attn": False},
]
"""Position biases, with one key and value and with as many as heads."""


def at_work(job: dict[str, Any]) -> int:
    """Bytes of a real cache on the CPU, in FP32, after the forward that is asked for."""
    asked = read_job(job)
    built = build(asked)
    running = Running(
        built.module, make_batch(built.inputs, "cpu", "float32", 0), Forwards.of(asked, built.module.config, None)
    )
    running.prepare()
    for _ in range(1 if job["mode"] == "prefill" else 2):
        running.step()
    return cached_bytes(running.cache, "cpu")


@pytest.mark.parametrize("family", CACHED)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_is_that_of_a_real_forward(family, cache):
    """What transformers' cache holds on a CPU after a prompt and after steps of decoding is what is played, to the byte."""
    if (family, cache) == ("t5", "static"):
        pytest.skip("not modelled: a fixed cache beside an encoder's")
    model = {"model_type": family, **MODELS[family], **CACHED[family]}
    usual = {"model": model, "precision": "fp32", "micro_batch_size": 2, "cache": cache}
    for sizes in ({"mode": "prefill", "sequence_length": 30}, {"mode": "decode", "context_length": 33}):
        job = {**usual, **sizes}
        assert at_work(job) == height(tape_of((), play_job(job)))[1], sizes


def agree(job: dict[str, Any]) -> None:
    """Hold a forward against its trace: the height and what the cache holds, to the byte."""
    seen, told = trace_job(read_job({**job, "engine": "trace"})), play_job(job, count=2)
    assert height(seen.tape) == height(tape_of((), told)), job


@pytest.mark.parametrize("model", FALCONS)
def test_falcon_s_layouts_are_their_traces(model):
    """Old layouts of Falcon under position biases are played as they are traced, with kernels and written out."""
    usual = {"model": {"model_type": "falcon", **model}, "precision": "bf16-pure", "micro_batch_size": 3}
    agree({**usual, "mode": "prefill", "sequence_length": 40})
    agree({**usual, "mode": "decode", "context_length": 50, "attention": "eager"})


@pytest.mark.parametrize("family", sorted(READ))
def test_a_static_cache_whose_length_is_read_on_the_host(family, monkeypatch):
    """Families that ask a static cache how many tokens it holds are their traces, once Python counts them for a trace.

    What is played has one scalar more, in which the forward adds the new tokens to that count.
    """
    from transformers.cache_utils import StaticLayer

    update, seen = StaticLayer.update, {}

    def counted(layer, keys, *args, **kwargs):
        seen[id(layer)] = seen.get(id(layer), 0) + keys.shape[-2]
        return update(layer, keys, *args, **kwargs)

    monkeypatch.setattr(StaticLayer, "update", counted)
    monkeypatch.setattr(StaticLayer, "get_seq_length", lambda layer: seen.get(id(layer), 0))
    job = {"model": {"model_type": family, **MODELS[family]}, "precision": "bf16-pure", "micro_batch_size": 3, "mode": "decode",
           "context_length": 40, "cache": "static", "max_cache_length": 64}  # fmt: skip
    traced = height(trace_job(read_job({**job, "engine": "trace"})).tape)
    top, cache = height(tape_of((), play_job(job, count=2)))
    assert (top - 8, cache) == traced


def test_quantised_to_eight_bits_it_is_a_real_forwards_too():
    """An FP8 cache is half as large as one in BF16, and its scales."""
    job = {"model": {"model_type": "llama", **MODELS["llama"]}, "precision": "fp32", "micro_batch_size": 2, "mode": "decode",
           "context_length": 20, "cache": "quantized-fp8"}  # fmt: skip
    assert at_work(job) == height(tape_of((), play_job(job)))[1] == 2 * 2 * (2 * 2 * 21 * 16 + 4)


@pytest.mark.parametrize(("kind", "package"), [("quanto", "optimum.quanto"), ("hqq", "hqq.core.quantize")])
def test_groups_are_traced_where_their_package_is_there(kind, package):
    """With a package installed, its own code quantises under a trace, and takes what is played."""
    pytest.importorskip(package)
    usual = {"model": {"model_type": "llama", **MODELS["llama"]}, "precision": "bf16-pure", "micro_batch_size": 2}
    options = {"residual_length": 8, "q_group_size": 16}
    agree({**usual, "mode": "decode", "context_length": 20, "cache": f"quantized-{kind}", "cache_args": options})


@pytest.mark.parametrize("kind", ["quanto", "hqq"])
def test_a_package_that_is_not_there_is_asked_for(kind):
    """A trace of a quantised cache without its back end says what to install."""
    from importlib.util import find_spec

    from memcalc.errors import MissingPackageError

    if find_spec("optimum" if kind == "quanto" else "hqq") is not None:
        pytest.skip("it is there")
    job = {"model": {"model_type": "llama", **MODELS["llama"]}, "precision": "bf16-pure", "mode": "prefill",
           "cache": f"quantized-{kind}", "sequence_length": 8, "engine": "trace"}  # fmt: skip
    with pytest.raises(MissingPackageError, match="install"):
        trace_job(read_job(job))


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_a_loop_of_ones_own_is_traced_without_an_optimizer(mode):
    """A person's decoding loop under tracing, its cache named, comes to what the analytic engine says."""
    sizes = {"sequence_length": 40} if mode == "prefill" else {"context_length": 40}
    job = {
        "model": {"model_type": "llama", **MODELS["llama"]},
        "precision": "bf16",
        "micro_batch_size": 2,
        "mode": mode,
        **sizes,
    }
    found, seen = looped(job), estimate_mapping(job)
    top, cache = height(tape_of((), play_job(job)))
    assert (height(found.tape)[0], found.cache) == (top, cache)
    assert found.peak("allocated") == pytest.approx(seen.peak.allocated, abs=0.01 * top)


def test_a_trace_takes_a_mode_through_the_library():
    """Engine trace answers a decoding job as the analytic engine does, component by component."""
    from memcalc.api import trace

    job = {"precision": "bf16", "micro_batch_size": 2, "mode": "decode", "context_length": 40}
    model = {"model_type": "qwen2", **MODELS["qwen2"]}
    seen, told = trace(model, **job), estimate_mapping({"model": model, **job})
    for name in ("parameters", "buffers", "cache", "inputs", "gradients", "optimizer_states", "workspace"):
        assert getattr(seen.components, name) == getattr(told.components, name), name
    assert seen.job["training"]["optimizer"] is None
    assert torch.is_grad_enabled()
