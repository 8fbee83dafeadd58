"""What a model reads in training: its batch and its labels, as the torch engines make them from the same job."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count, minimum
from memcalc.engines.analytic.inputs_paired import paired_shapes
from memcalc.families._forward import Batch
from memcalc.families.base import TEXT, Family
from memcalc.models import Model
from memcalc.play.values import Life, Storage, Value
from memcalc.records import dataclass
from memcalc.tape.events import Buffer
from memcalc.tensors import ITEMSIZE

SEQUENCE, IMAGE = 128, 224
"""Where neither the job nor the model says: tokens, and pixels of a side (as runtime/family_inputs.py has them)."""


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


def read_inputs(training: Any, family: Family, model: Model, floating: str) -> Reading:
    """The batch of a language model: tokens and their labels; of others what they read."""
    rows: Count = 1 if training.micro_batch_size is None else training.micro_batch_size
    tokens: Count = training.sequence_length
    assumed = []
    if training.micro_batch_size is None:
        assumed.append("micro_batch_size is 1")
    if family.inputs != TEXT or family.model_type == "clip_text_model":
        tokens, shapes, more = paired_shapes(training, family, model, rows, floating)
        return reading_of(rows, tokens, shapes, (*assumed, *more))
    if tokens is None:
        longest = getattr(model.config, "max_position_embeddings", None)
        tokens = SEQUENCE if longest is None else minimum(SEQUENCE, longest)
        assumed.append(f"sequence_length is {tokens}")
    shapes = {
        "input_ids": ((rows, tokens), "int64"),
        "labels": ((rows, tokens), "int64"),
    }
    return reading_of(rows, tokens, shapes, tuple(assumed))


def reading_of(
    rows: Count, tokens: Count, shapes: dict[str, tuple[tuple[Count, ...], str]], assumed: tuple[str, ...]
) -> Reading:
    """Values and buffers of these shapes."""
    values: dict[str, Value] = {}
    buffers: list[Buffer] = []
    for name, (shape, dtype) in shapes.items():
        value = Value(Storage(Life(0, "input", "", "input", name), None), shape, dtype)
        values[name] = value
        buffers.append(Buffer(name, value.numel * ITEMSIZE[dtype], "input"))
    return Reading(Batch(rows, tokens, values), tuple(buffers), assumed)
