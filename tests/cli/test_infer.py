"""``memcalc infer``, as a person calls it."""

from __future__ import annotations

import json

import pytest

WORDS = ("infer", "gpt2", "--precision", "bf16", "--context-length", 64, "--micro-batch-size", 3)


def test_a_step_of_decoding_is_the_default(memcalc):
    """The cache has a line of its own: two bytes an element of keys and values of every token and layer."""
    answer = memcalc(*WORDS, "--gpu", "h100-80gb")
    assert answer.code == 0
    assert "decode · bf16 · dynamic cache · 64 tokens in it" in answer.out
    assert "keys and values" in answer.out
    found = json.loads(memcalc(*WORDS, "--format", "json").out)
    assert found["job"]["mode"] == "decode"
    assert found["components"]["gradients"] == found["components"]["optimizer_states"] == 0
    grown = 65 * 3 * 12 * 2 * 768 * 2  # a layer's keys grow by being copied, the old ones alive until the new are there
    assert found["components"]["cache"] == grown + 64 * 3 * 768 * 2


def test_what_does_not_fit_is_exit_1(memcalc):
    """A memory smaller than the parameters is no, as it is of a training step."""
    assert memcalc(*WORDS, "--memory", "100MiB").code == 1


@pytest.mark.parametrize("engine", ["analytic", "trace"])
def test_the_allocator_s_settings_are_heeded(memcalc, engine):
    """Under expandable segments what is allocated is what is asked for in whole blocks, whichever engine is asked."""
    if engine == "trace":
        pytest.importorskip("transformers", reason="its model is what is traced")
    words = (*WORDS, "--engine", engine, "--allocator", "expandable_segments:True", "--format", "json")
    found = json.loads(memcalc(*words).out)
    assert found["peak"]["allocated"] == found["peak"]["rounded"]
    assert found["job"]["behaviour"]["allocator"] == "expandable_segments:True"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mode", "evaluate"), "inference.context_length: 64 is of no use in mode evaluate"),
        (("--cache", "paged"), "inference.cache: paged is not one of the choices"),
        (("--allocator", "expandable_segment:True"), "did you mean expandable_segments"),
        (("--set", "training.optimizer=sgd"), "training.optimizer"),
        (("--set", "training.optimizer_in_backward=true"), "training.optimizer_in_backward: True is of no use in mode decode"),
        (
            ("--set", "training.cross_entropy=liger"),
            "training.cross_entropy: liger is of no use in mode decode, which has no loss",
        ),
        (("--set", "training.mode=train"), "--set training.mode: train is not a key of training"),
    ],
)
def test_what_cannot_be_is_one_clear_error(memcalc, words, says):
    """Keys of another mode, unknown caches, misspelt settings and keys of training are refused by their path."""
    answer = memcalc(*WORDS, *words)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err


@pytest.mark.parametrize(("words", "said"), [
    (("gpt2",), {"context_length is 128"}),
    (("gpt2", "--mode", "prefill"), {"sequence_length is 128"}),
    (("t5-small",), {"context_length is 128", "source_length is 128"}),
    (("t5-small", "--mode", "prefill"), {"sequence_length is 128", "source_length is sequence_length"}),
    (("gpt2", "--set", "n_positions=64"), {"context_length is 63"}),
    (("gpt2", "--context-length", "7"), set()),
])  # fmt: skip
def test_every_length_that_was_assumed_is_told(memcalc, words, said):
    """What the job leaves open is among the assumptions, and nothing that it says."""
    told = json.loads(memcalc("infer", *words, "--format", "json").out)["assumptions"]
    assert {line for line in told if "_length is" in line} == said
