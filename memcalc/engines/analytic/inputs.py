"""What a model reads in training: its batch and its labels, as the torch engines make them from the same job.

What there is of it follows runtime/family_inputs.py, which a test holds it to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.arrays import Count, minimum
from memcalc.engines.analytic.inputs_seen import seen_shapes, sees_or_hears
from memcalc.families._forward import Batch
from memcalc.families.base import TEXT, Family
from memcalc.models import Model
from memcalc.play.values import Life, Storage, Value
from memcalc.records import dataclass, replace
from memcalc.tape.events import Buffer
from memcalc.tensors import ITEMSIZE

SEQUENCE = 128
"""Tokens, where neither the job nor the model says (as runtime/family_inputs.py has them)."""
CHOICES = 2
"""Answers to choose from, in heads that choose."""

Shapes = dict[str, tuple[tuple[Count, ...], str]]
"""By name: (dimensions, dtype)."""


@dataclass
class Reading:
    """A batch.

    Attributes:
        batch: what the model's forward is given.
        buffers: the same, as they lie on the device.
        assumptions: what the job left open.
    """

    batch: Batch
    buffers: tuple[Buffer, ...]
    assumptions: tuple[str, ...]


@dataclass
class Sizes:
    """The sizes of a batch of text, every default filled in.

    Attributes:
        rows: samples.
        tokens: of each; of the decoder where there are two sides.
        source: tokens that an encoder reads.
        assumed: what the job left open.
    """

    rows: Count
    tokens: Count
    source: Count
    assumed: tuple[str, ...]


def read_inputs(training: Any, family: Family, model: Model, floating: str) -> Reading:
    """The batch of a model under the head its architecture names; ``floating`` is the dtype of what is no whole number."""
    architecture = model.architecture or family.usual
    sizes = text_sizes(training, model.config)
    if sees_or_hears(architecture, family):
        shapes, more = seen_shapes(training, architecture, family, model.config, sizes.rows, sizes.tokens, floating)
        # what is assumed of tokens is nothing to a model that reads none
        said = [each for each in sizes.assumed if "input_ids" in shapes or family.inputs >= TEXT or "sequence" not in each]
        return reading_of(sizes.rows, sizes.tokens, shapes, (*said, *more))
    shapes = {**text_shapes(architecture, family, sizes), **given_shapes(training.batch, sizes)}
    if "source_length" in family.inputs and training.source_length is None and "ForCausalLM" not in architecture:
        sizes = replace(sizes, assumed=(*sizes.assumed, "source_length is sequence_length"))
    if "token_type_ids" in shapes and training.image_size is not None:  # Gemma 3, which sees where it is asked to
        shapes["pixel_values"] = ((sizes.rows, model.config.vision_config.num_channels, *(training.image_size,) * 2), floating)
    return reading_of(sizes.rows, sizes.tokens, shapes, sizes.assumed)


def given_shapes(kind: str, sizes: Sizes) -> Shapes:
    """What a batch comes with that is padded or packed (runtime/family_inputs.py)."""
    name = {"padded": "attention_mask", "packed": "position_ids"}.get(kind)
    return {} if name is None else {name: ((sizes.rows, sizes.tokens), "int64")}


def text_sizes(training: Any, config: Any) -> Sizes:
    """What the job says, and what the model's config makes of the rest."""
    rows: Count = 1 if training.micro_batch_size is None else training.micro_batch_size
    tokens: Count = training.sequence_length
    assumed = []
    if training.micro_batch_size is None:
        assumed.append("micro_batch_size is 1")
    if tokens is None:
        longest = _first(config, "max_position_embeddings", "n_positions", "max_target_positions", "n_ctx")
        tokens = SEQUENCE if longest is None else minimum(SEQUENCE, longest)
        assumed.append(f"sequence_length is {tokens}")
    source = getattr(training, "source_length", None)
    return Sizes(rows, tokens, tokens if source is None else source, tuple(assumed))


def _first(config: Any, *names: str) -> Any:
    """The first of these keys that the config, or the part of it that reads text, has."""
    parts = (config, getattr(config, "text_config", None))
    found = (getattr(part, name, None) for part in parts for name in names)
    return next((value for value in found if value is not None), None)


def text_shapes(architecture: str, family: Family, sizes: Sizes) -> Shapes:
    """What a text model reads and what its head is held against."""
    two_sided = "source_length" in family.inputs
    rows, tokens = (sizes.rows,), (sizes.rows, sizes.tokens)
    read: Shapes = {"input_ids": (tokens, "int64")}
    if two_sided and "ForCausalLM" not in architecture:
        read["input_ids"] = ((sizes.rows, sizes.source), "int64")
    elif architecture.endswith(("ForMultipleChoice", "DoubleHeadsModel")):
        read["input_ids"] = ((sizes.rows, CHOICES, sizes.tokens), "int64")
    if architecture.startswith("Gemma3ForConditionalGeneration"):
        read["token_type_ids"] = (tokens, "int64")
    labels = _labels(architecture, rows, tokens)
    if not labels and two_sided and not architecture.endswith("EncoderModel"):
        labels = {"decoder_input_ids": (tokens, "int64")}
    return {**read, **labels}


def _labels(architecture: str, rows: tuple[Count], tokens: tuple[Count, Count]) -> Shapes:
    """What the head that an architecture's name ends in is held against; nothing for a body alone."""
    one_each: Shapes = {"labels": (rows, "int64")}
    each_token: Shapes = {"labels": (tokens, "int64")}
    by_ending: Mapping[str, Shapes] = {
        "ForCausalLM": each_token,
        "LMHeadModel": each_token,
        "ForMaskedLM": each_token,
        "ForConditionalGeneration": each_token,
        "ForSequenceClassification": one_each,
        "ForMultipleChoice": one_each,
        "ForNextSentencePrediction": one_each,
        "ForTokenClassification": each_token,
        "ForQuestionAnswering": {"start_positions": (rows, "int64"), "end_positions": (rows, "int64")},
        "BertForPreTraining": {**each_token, "next_sentence_label": (rows, "int64")},
        "AlbertForPreTraining": {**each_token, "sentence_order_label": (rows, "int64")},
        "ElectraForPreTraining": each_token,
        "DoubleHeadsModel": {
            "labels": ((*rows, CHOICES, tokens[1]), "int64"),
            "mc_token_ids": ((*rows, CHOICES), "int64"),
            "mc_labels": (rows, "int64"),
        },
    }
    return next((shapes for ending, shapes in by_ending.items() if architecture.endswith(ending)), {})


def reading_of(rows: Count, tokens: Count, shapes: Shapes, assumed: tuple[str, ...]) -> Reading:
    """Values and buffers of these shapes."""
    values: dict[str, Value] = {}
    buffers: list[Buffer] = []
    for name, (shape, dtype) in shapes.items():
        value = Value(Storage(Life(0, "input", "", "input", name), None), shape, dtype)
        values[name] = value
        buffers.append(Buffer(name, value.numel * ITEMSIZE[dtype], "input"))
    return Reading(Batch(rows, tokens, values), tuple(buffers), assumed)
