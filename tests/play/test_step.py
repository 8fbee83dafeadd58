"""The played step: repetition against what it stands for, arrays against single jobs, and counts made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.api import estimate_mapping
from memcalc.engines.analytic.step import play_job
from memcalc.job import read_job
from memcalc.tape.events import Alloc, Free, Mark, Repeat
from memcalc.tape.fold import fold, requested
from memcalc.tape.unroll import unroll

SMALL = {"hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}


def job(layers: int = 5, **keys: Any) -> dict[str, Any]:
    """A small llama."""
    model = {"model_type": "llama", "num_hidden_layers": layers, **SMALL}
    return {"model": model, "optimizer": "adamw", "micro_batch_size": 2, "sequence_length": 24, "precision": "bf16", **keys}


def sizes(tape: Any) -> list[tuple[str, int]]:
    """What is allocated and freed, in order and without names; frees in a row are in order of size, for theirs is no matter."""
    found: list[tuple[str, int]] = []
    falling: list[tuple[str, int]] = []
    for event in unroll(tape):
        if isinstance(event, Free):
            falling.append(("-", event.buffer.requested))
            continue
        found += sorted(falling)
        falling.clear()
        found.append((event.phase, 0) if isinstance(event, Mark) else ("+", event.buffer.requested))
    return found + sorted(falling)


@settings(max_examples=12, deadline=None)
@given(
    layers=st.integers(1, 7),
    precision=st.sampled_from(["bf16", "amp-fp16", "fp32"]),
    checkpointing=st.sampled_from(["none", "full", "selective"]),
    attention=st.sampled_from(["auto", "eager"]),
    steps=st.integers(1, 3),
)
def test_layers_played_once_and_counted_are_the_layers_played_one_by_one(layers, precision, checkpointing, attention, steps):
    """A stack played as first, middle times n, last has the very events of one whose layers are all played."""
    asked = job(
        layers, precision=precision, activation_checkpointing=checkpointing, attention=attention,
        gradient_accumulation_steps=steps,
    )  # fmt: skip
    folded, whole = play_job(asked), play_job(asked, unrolled=True)
    assert sizes(folded.events) == sizes(whole.events)
    assert fold(folded.events, requested).stretch.top == fold(whole.events, requested).stretch.top
    held = [sum(buffer.requested * times for buffer, times in played.gradients) for played in (folded, whole)]
    assert held[0] == held[1]


def test_every_free_names_what_is_alive_and_only_gradients_and_inputs_are_left():
    """Replaying the events of a step frees nothing twice, and what it leaves are the gradients."""
    played = play_job(job(6, activation_checkpointing="full"))
    live: dict[int, int] = {}
    for event in unroll(played.events):
        if isinstance(event, Alloc):
            live[id(event.buffer)] = live.get(id(event.buffer), 0) + 1
        elif isinstance(event, Free):
            live[id(event.buffer)] = live.get(id(event.buffer), 0) - 1
            assert live[id(event.buffer)] >= 0
    left = {key: count for key, count in live.items() if count}
    assert left == {id(buffer): times for buffer, times in played.gradients}


def test_a_layer_keeps_what_its_formula_says():
    """By hand, in BF16: what one llama layer saves for backward, tensor by tensor."""
    b, s, h, inner, heads, kv, d = 2, 24, 64, 176, 4, 2, 16
    two, three = play_job(job(2, attention="flash")), play_job(job(3, attention="flash"))
    norm = 4 * b * s * h + 4 * b * s + 2 * b * s * h + 2 * b * s * h  # its FP32 input, 1/rms, the normalised, the scaled
    attention = 2 * b * s * d * (heads + 2 * kv)  # queries and keys turned, values
    kernel = 2 * b * s * heads * d + 4 * b * heads * s + 16 + 8  # what it gave, logsumexp, seed and offset
    mlp = 4 * 2 * b * s * inner  # gate, silu(gate), up, their product
    assert saved(three) - saved(two) == 2 * norm + attention + kernel + mlp


def saved(played: Any) -> int:
    """Bytes alive where backward begins."""
    live = 0
    for event in unroll(played.events):
        if isinstance(event, Mark) and event.phase == "backward":
            return live
        if not isinstance(event, Mark):
            live += event.buffer.requested if isinstance(event, Alloc) else -event.buffer.requested
    raise AssertionError("no backward")


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 5), st.integers(2, 70), st.integers(4, 9)), min_size=2, max_size=4),
    st.sampled_from(["none", "full"]),
    st.sampled_from(["bf16", "amp-bf16"]),
)
def test_arrays_of_jobs_are_each_job_alone(points, checkpointing, precision):
    """Batches, lengths and depths as int64 arrays give, element by element, the folded heights of each job alone."""
    from memcalc.engines.analytic.step import play_step
    from memcalc.families.base import load_family
    from memcalc.kernels.behaviour import Behaviour
    from memcalc.plan import make_plan
    from memcalc.readers.config import build_model

    asked = read_job(job(activation_checkpointing=checkpointing, precision=precision, attention="flash"))
    family = load_family("llama")

    def heights(rows: Any, tokens: Any, layers: Any) -> Any:
        config = family.config.model_construct(**{**family.config(**SMALL).model_dump(), "num_hidden_layers": layers})
        model = build_model(family, config, "LlamaForCausalLM", name="", dtype=None)
        training = asked.training.model_copy(update={"micro_batch_size": rows, "sequence_length": tokens})
        played = play_step(asked.model_copy(update={"training": training}), make_plan(asked), model, family, Behaviour())
        folded = fold(played.events, requested).stretch
        return folded.top, folded.total, folded.role_top

    columns = [np.array(column, dtype=np.int64) for column in zip(*points, strict=True)]
    top, total, roles = heights(*columns)
    for place, point in enumerate(points):
        alone = heights(*point)
        assert (top[place], total[place]) == alone[:2]
        for role, value in alone[2].items():
            assert np.broadcast_to(roles.get(role, 0), len(points))[place] == value


@pytest.mark.parametrize(
    ("attention", "statistics", "seeds"), [("flash", 24, 16 + 8), ("cudnn", 24, 8 + 8), ("efficient", 32, 0)]
)
def test_selective_checkpointing_keeps_every_result_of_a_kernel(attention, statistics, seeds):
    """By hand, in BF16: a layer keeps what it is given, its products, and of attention the result, its logsumexp and seeds."""
    tokens, h, wide, heads = 2 * 24, 64, 176, 4
    products = 4 * 2 * h + 2 * 2 * wide + 2 * h  # q, k, v and o; gate and up; down

    def saved(layers: int) -> int:
        asked = job(layers, attention=attention, activation_checkpointing="selective")
        asked["model"]["num_key_value_heads"] = heads
        live, events = 0, unroll(play_job(asked).events)
        for event in events:
            if isinstance(event, Mark):
                if event.phase == "backward":
                    break
            else:
                live += event.buffer.requested * (1 if isinstance(event, Alloc) else -1)
        return live

    kernel = 2 * h * tokens + 4 * 2 * heads * statistics + seeds  # efficient attention pads rows of statistics to 32
    assert saved(4) - saved(3) == tokens * (2 * h + products) + kernel


def events_of(tape: Any) -> int:
    """Events that are written, repetitions once."""
    return sum(events_of(event.body) if isinstance(event, Repeat) else 1 for event in tape)


def test_a_tape_does_not_grow_with_the_layers():
    """126 layers are written in as many events as eight."""
    assert events_of(play_job(job(126)).events) == events_of(play_job(job(8)).events)


def test_every_component_of_the_step_is_explained_to_the_byte():
    """The buffers listed under each component add up to it."""
    told = estimate_mapping(job(5, precision="amp-bf16", activation_checkpointing="full", max_grad_norm=1.0), explained=True)
    for component in ("inputs", "activations", "temporaries", "workspace", "parameter_copies"):
        lines = [held.requested * held.times for held in told.buffers if held.component == component]
        assert sum(lines) == getattr(told.components, component), component


def test_a_gradient_that_the_first_turn_alone_replaces_is_played_layer_by_layer():
    """One row's biases in T5 come back aligned, and are added out of place but once: the peak is the traced one."""
    model = {"model_type": "t5", "num_layers": 5, "d_model": 64, "d_ff": 96, "num_heads": 4, "d_kv": 16, "vocab_size": 99}
    told = estimate_mapping(
        {"model": model, "optimizer": "sgd", "precision": "fp32", "micro_batch_size": 1, "sequence_length": 128}
    )
    assert (told.peak.requested, told.peak.allocated) == (78_195_720, 78_204_928)
