"""Gemma 3 with an image in each row: counts made by hand, recorded traces, arrays, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.played.against import heights, played
from benchmarks.played.cases import MODELS
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError
from memcalc.job import read_job
from tests.play.batches import check_arrays

GEMMA3: dict[str, Any] = MODELS["gemma3"]
SEEN, READ = GEMMA3["vision_config"], GEMMA3["text_config"]
PLACES = (SEEN["image_size"] // SEEN["patch_size"]) ** 2


def job(**keys: Any) -> dict[str, Any]:
    """A small Gemma 3 without a pooling head, as those published; one image a row."""
    model = {"model_type": "gemma3", **GEMMA3, "vision_config": {**SEEN, "vision_use_head": False}}
    return {"model": model, "optimizer": "adamw", "precision": "bf16", "micro_batch_size": 3, "sequence_length": 33, **keys}


TRACED = [
    ({"image_size": 32}, (5_910_957, 2_061_056, 5_670_977)),
    (
        {"image_size": 32, "precision": "amp-fp16", "attention": "eager", "activation_checkpointing": "full"},
        (5_356_087, 4_122_112, 670_199),
    ),
    (
        {"image_size": 32, "precision": "amp-bf16", "micro_batch_size": 1, "sequence_length": 40},
        (4_752_336, 4_122_112, 4_507_288),
    ),
]
"""What traces came to: the highest point, what is left, what is saved."""


@pytest.mark.parametrize(("keys", "expected"), TRACED)
def test_an_image_is_its_trace(keys, expected):
    """Recorded traces of ``job`` with engine trace, to the byte."""
    found = heights(played(job(**keys), unrolled=False))
    assert (found.top, found.net, found.saved) == expected


def test_a_trace_is_what_was_recorded():
    """The first of them, traced anew."""
    pytest.importorskip("transformers")
    from benchmarks.played.against import traced

    found = heights(traced(job(**TRACED[0][0])))
    assert (found.top, found.net, found.saved) == TRACED[0][1]


def test_a_real_forward_saves_as_much():
    """In FP32 and written out, where a CPU keeps what CUDA keeps: to the byte, with four places for an image in each row."""
    pytest.importorskip("transformers")
    from tests.trace.oracle import really_saved

    asked = job(attention="eager", precision="fp32", image_size=32)
    assert heights(played(asked)).saved == really_saved(read_job({**asked, "engine": "trace"})) == 8_508_791


def test_text_alone_leaves_the_tower_without_gradients():
    """By hand, in BF16: with an image the tower and the projector have gradients, their parameters' 2 bytes each."""
    h, wide = SEEN["hidden_size"], SEEN["intermediate_size"]
    patches = h * 3 * SEEN["patch_size"] ** 2 + h + PLACES * h
    layer = 2 * 2 * h + 4 * (h * h + h) + (wide * h + wide) + (h * wide + h)
    projector = h * READ["hidden_size"] + h
    parameters = patches + SEEN["num_hidden_layers"] * layer + 2 * h + projector

    def left(**keys: Any) -> int:
        return sum(int(buffer.requested) * int(times) for buffer, times in play_job(job(**keys)).gradients)

    assert left(image_size=32) - left() == 2 * parameters


def test_scattering_takes_a_whole_number_for_each_element():
    """By hand: 8 bytes and the stretched mask for each embedding's feature; backward 24 bytes for each image's."""
    lives = {
        (event.buffer.site.partition(" in ")[0], int(event.buffer.requested))
        for event in play_job(job(image_size=32)).events
        if hasattr(event, "buffer")
    }
    embedded, scattered = 3 * 33 * READ["hidden_size"], 3 * GEMMA3["mm_tokens_per_image"] * READ["hidden_size"]
    assert {("maskPrefixSum", 8 * embedded), ("contiguous mask", embedded), ("nonzero", 3 * 8 * scattered)} <= lives


def test_arrays_of_jobs_are_each_job_alone():
    """Batches and lengths as int64 arrays give, element by element, the folded heights of each job alone."""
    check_arrays(job(precision="amp-bf16", image_size=32))


@pytest.mark.parametrize(
    ("keys", "kind", "message"),
    [
        ({"image_size": 40}, InputError, "training.image_size: 40 is not the 32 pixels the model is made for"),
        ({"image_size": 32, "sequence_length": 3}, InputError, "training.sequence_length: 3 is shorter than the 4 tokens"),
    ],
)
def test_refusals(keys, kind, message):
    """Images of another side, and rows without room for one."""
    with pytest.raises(kind, match=message):
        play_job(job(**keys))


def test_a_pooling_head_is_not_modelled():
    """Which none of the published models has."""
    asked = {**job(image_size=32), "model": {"model_type": "gemma3", **GEMMA3}}
    with pytest.raises(NotModelledError, match=r"model\.vision_config\.vision_use_head: True"):
        play_job(asked)
