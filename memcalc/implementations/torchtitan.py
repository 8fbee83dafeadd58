"""Torchtitan's Llama 3 and Qwen3 under its own trainer: FP32 loss, checkpointing operator by operator.

One rank: FP32 parameters under autocast (from June 2025, ``maybe_enable_amp``), or whichever precision the job has.

source: pytorch/torchtitan at the commits of ``_torchtitan_versions.VERSIONS``; train.py, components/loss.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.families._forward import Batch
from memcalc.families._rotary_decoder import head_sizes
from memcalc.implementations._torchtitan_layers import TitanAttention, TitanBlock, TitanFeedForward, TitanNorm
from memcalc.implementations._torchtitan_trainer import backward_in_chunks, chunked_cross_entropy_loss, cross_entropy_loss, ways
from memcalc.implementations._torchtitan_versions import LAST, RELEASE, VERSIONS, Version, version_of
from memcalc.implementations.base import Asked, Implementation, dated
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Embedding, Linear, TiedLinear
from memcalc.models import Model
from memcalc.parallelism.fsdp2_units import Units
from memcalc.play.checkpoint import Way, checkpointed_in
from memcalc.play.machine import Machine
from memcalc.play.pointwise import div, to
from memcalc.play.values import Value
from memcalc.records import dataclass, replace
from memcalc.tape.events import Buffer

QWEN = "2025-08-25"
"""When its Qwen3 had its head tied as Hugging Face's is (030879fa)."""


@dataclass
class Shape:
    """``TransformerModelArgs``, read from a config of Hugging Face's, and what the job says of the trainer.

    Attributes:
        tied: whether the head is the embeddings (``enable_weight_tying``), which Llama's never is.
        qwen: whether it is Qwen3's, with norms on queries and keys, and rotary numbers that are not complex.
        every: each how many-th block is checkpointed under ``selective``; 0 for operator by operator.
        chunked: whether the loss is summed over chunks of the sequence.
        reshards: whether FSDP2 lets go of its last units after forward too (``fsdp_reshard_after_forward``: ``always``).
    """

    vocabulary: Count
    width: Count
    layers: Count
    heads: Count
    groups: Count
    size: Count
    inner: Count
    version: Version
    every: int
    chunked: bool
    reshards: bool
    tied: bool
    qwen: bool


def build(model: Model, asked: Asked) -> Model:
    """The model with torchtitan's tensors; Llama's head is never tied.

    Raises:
        NotModelledError: another family, or a variant torchtitan does not have.
        InputError: arguments that torchtitan's record does not know.
    """
    shape = _shape(model, asked.arguments)
    head: Layer = (TiedLinear if shape.tied else Linear)(shape.width, shape.vocabulary, bias=False)
    root = Module((
        ("tok_embeddings", Embedding(shape.vocabulary, shape.width)), ("layers", Stack(_block(shape), shape.layers)),
        ("norm", TitanNorm(shape.width, shape.version.norm)), (shape.version.head, head),
    ))  # fmt: skip
    tied = {f"{shape.version.head}.weight": "tok_embeddings.weight"} if shape.tied else {}
    return replace(model, tensors=tuple(root.tensors()), tied=tied, root=root, config=shape)


def _shape(model: Model, arguments: Mapping[str, Any]) -> Shape:
    if model.architecture not in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        raise NotModelledError("implementation", "torchtitan", f"is not modelled for {model.architecture or model.family}",
                               "use a llama or a qwen3 config")  # fmt: skip
    config, version, qwen = model.config, _version(arguments), model.family == "qwen3"
    heads, groups, size = head_sizes(config)
    if not qwen and size * heads != config.hidden_size:
        raise NotModelledError("model.head_dim", size, "is none that torchtitan's Llama has: it takes the width over the heads",
                               f"use {config.hidden_size // heads}")  # fmt: skip
    if config.attention_bias or getattr(config, "mlp_bias", False):
        raise NotModelledError("model.attention_bias", True, "is nothing that torchtitan's models have", "use no biases")
    if qwen and dated(arguments, RELEASE) < QWEN:
        raise NotModelledError("implementation_args.version", str(arguments.get("version")), "is before torchtitan's Qwen3",
                               f"give a date from {QWEN} on")  # fmt: skip
    return Shape(
        config.vocab_size, config.hidden_size, config.num_hidden_layers, heads, groups, size, config.intermediate_size, version,
        _every(arguments, version), _chunked(arguments), _reshards(arguments), qwen and config.tie_word_embeddings, qwen,
    )  # fmt: skip


def _block(shape: Shape) -> TitanBlock:
    attention = TitanAttention(shape.width, shape.heads, shape.groups, shape.size, shape.version, shape.qwen)
    return TitanBlock(attention, TitanFeedForward(shape.width, shape.inner), TitanNorm(shape.width, shape.version.norm))


def _version(arguments: Mapping[str, Any]) -> Version:
    date = dated(arguments, RELEASE)
    found = version_of(date)
    if found is None:
        raise InputError("implementation_args.version", date, "is before what is known of torchtitan",
                         f"give a date from {min(VERSIONS)} on")  # fmt: skip
    if date > LAST:
        raise NotModelledError("implementation_args.version", date, "is after the last of torchtitan's code that is known",
                               f"give a date up to {LAST}")  # fmt: skip
    return found


def _every(arguments: Mapping[str, Any], version: Version) -> int:
    """``activation_checkpoint.selective_ac_option``: ``op``, or every so many-th block."""
    option = arguments.get("selective_ac_option", "op")
    if option == "op":
        return 0
    if not version.every:
        raise InputError("implementation_args.selective_ac_option", option, "is gone since 2026-03-23 (114151ad)", "use op")
    if not str(option).isdigit() or int(str(option)) < 1:
        raise InputError("implementation_args.selective_ac_option", option, "is none of torchtitan's", "use op, or 2")
    return int(str(option))


def _chunked(arguments: Mapping[str, Any]) -> bool:
    loss = arguments.get("loss", "whole")
    if loss not in ("whole", "chunked"):
        raise InputError("implementation_args.loss", loss, "is none of torchtitan's", "use whole or chunked")
    return bool(loss == "chunked")


def _reshards(arguments: Mapping[str, Any]) -> bool:
    policy = arguments.get("reshard_after_forward", "default")
    if policy not in ("default", "always"):
        raise InputError("implementation_args.reshard_after_forward", policy, "is none that is told here",
                         "use default or always; never is zero_stage 2")  # fmt: skip
    return bool(policy == "always")


def _units(model: Model) -> Units:
    """How FSDP2 wraps it; ``always`` lets go of the last units too (5940ddeb parallelize_llama.py:apply_fsdp)."""
    shape: Shape = model.config
    return shape.version.units._replace(stays=()) if shape.reshards else shape.version.units


def play(machine: Machine, architecture: str, config: Shape, root: Module, batch: Batch) -> tuple[Value, Any]:
    """The trainer's forward and loss; what the model gave is let go of before backward (train.py: ``del pred``, e29b6b4d)."""
    pred = machine.call("", _forward, machine, config, root, batch)
    if config.version.chunks:
        head = root.part(config.version.head).play
        return backward_in_chunks(machine, pred, batch["labels"], head, config.version), None
    loss = (chunked_cross_entropy_loss if config.chunked else cross_entropy_loss)(machine, pred, batch["labels"])
    if config.version.counts:
        loss = div(machine, loss, machine.constant((), "float32"))
    if config.version.holds:
        machine.held = pred
    return loss, None


def _forward(machine: Machine, shape: Shape, root: Module, batch: Batch) -> Value:
    """source: Transformer.forward"""
    half = (1, batch.tokens, 1, shape.size // 2)
    angles = machine.constant((*half[:3], 2 * shape.size), "float32") if shape.qwen else machine.constant(half, "complex64")
    h = machine.call("tok_embeddings", root.part("tok_embeddings").play, machine, batch["input_ids"])
    each = ways(shape.version, shape.every, machine.policy.checkpointing)
    h = _layers(machine, each, root.part("layers"), [h], angles)
    normed: Value = machine.call("norm", root.part("norm").play, machine, h)
    del h
    if shape.version.chunks:
        return normed
    output: Value = machine.call(shape.version.head, root.part(shape.version.head).play, machine, normed)
    return to(machine, output, "float32") if shape.version.float_scores else output


def _layers(machine: Machine, each: tuple[Way | None, ...], stack: Stack, box: list[Value], angles: Value) -> Value:
    """Blocks one after another, in turns of those that are checkpointed alike."""

    def block(place: int, index: object) -> None:
        way, layer = each[place % len(each)], stack.layer
        box[0] = machine.call(f"layers.{index}", checkpointed_in, way, machine, _block_play, machine, layer, box[0], angles)

    def turn(names: Sequence[object]) -> None:
        for place, name in enumerate(names):
            block(place, name)

    turns = stack.count // len(each)
    begun = 0
    if machine.unrolled or not machine.decide(turns > 3):
        while machine.decide(stack.count > begun):
            block(begun, begun)
            begun += 1
        return box.pop()
    left = stack.count - turns * len(each)
    while machine.decide(left > begun):
        begun += 1
    turn(range(len(each)))
    machine.repeated(turns - 2, lambda: turn([f"*{place}" if len(each) > 1 else "*" for place in range(len(each))]), box)
    turn([f"last{place}" if len(each) > 1 else "last" for place in range(len(each))])
    ends = stack.count - left
    for place in range(begun):
        block(place, f"end{ends + place if isinstance(ends, int) else place}")
    return box.pop()


def _block_play(machine: Machine, layer: TitanBlock, x: Value, angles: Value) -> Value:
    return layer.play(machine, x, angles)


def held(model: Model, batch: Batch, dtype: str, low: str) -> Iterable[tuple[Buffer, Count]]:
    """The table of rotary numbers, as long as the sequence, and the counts the loss is divided by."""
    shape: Shape = model.config
    # complex64, half as many as a head has; of Qwen3 cosines and sines in FP32, as many as it has of either
    size = shape.version.tables * batch.tokens * shape.size * (8 if shape.qwen else 4)
    yield Buffer("rope_cache" if shape.qwen else "freqs_cis", size, "buffer"), 1
    if shape.version.counts:  # train.py:train_step: local_valid_tokens in int64, global_valid_tokens in FP32
        yield Buffer("local_valid_tokens", 8, "input"), 1
        yield Buffer("global_valid_tokens", 4, "input"), 1


IMPLEMENTATION = Implementation(
    name="torchtitan", source=f"pytorch/torchtitan, commits of {min(VERSIONS)} to {LAST}", build=build, play=play, held=held,
    summary="Llama 3 and Qwen3 under its trainer; selective checkpointing is operator by operator (from source and traces)",
    arguments=("version", "selective_ac_option", "loss", "reshard_after_forward"), units=_units, enters=True,
)  # fmt: skip
