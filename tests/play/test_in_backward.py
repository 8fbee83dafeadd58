"""Optimizers that update inside backward: the played step against real hooks on a trace, and the rules that go with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.played.against import _steps, heights
from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import play_job
from memcalc.errors import InputError, NotModelledError
from memcalc.tape.events import Alloc, Mark
from memcalc.tape.unroll import unroll

LLAMA = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 344, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 304, "num_hidden_layers": 5}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 96, "n_layer": 5, "n_head": 6, "n_positions": 300, "vocab_size": 304}
TIED = {**LLAMA, "tie_word_embeddings": True}
JOBS: dict[str, dict[str, Any]] = {
    "adamw": {"model": LLAMA, "optimizer": "adamw", "optimizer_in_backward": True, "precision": "bf16-pure"},
    "checkpointed": {"model": LLAMA, "optimizer": "adamw", "optimizer_in_backward": True, "precision": "fp32",
                     "activation_checkpointing": "full"},
    "tied": {"model": TIED, "optimizer": "came", "optimizer_in_backward": True, "precision": "bf16-pure"},
    "8 bits": {"model": LLAMA, "optimizer": "adamw8bit", "optimizer_in_backward": True, "precision": "amp-bf16"},
    "gpt2": {"model": GPT2, "optimizer": "adamw", "optimizer_in_backward": True, "precision": "bf16-pure"},
    "lomo": {"model": GPT2, "optimizer": "lomo", "precision": "fp32"},
    "lomo in halves": {"model": LLAMA, "optimizer": "lomo", "precision": "bf16-pure"},
    "adalomo": {"model": LLAMA, "optimizer": "adalomo", "precision": "bf16-pure"},
}  # fmt: skip
SIZES = {"micro_batch_size": 1, "sequence_length": 8}
RECORD = Path(__file__).with_name("in_backward.json")


def record() -> None:
    """Trace every job anew (needs torch, transformers and the optimizers' packages): python -m tests.play.test_in_backward."""
    from memcalc.engines.trace.estimate import trace_job
    from memcalc.job import read_job

    found = {}
    for name, job in JOBS.items():
        traced = trace_job(read_job({**job, **SIZES, "engine": "trace"}))
        one, peak = heights(_steps(traced.tape, 2)), traced.footprint.peak
        found[name] = {"heights": [one.top, one.net, one.saved], "requested": peak.requested, "allocated": peak.allocated}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_played_step_with_updates_inside_backward_is_its_trace(name):
    """Real hooks of the real class leave what the played ones do: saved and left to the byte, peaks within a thousandth."""
    known, job = json.loads(RECORD.read_text())[name], {**JOBS[name], **SIZES}
    mine = heights(_steps(play_job(job).events, 2))
    top, left, saved = known["heights"]
    assert (mine.net, mine.saved) == (left, saved) == (0, saved)
    assert abs(mine.top - top) <= 0.001 * top
    peak = estimate_mapping(job).peak
    assert peak.requested == known["requested"]
    assert peak.allocated == known["allocated"]


def test_one_gradient_is_alive_at_a_time_and_of_lomo_two():
    """By hand: the largest gradient alone (feed-forward × width × 2 B), and under LOMO beside it the one that arrives next."""
    one = estimate_mapping({**JOBS["adamw"], **SIZES}).components
    two = estimate_mapping({**JOBS["lomo in halves"], **SIZES}).components
    largest = 344 * 128 * 2
    assert one.gradients == largest
    assert two.gradients == 2 * largest


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("optimizer", ["adamw", "lomo", "adalomo"])
def test_layers_played_once_are_the_layers_played_one_by_one(layers, optimizer):
    """A gradient that waits for the next is handed from layer to layer of a stretch, as it is from one played alone."""
    more = {"optimizer_in_backward": True} if optimizer == "adamw" else {}
    job = {"model": {**LLAMA, "num_hidden_layers": layers}, "optimizer": optimizer, "precision": "bf16-pure", **SIZES, **more}
    assert heights(_steps(play_job(job).events, 2)) == heights(_steps(play_job(job, unrolled=True).events, 2))


def test_states_are_born_inside_the_first_backward_once_each():
    """Of every parameter two moments: what the first iteration's backward makes for good is what the steady one finds."""
    job = {**JOBS["adamw"], **SIZES}
    first = play_job(job).first
    assert first is not None
    phase, born = "", 0
    for event in unroll(first):
        if isinstance(event, Mark):
            phase = event.phase
        elif isinstance(event, Alloc) and event.buffer.role == "optimizer_state" and event.buffer.place == "device":
            assert phase == "backward"
            born += event.buffer.requested
    assert born == estimate_mapping(job).components.optimizer_states


def test_every_instance_has_tables_of_its_own():
    """Adam in 8 bits keeps two maps of 256 floats in each instance, hence for every matrix: of 5 layers and two embeddings."""
    asked = {"model": LLAMA, "optimizer": "adamw8bit", "precision": "bf16-pure", **SIZES}
    usual = estimate_mapping(asked)
    each = estimate_mapping({**asked, "optimizer_in_backward": True})
    matrices = 5 * 7 + 2
    assert each.components.optimizer_states - usual.components.optimizer_states == (matrices - 1) * 2 * 256 * 4


REFUSED = [
    ({"optimizer": "adamw", "precision": "bf16"}, InputError, "and precision bf16 keeps masters, which are updated after it"),
    ({"optimizer": "adamw", "precision": "amp-fp16"}, InputError, "has a GradScaler, which unscales gradients after it"),
    ({"optimizer": "adamw", "max_grad_norm": 1.0}, InputError, "training.max_grad_norm: 1.0 needs all gradients at once"),
    ({"optimizer": "adamw", "gradient_accumulation_steps": 4}, InputError, "gradient_accumulation_steps: 4 keeps gradients"),
    ({"optimizer": "adamw", "set_to_none": False}, InputError, "training.set_to_none: False keeps no gradient"),
    ({"optimizer": "lomo"}, InputError, "optimizer_in_backward: True is what lomo-optim:Lomo does by itself"),
    ({"optimizer": "adamw", "dp": 2}, NotModelledError, "is not modelled under several ranks"),
    ({"optimizer": "adam-mini"}, NotModelledError, "which is told of all parameters"),
]


@pytest.mark.parametrize(("keys", "kind", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_what_needs_gradients_after_backward_is_refused(keys, kind, said):
    """Masters, unscaling, clipping, accumulation and kept gradients contradict an update inside backward."""
    job = {"model": LLAMA, "precision": "bf16-pure", "optimizer_in_backward": True, **SIZES, **keys}
    with pytest.raises(kind) as refused:
        estimate_mapping(job)
    assert said in str(refused.value)


def test_lomo_refuses_the_same():
    """What LOMO drops inside backward is neither clipped nor accumulated afterwards."""
    for keys in ({"max_grad_norm": 1.0}, {"gradient_accumulation_steps": 2}, {"precision": "fp16"}):
        with pytest.raises(InputError):
            estimate_mapping({"model": LLAMA, "optimizer": "lomo", "precision": "bf16-pure", **SIZES, **keys})


if __name__ == "__main__":
    record()
