"""The columns of a sweep's rows, in order. Bytes are whole numbers; null is not modelled, not applicable, or an error's row.

In the row of a point that could not be judged, ``error`` says why as ``memcalc estimate`` would, the columns that name the
point are filled as far as it was understood, and every figure is null.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, ``int`` or ``text``, whether it is a figure in bytes, and what it holds."""

    name: str
    type: Literal["int", "text"]
    about: str
    figure: bool = False


def _figure(name: str, about: str) -> Column:
    return Column(name, "int", about, figure=True)


COLUMNS: tuple[Column, ...] = (
    Column("index", "int", "the point's number, from 0; a point that exclude drops keeps its number"),
    Column("name", "text", "the job's name, where it has one"),
    Column("model", "text", "the model's name"),
    Column("family", "text", "its model_type, or params, safetensors, module"),
    Column("num_parameters", "int", "its parameters, tied ones once"),
    Column("optimizer", "text", "the optimizer's full name"),
    Column("precision", "text", "the precision scheme"),
    Column("zero_stage", "int", "0 to 3"),
    Column("zero_backend", "text", "whose data-parallel engine"),
    Column("dp", "int", "data-parallel ranks in all"),
    Column("dp_shard", "int", "ranks the states are split over"),
    Column("dp_replicate", "int", "groups of ranks that hold the same"),
    Column("gradient_accumulation_steps", "int", "micro-batches to a step"),
    Column("micro_batch_size", "int", "as given; null where it was not"),
    Column("sequence_length", "int", "as given; null where it was not, or for a model that reads no tokens"),
    Column("source_length", "int", "as given; null where it was not, or for a model without an encoder beside its decoder"),
    Column("image_size", "int", "as given; null where it was not, or for a model that reads no images"),
    Column("gpu", "text", "the device it must fit"),
    _figure("parameters", "requested bytes of parameters on the fullest rank"),
    _figure("parameter_copies", "of autocast's and gathered copies"),
    _figure("master_parameters", "of the copies the optimizer updates"),
    _figure("buffers", "of the model's buffers"),
    _figure("cache", "of keys and values that are kept; 0 in training"),
    _figure("gradients", "of gradients"),
    _figure("optimizer_states", "of optimizer states, masters apart"),
    _figure("inputs", "of the batch; null where the step is not modelled, as the next four"),
    _figure("activations", "of what forward leaves for backward"),
    _figure("temporaries", "of what is there for a moment"),
    _figure("communication", "of communication buffers"),
    _figure("workspace", "of what libraries keep"),
    _figure("context", "null: outside the allocator, see device_low of an estimate"),
    _figure("momentum", "the part of optimizer_states that is momentum; null for an optimizer without"),
    _figure("variance", "the part of optimizer_states that is variance; null for an optimizer without"),
    _figure("host_optimizer_states", "requested bytes of optimizer states in CPU memory"),
    _figure("states_requested", "the highest instant of what is kept, requested bytes"),
    _figure("states_rounded", "the same with each buffer rounded up to 512 B"),
    _figure("states_bound", "the most the CUDA allocator may count for it"),
    _figure("peak_requested", "the step's peak, requested bytes; null where it is not modelled, as the next two"),
    _figure("peak_rounded", "the same with each buffer rounded up to 512 B: the least the allocator may count"),
    _figure("peak_bound", "the most the CUDA allocator may count for it"),
    _figure("peak_low", "a lower bound of the step's peak: peak_rounded, else what the states alone take"),
    _figure("textbook_optimizer_states_per_rank", "what the textbook says of this optimizer's states; null where it is silent"),
    Column("verdict", "text", "fits, tight, does_not_fit or unknown; null where no device and no memory was named"),
    Column("headroom", "int", "bytes left under the limit; negative where it does not fit"),
    Column("error", "text", "why the point could not be judged; null where it was"),
)
NAMES = tuple(column.name for column in COLUMNS)
FIGURES = tuple(column.name for column in COLUMNS if column.figure)
