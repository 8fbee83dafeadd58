"""Jobs that are read from formulas, held against the same jobs played alone."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from memcalc import estimate
from memcalc.api import estimate_mapping, estimate_read
from memcalc.engines.analytic import structures
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.errors import InputError
from memcalc.job import read_job
from memcalc.readers.source import read_model
from memcalc.sweep.solve import Solver

LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 4096,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2,
    "vocab_size": 1000,
}  # fmt: skip
GEMMA = {
    "model_type": "gemma3_text", "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 1000, "sliding_window": 40, "sliding_window_pattern": 3,
}  # fmt: skip
CASES = {
    "llama": {"model": LLAMA},
    "bf16, packed": {"model": LLAMA, "precision": "bf16", "batch": "packed"},
    "checkpointing, accumulation": {"model": LLAMA, "activation_checkpointing": "full", "gradient_accumulation_steps": 4},
    "every second layer": {"model": LLAMA, "activation_checkpointing": "every-2"},
    "eager, clipped": {"model": LLAMA, "attention": "eager", "max_grad_norm": 1.0, "precision": "fp16"},
    "LoRA": {"model": LLAMA, "lora": {"r": 8}},
    "frozen": {"model": LLAMA, "freeze": ["model.layers.0"]},
    "liger": {"model": LLAMA, "cross_entropy": "liger"},
    "in backward": {"model": LLAMA, "optimizer_in_backward": True, "optimizer": "sgd", "precision": "bf16-pure"},
    "DDP": {"model": LLAMA, "dp": 4},
    "FSDP2": {"model": LLAMA, "dp": 4, "zero_stage": 3, "zero_backend": "fsdp2"},
    "ZeRO-2": {"model": LLAMA, "dp": 4, "zero_stage": 2},
    "ZeRO-3": {"model": LLAMA, "dp": 4, "zero_stage": 3},
    "gpt2": {"model": "distilgpt2"},
    "t5": {"model": T5},
    "whisper": {"model": "whisper-tiny"},
    "bert": {"model": "distilbert-base-uncased"},
    "deberta": {"model": "deberta-v3-small"},
    "clip": {"model": "clip-vit-base-patch32"},
    "mamba": {"model": "mamba-130m-hf"},
    "mixture": {"model": "qwen1.5-moe-a2.7b"},
    "gemma 3": {"model": GEMMA},
    "resnet": {"model": "resnet-18"},
    "ViT": {"model": "vit-base-patch16-224"},
    "litgpt": {"model": "pythia-70m", "implementation": "litgpt"},
    "on a GPU": {"model": LLAMA, "gpu": "a100-80gb", "optimizer": "lion"},
}
NO_FORMULAS = {"ZeRO-2"}
"""Which of its ranks is the highest differs from job to job."""


@pytest.fixture
def kinds(monkeypatch):
    """What this process has played, forgotten, and code that cannot work on formulas without saying so an error."""
    monkeypatch.setattr(structures.Kinds, "strict", True)
    monkeypatch.setattr(structures, "ALONE", 1)
    fresh = structures.Kinds()
    monkeypatch.setattr(structures, "KNOWN", fresh)
    return fresh


def alone(mapping, replayed, kinds):
    """The footprint of a job in a process that knows nothing."""
    known, kinds.known = kinds.known, {}
    try:
        return estimate_mapping(mapping, replayed=replayed)
    finally:
        kinds.known = known


@pytest.mark.parametrize("name", CASES)
def test_a_job_read_from_formulas_is_the_job_played_alone(kinds, name):
    """Every figure, the breakdown at the peak, its instant, phases and verdict of jobs of a kind, allocator and all."""
    sizes = random.Random(name)
    vision = name in ("resnet", "ViT")
    model = read_model(CASES[name]["model"])
    for number in range(3):
        replayed = number == 2
        mapping = {**CASES[name], "micro_batch_size": sizes.randint(2, 6)}
        if not vision:
            mapping["sequence_length"] = sizes.randint(2, 77)
        job = read_job(mapping)
        expected = alone(mapping, replayed, kinds)
        assert expected.peak.requested is not None
        found = estimate_read(job, model, replayed=replayed)
        assert found == expected
    assert any(kind.structures for kind in kinds.known.values()) is (name not in NO_FORMULAS)


def test_sizes_of_one_are_their_own_kind(kinds):
    """Jobs of one row, or of one token, are not read from formulas of more."""
    for rows, tokens in ((4, 64), (5, 64), (3, 9), (1, 64), (1, 30), (1, 31), (3, 1), (1, 1)):
        mapping = {"model": LLAMA, "micro_batch_size": rows, "sequence_length": tokens}
        assert estimate_mapping(mapping, replayed=False) == alone(mapping, False, kinds), (rows, tokens)


def test_models_of_one_name_are_not_mixed_up(kinds):
    """Two models that differ in a number, asked for in turns, each have their own formulas."""
    small, large = LLAMA, {**LLAMA, "hidden_size": 512}
    for tokens in (20, 23, 26):
        for config in (small, large):
            mapping = {"model": config, "micro_batch_size": 2, "sequence_length": tokens}
            assert estimate_mapping(mapping, replayed=False) == alone(mapping, False, kinds)


def test_tensors_that_were_changed_are_another_model(kinds):
    """A model of the same config whose tensors are held in another dtype is not answered for the first."""
    model = read_model("distilgpt2")
    other = replace(model, tensors=tuple(replace(tensor, dtype="bfloat16") for tensor in model.tensors))
    for tokens in (20, 30, 40):
        jobs = read_job({"model": "distilgpt2", "precision": "as-is", "micro_batch_size": 2, "sequence_length": tokens})
        found = [estimate_whole(jobs, one, replayed=False).footprint.components.parameters for one in (model, other)]
        assert found[0] == 2 * found[1]


def test_many_threads_may_ask(kinds, monkeypatch):
    """Threads that ask for more kinds than are remembered each get the answer that they would get alone."""
    monkeypatch.setattr(structures, "KINDS", 1)
    mappings = [{"model": {**LLAMA, "vocab_size": 900 + size % 3}, "micro_batch_size": 2, "sequence_length": size}
                for size in range(8, 17)]  # fmt: skip
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(partial(estimate_mapping, replayed=False), mappings))
    assert found == [alone(mapping, False, kinds) for mapping in mappings]


def test_more_bytes_than_there_can_be_are_refused(kinds):
    """A step of 2**63 bytes and more is an error, as so many bytes of states are."""
    with pytest.raises(InputError, match="the step"):
        estimate(LLAMA, micro_batch_size=2**31, sequence_length=2**20)


def test_what_is_remembered_has_an_end(kinds, monkeypatch):
    """A process that asks for many kinds of jobs keeps the latest of them."""
    monkeypatch.setattr(structures, "KINDS", 3)
    for heads in (1, 2, 4, 8, 16):
        estimate({**LLAMA, "num_attention_heads": heads, "num_key_value_heads": 1}, micro_batch_size=2, sequence_length=8)
    assert len(kinds.known) == 3


def test_a_bad_size_is_refused_as_before(kinds):
    """After jobs that were read from formulas, a size that cannot be is the same error as it was for the first job."""
    for tokens in (20, 30, 40, 50):
        estimate(LLAMA, micro_batch_size=2, sequence_length=tokens)
    with pytest.raises(InputError, match="sequence_length"):
        estimate(LLAMA, micro_batch_size=2, sequence_length=0)


def test_strictness_is_for_tests():
    """Outside of tests, what goes wrong with formulas costs time and nothing else."""
    assert structures.Kinds.strict is False
    assert Solver.strict is False


def test_the_first_jobs_of_a_kind_are_played_alone(monkeypatch):
    """To play with formulas pays only where there are several jobs of a kind; a command that asks once never does."""
    fresh = structures.Kinds()
    monkeypatch.setattr(structures, "KNOWN", fresh)
    for number in range(structures.ALONE + 3):
        estimate(LLAMA, micro_batch_size=2, sequence_length=20 + number)
        (kind,) = fresh.known.values()  # though the model is read anew each time
        assert bool(kind.structures) is (number >= structures.ALONE - 1)
        assert kind.jobs == min(number + 1, structures.ALONE)
