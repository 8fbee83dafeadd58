"""Torchtitan's Llama 3 under its own trainer: complex rotary numbers, FP32 loss, checkpointing operator by operator.

One rank: FP32 parameters under autocast (from June 2025, ``maybe_enable_amp``), or whichever precision the job has.

source: pytorch/torchtitan at the commits of ``_torchtitan_versions.VERSIONS``; train.py, components/loss.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import head_sizes
from memcalc.implementations._torchtitan_layers import TitanAttention, TitanBlock, TitanFeedForward, TitanNorm
from memcalc.implementations._torchtitan_versions import LAST, VERSIONS, Version, version_of
from memcalc.implementations.base import Asked, Implementation
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Embedding, Linear
from memcalc.models import Model
from memcalc.play.checkpoint import Keeps, Way, checkpointed_in
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, div, scaled, to
from memcalc.play.reshape import merge_dims, pieces
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tape.events import Buffer

CHUNKS = 8
"""source: e23bb707 components/loss.py:chunked_cross_entropy_loss, num_output_chunks"""


@dataclass
class Shape:
    """``TransformerModelArgs``, read from a Llama config of Hugging Face's, and what the job says of the trainer.

    Attributes:
        every: each how many-th block is checkpointed under ``selective``; 0 for operator by operator.
        chunked: whether the loss is summed over chunks of the sequence.
    """

    vocabulary: Count
    width: Count
    layers: Count
    heads: Count
    groups: Count
    inner: Count
    version: Version
    every: int
    chunked: bool


def build(model: Model, asked: Asked) -> Model:
    """The model with torchtitan's tensors, its head never tied.

    Raises:
        NotModelledError: another family, or a head that is not as wide as the model over its heads.
        InputError: arguments that torchtitan's record does not know.
    """
    if model.family != "llama" or model.architecture != "LlamaForCausalLM":
        raise NotModelledError("implementation", "torchtitan", f"is not modelled for {model.architecture or model.family}",
                               "use a llama config")  # fmt: skip
    config = model.config
    heads, groups, size = head_sizes(config)
    if size * heads != config.hidden_size:
        raise NotModelledError("model.head_dim", size, "is none that torchtitan's Llama has: it takes the width over the heads",
                               f"use {config.hidden_size // heads}")  # fmt: skip
    if config.attention_bias or config.mlp_bias:
        raise NotModelledError("model.attention_bias", True, "is nothing that torchtitan's Llama has", "use no biases")
    shape = Shape(config.vocab_size, config.hidden_size, config.num_hidden_layers, heads, groups, config.intermediate_size,
                  _version(asked.arguments), _every(asked.arguments), _chunked(asked.arguments))  # fmt: skip
    root = Module((
        ("tok_embeddings", Embedding(shape.vocabulary, shape.width)), ("layers", Stack(_block(shape), shape.layers)),
        ("norm", TitanNorm(shape.width, shape.version.norm)), ("output", _head(shape)),
    ))  # fmt: skip
    return replace(model, tensors=tuple(root.tensors()), tied={}, root=root, config=shape)


def _block(shape: Shape) -> TitanBlock:
    attention = TitanAttention(shape.width, shape.heads, shape.groups, shape.version)
    return TitanBlock(attention, TitanFeedForward(shape.width, shape.inner), TitanNorm(shape.width, shape.version.norm))


def _head(shape: Shape) -> Layer:
    return Linear(shape.width, shape.vocabulary, bias=False)


def _version(arguments: Mapping[str, Any]) -> Version:
    date = str(arguments.get("version", LAST))
    found = version_of(date)
    if found is None:
        raise InputError("implementation_args.version", date, "is before what is known of torchtitan",
                         f"give a date from {min(VERSIONS)} on")  # fmt: skip
    if date > LAST:
        raise NotModelledError("implementation_args.version", date, "is of code whose checkpointing and loss are not played",
                               f"give a date up to {LAST} (v0.2.2)")  # fmt: skip
    return found


def _every(arguments: Mapping[str, Any]) -> int:
    """``activation_checkpoint.selective_ac_option``: ``op``, or every so many-th block."""
    option = arguments.get("selective_ac_option", "op")
    if option == "op":
        return 0
    if not str(option).isdigit() or int(str(option)) < 1:
        raise InputError("implementation_args.selective_ac_option", option, "is none of torchtitan's", "use op, or 2")
    return int(str(option))


def _chunked(arguments: Mapping[str, Any]) -> bool:
    loss = arguments.get("loss", "whole")
    if loss not in ("whole", "chunked"):
        raise InputError("implementation_args.loss", loss, "is none of torchtitan's", "use whole or chunked")
    return bool(loss == "chunked")


def operator_policy(kept: tuple[str, ...]) -> Callable[[], Keeps]:
    """Per-operator checkpointing: those of the list, but every second product (_apply_op_sac: ``meta[mm_count_key] % 2``).

    >>> keeps = operator_policy(("mm",))()
    >>> [keeps("mm"), keeps("silu"), keeps("mm"), keeps("mm")]
    [True, False, False, True]
    """

    def policy() -> Keeps:
        products = 0

        def keeps(operator: str) -> bool:
            nonlocal products
            products += operator == "mm"
            return operator in kept and not (operator == "mm" and products % 2 == 0)

        return keeps

    return policy


def ways(shape: Shape, mode: str) -> tuple[Way | None, ...]:
    """How blocks are checkpointed, one after another, over and over.

    source: 9dec370 parallelize_llama.py:_apply_ac_to_transformer_block; v0.2.0 distributed/activation_checkpoint.py
    """
    early = shape.version.early_stop
    if mode == "none":
        return (None,)
    if mode == "full":
        return (Way(None, early),)
    if shape.every:
        return (*(None,) * (shape.every - 1), Way(None, early))
    return (Way(operator_policy(shape.version.keeps), early),)


def play(machine: Machine, architecture: str, config: Shape, root: Module, batch: Batch) -> tuple[Value, Any]:
    """The trainer's forward and loss; its logits are let go of before backward (train.py: ``del pred``)."""
    pred = machine.call("", _forward, machine, config, root, batch)
    loss = (_chunked_loss if config.chunked else _loss)(machine, pred, batch["labels"])
    if config.version.counts:
        loss = div(machine, loss, machine.constant((), "float32"))
    return loss, None


def _loss(machine: Machine, pred: Value, labels: Value) -> Value:
    """source: components/loss.py:cross_entropy_loss"""
    rows = merge_dims(machine, pred, 0, 1)
    return cross_entropy(machine, to(machine, rows, "float32"), merge_dims(machine, labels, 0, 1))


def _chunked_loss(machine: Machine, pred: Value, labels: Value) -> Value:
    """source: e23bb707 components/loss.py:chunked_cross_entropy_loss"""
    length = pred.shape[1]
    if not machine.decide(length % CHUNKS == 0):
        raise NotModelledError("training.sequence_length", length, "does not part into equal chunks",
                               f"use a multiple of {CHUNKS}")  # fmt: skip
    targets = pieces(machine, labels, 1, [length // CHUNKS] * CHUNKS)
    chunks = pieces(machine, pred, 1, [length // CHUNKS] * CHUNKS)
    total: Value | None = None
    for chunk, target in zip(chunks, targets, strict=True):
        one = _loss(machine, chunk, target)
        total = scaled(machine, one, "add.Tensor") if total is None else add(machine, total, one)
    assert total is not None
    return scaled(machine, total, "div.Tensor")


def _forward(machine: Machine, shape: Shape, root: Module, batch: Batch) -> Value:
    """source: Transformer.forward"""
    angles = machine.constant((1, batch.tokens, 1, shape.width // shape.heads // 2), "complex64")
    h = machine.call("tok_embeddings", root.part("tok_embeddings").play, machine, batch["input_ids"])
    h = _layers(machine, ways(shape, machine.policy.checkpointing), root.part("layers"), [h], angles)
    h = machine.call("norm", root.part("norm").play, machine, h)
    output: Value = machine.call("output", root.part("output").play, machine, h)
    return to(machine, output, "float32") if shape.version.float_scores else output


def _layers(machine: Machine, each: tuple[Way | None, ...], stack: Stack, box: list[Value], angles: Value) -> Value:
    """Blocks one after another, in turns of those that are checkpointed alike."""

    def block(place: int, index: object) -> None:
        way, layer = each[place % len(each)], stack.layer
        box[0] = machine.call(f"layers.{index}", checkpointed_in, way, machine, _block_play, machine, layer, box[0], angles)

    def turn(mark: str) -> None:
        for place in range(len(each)):
            block(place, (mark if len(each) == 1 else f"{mark}{place}") if mark else place)

    turns = stack.count // len(each)
    begun = 0
    if not machine.unrolled and machine.decide(turns > 3):
        turn("")
        machine.repeated(turns - 2, lambda: turn("*"), box)
        turn("last")
        left = stack.count - turns * len(each)
        while machine.decide(left > begun):
            block(begun, f"end{begun}")
            begun += 1
        return box.pop()
    while machine.decide(stack.count > begun):
        block(begun, begun)
        begun += 1
    return box.pop()


def _block_play(machine: Machine, layer: TitanBlock, x: Value, angles: Value) -> Value:
    return layer.play(machine, x, angles)


def held(model: Model, batch: Batch, dtype: str, low: str) -> Iterable[tuple[Buffer, Count]]:
    """The table of rotary numbers, as long as the sequence, and the counts the loss is divided by."""
    shape: Shape = model.config
    size = shape.version.tables * batch.tokens * (shape.width // shape.heads // 2) * 8  # complex64
    yield Buffer("freqs_cis", size, "buffer"), 1
    if shape.version.counts:  # train.py:train_step: local_valid_tokens in int64, global_valid_tokens in FP32
        yield Buffer("local_valid_tokens", 8, "input"), 1
        yield Buffer("global_valid_tokens", 4, "input"), 1


IMPLEMENTATION = Implementation(
    name="torchtitan", source=f"pytorch/torchtitan, commits of {min(VERSIONS)} to {LAST}", build=build, play=play, held=held,
    summary="Llama 3 under its trainer; selective checkpointing is operator by operator (from source and traces)",
    arguments=("version", "selective_ac_option", "loss"), enters=True,
    units=lambda model: model.config.version.units,
)  # fmt: skip
