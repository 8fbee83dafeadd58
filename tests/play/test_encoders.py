"""BERT and its descendants, played: what their layers keep, their batches, and what repeats in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from memcalc.engines.analytic.inputs import Sizes, text_shapes
from memcalc.engines.analytic.step import play_job, play_step
from memcalc.errors import InputError, NotModelledError
from memcalc.families.base import TEXT, known_families, load_family
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.plan import make_plan
from memcalc.play.checkpoint import checkpointed
from memcalc.play.graph import Engine
from memcalc.play.indexing import gather, repeat
from memcalc.play.losses import binary_cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, mul, tanh, to
from memcalc.play.policy import Policy
from memcalc.play.reduce import sum_all
from memcalc.play.values import Life, Storage, Value
from memcalc.readers.config import build_model
from memcalc.runtime import family_inputs
from memcalc.tape.fold import fold, requested
from tests.play.test_step import saved, sizes

B, S, H, INNER, HEADS, V = 3, 40, 48, 88, 6, 57
BERT = {
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "vocab_size": V,
    "max_position_embeddings": 64,
}
DEBERTA = {**BERT, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
           "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0, "position_biased_input": False}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT,
    "distilbert": {"dim": H, "hidden_dim": INNER, "n_heads": HEADS, "vocab_size": V},
    "albert": {**BERT, "embedding_size": 24, "hidden_dropout_prob": 0.1},
    "deberta-v2": DEBERTA,
}


def job(model_type: str, layers: int = 2, architecture: str | None = None, config: Any = None, **keys: Any) -> dict[str, Any]:
    """A small encoder's job."""
    count = "n_layers" if model_type == "distilbert" else "num_hidden_layers"
    model = {"model_type": model_type, **CONFIGS[model_type], count: layers, **(config or {})}
    if architecture:
        model["architectures"] = [architecture]
    return {"model": model, "optimizer": "adamw", "micro_batch_size": B, "sequence_length": S, "precision": "bf16", **keys}


def test_a_post_norm_layer_keeps_what_its_formula_says():
    """By hand, in BF16 and by flash attention: what one layer of BERT saves for backward, tensor by tensor."""
    two, three = (play_job(job("bert", layers, attention="flash")) for layers in (2, 3))
    projected = 3 * 2 * B * S * H  # queries, keys, values
    kernel = 2 * B * S * H + 4 * B * HEADS * S + 16 + 8  # what it gave, logsumexp, seed and offset
    normed = B * S * H + 2 * B * S * H + 2 * 4 * B * S + 2 * B * S * H  # dropout's mask, the sum, its statistics, the result
    feed_forward = 2 * 2 * B * S * INNER  # before and after GELU
    assert saved(three) - saved(two) == projected + kernel + 2 * normed + feed_forward


def test_written_out_attention_under_autocast_keeps_its_softmax_in_fp32():
    """By hand, AMP: the softmax is not cast back, its dropout's result is cast for the product alone."""
    given = {"attention": "eager", "precision": "amp-bf16"}
    with_it, without = (
        saved(play_job(job("bert", 3, **given, config={"attention_probs_dropout_prob": rate})))
        - saved(play_job(job("bert", 2, **given, config={"attention_probs_dropout_prob": rate})))
        for rate in (0.1, 0.0)
    )
    assert with_it - without == B * HEADS * S * S  # the mask of bytes; scores in FP32 and BF16 are kept either way


def test_albert_holds_one_gradient_however_often_its_layer_runs():
    """Passes add activations and no gradient, and checkpointing, which the family lacks, is refused."""
    few, many = play_job(job("albert", 5)), play_job(job("albert", 9))
    assert [buffer.requested * times for buffer, times in few.gradients] == [
        buffer.requested * times for buffer, times in many.gradients
    ]
    assert saved(many) > saved(few)
    with pytest.raises(InputError, match="does not support gradient checkpointing"):
        play_job(job("albert", activation_checkpointing="full"))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_layers_played_once_and_counted_are_the_layers_played_one_by_one(family):
    """A stack of six, folded, has the events of all six, also where every layer's output is held to the end."""
    for checkpointing in ("none",) if family == "albert" else ("none", "full"):
        asked = job(family, 6, precision="amp-bf16", attention="eager", activation_checkpointing=checkpointing)
        folded, whole = play_job(asked), play_job(asked, unrolled=True)
        assert sizes(folded.events) == sizes(whole.events)
        assert fold(folded.events, requested).stretch.top == fold(whole.events, requested).stretch.top


@pytest.mark.parametrize(
    ("name", "architecture"), [("albert", "AlbertForMaskedLM"), ("deberta-v2", "DebertaV2ForMultipleChoice")]
)
def test_arrays_of_jobs_are_each_job_alone(name, architecture):
    """Batches, lengths and depths as int64 arrays give, element by element, the folded heights of each job alone."""
    points = ((2, 24, 7), (5, 33, 9), (3, 600, 5))
    family = load_family(name)
    asked = read_job(job(name, 7, attention="eager"))

    def heights(rows: Any, tokens: Any, layers: Any) -> Any:
        given = {**family.config(**CONFIGS[name]).model_dump(), "num_hidden_layers": layers, "max_position_embeddings": 700}
        model = build_model(family, family.config.model_construct(**given), architecture, name="", dtype=None)
        training = asked.training.model_copy(update={"micro_batch_size": rows, "sequence_length": tokens})
        played = play_step(asked.model_copy(update={"training": training}), make_plan(asked), model, family, Behaviour())
        folded = fold(played.events, requested).stretch
        return folded.top, folded.total

    top, total = heights(*(np.array(column, dtype=np.int64) for column in zip(*points, strict=True)))
    assert [(top[place], total[place]) for place in range(len(points))] == [heights(*point) for point in points]


def text_architectures() -> list[tuple[str, str]]:
    """Every class that reads text alone."""
    found = []
    for name in known_families():
        family = load_family(name)
        if family.inputs >= TEXT and "image_size" not in family.inputs and name != "whisper":
            found += [(name, architecture) for architecture in family.architectures]
    return found


def test_the_batch_of_every_text_model_is_the_one_the_torch_engines_make():
    """Names, shapes and dtypes of inputs and labels, for every architecture of every family that reads text."""
    for name, architecture in text_architectures():
        family = load_family(name)
        config = SimpleNamespace(
            vocab_size=V, num_labels=2, model_type=family.model_type, is_encoder_decoder="source_length" in family.inputs
        )
        made = family_inputs.family_inputs(architecture, config, family_inputs.Sizes(3, 40, 24, (0, 0)))
        mine = text_shapes(architecture, family, Sizes(3, 40, 24, ()))
        assert {each.name: (each.shape, each.dtype) for each in made} == mine, architecture


def test_deberta_by_labels_keeps_what_real_tensors_keep():
    """DeBERTa under a classifier, whose loss looks at values and cannot be traced, against saved_tensors_hooks on the CPU."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # a CPU's dropout keeps another mask
    module = DebertaV2ForSequenceClassification(DebertaV2Config(**DEBERTA, **still, num_hidden_layers=2, num_labels=3))
    ids, labels = torch.zeros(B, S, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
    there = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers(), ids, labels)}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module(input_ids=ids, labels=labels).loss
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
    real = sum(size for pointer, size in storages.items() if pointer not in there)
    asked = job("deberta-v2", 2, "DebertaV2ForSequenceClassification", {**still, "num_labels": 3}, precision="fp32")
    scales = 2 * 3 * loss.itemsize  # three square roots a layer, which lie on the CPU whatever the device
    assert saved(play_job(asked)) - loss.nbytes == real - scales


def machine() -> Machine:
    """One that trains in FP32."""
    return Machine(Policy("float32"))


def given(on: Machine, name: str, *shape: int) -> Value:
    """A leaf of that shape."""
    return on.parameter(name, shape, "other")


def alive(on: Machine) -> int:
    """Bytes alive, and what has been let go of is not counted."""
    return sum(kind * life.size for kind, life in on.tape if isinstance(kind, int) and life.role != "workspace")


def test_gather_and_repeat_keep_what_torch_keeps():
    """What is saved by a gather of repeated rows, and by a binary cross-entropy, as saved_tensors_hooks sees it."""
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    rows, index, goal = torch.ones(2, 5, 7, requires_grad=True), torch.zeros(6, 5, 4, dtype=torch.int64), torch.ones(6, 5, 4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.nn.functional.binary_cross_entropy_with_logits(torch.gather(rows.repeat(3, 1, 1), -1, index), goal)
    on = machine()
    picks = Value(Storage(Life(0, "input", ""), None), (6, 5, 4), "int64")
    target = Value(Storage(Life(0, "input", ""), None), (6, 5, 4), "float32")
    loss = binary_cross_entropy(on, gather(on, repeat(on, given(on, "rows", 2, 5, 7), 3), picks), target)
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}
    handed = {each.untyped_storage().data_ptr() for each in (index, goal)}
    assert alive(on) - loss.nbytes == sum(size for pointer, size in storages.items() if pointer not in handed)


def test_a_tied_weight_is_added_up_out_of_place_once_as_on_real_tensors():
    """Three uses of a matrix: its first gradient is a view, so that one third buffer is made and then added to in place."""
    from memcalc.play.matmul import linear

    on = machine()
    weight, value = given(on, "weight", 8, 8), given(on, "value", 3, 8)
    for _ in range(3):
        value = linear(on, value, weight)
    Engine(on).run(sum_all(on, value))
    assert [life.operator for kind, life in on.tape if kind == 1].count("add.Tensor") == 1


def test_a_checkpoint_keeps_nothing_for_what_came_to_nothing():
    """A branch of a checkpointed stretch whose result is dropped is recomputed, and not held."""

    def stretch(on: Machine, value: Value, *, branch: bool) -> Value:
        twice = add(on, value, value)
        if branch:
            tanh(on, twice)
        return mul(on, tanh(on, twice), value)

    tops = []
    for branch in (False, True):
        on = Machine(Policy("float32", checkpointing="full"))
        out = checkpointed(on, lambda value, branch=branch, on=on: stretch(on, value, branch=branch), given(on, "x", 100))
        Engine(on).run(sum_all(on, to(on, out, "float32")))
        live = top = 0
        for kind, life in on.tape:
            live += kind * life.size
            top = max(top, live)
        tops.append(top)
    assert tops[0] == tops[1]


@pytest.mark.parametrize(
    ("model_type", "architecture", "config"),
    [
        ("bert", "BertForSequenceClassification", {"num_labels": 1}),
        ("bert", "BertForQuestionAnswering", {"num_labels": 3}),
        ("deberta-v2", "DebertaV2ForMaskedLM", {"conv_kernel_size": 3}),
    ],
)
def test_what_has_another_loss_or_layer_is_refused(model_type, architecture, config):
    """A regression, answers without two ends, and a convolution beside the layers are said not to be modelled."""
    with pytest.raises(NotModelledError):
        play_job(job(model_type, 2, architecture, config))
