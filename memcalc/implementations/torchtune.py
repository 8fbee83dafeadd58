"""Torchtune's TransformerDecoder under its single-device recipes: Llama and Qwen 2, whole or with adapters, logits in chunks.

source: pytorch/torchtune modules/transformer.py, modules/loss/ce_chunked_output_loss.py, models/llama2, llama3, llama3_1,
llama3_2, qwen2 _component_builders.py, recipes/full_finetune_single_device.py, lora_finetune_single_device.py, at the commits
of ``VERSIONS``
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from memcalc.arrays import Count, ceil_div
from memcalc.errors import NotModelledError, either
from memcalc.families._forward import Batch
from memcalc.implementations._litgpt_scripts import chunks
from memcalc.implementations._torchtune_layers import (
    Positions,
    TuneAttention,
    TuneBlock,
    TuneLinear,
    TuneMLP,
    TuneNorm,
)
from memcalc.implementations._torchtune_shapes import MATRICES, Shape, builder_of, shape_of
from memcalc.implementations.base import Asked, Implementation
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer as Held
from memcalc.layers.basic import Embedding, Linear, TiedLinear
from memcalc.models import Model
from memcalc.play.inplace import added_in_place
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import div, mul, scaled, to
from memcalc.play.reshape import merge_dims, pieces
from memcalc.play.values import Value
from memcalc.records import replace
from memcalc.tape.events import Buffer

CHUNKS = 8
"""``num_output_chunks`` (modules/loss/ce_chunked_output_loss.py)."""
FAMILIES = ("llama", "qwen2")


def build(model: Model, asked: Asked) -> Model:
    """The model with torchtune's tensors, adapted where the job asks for it.

    Raises:
        NotModelledError: a family, a loss or a quantised base that is not played.
        InputError: arguments that torchtune's recipes do not know.
    """
    if model.family not in FAMILIES or not str(model.architecture).endswith("ForCausalLM"):
        raise NotModelledError("implementation", "torchtune", f"is not modelled for {model.architecture or model.family}",
                               f"use one of {either(list(FAMILIES))}")  # fmt: skip
    if asked.quantization is not None:
        text = "is bitsandbytes', and torchtune's NF4 is torchao's"
        raise NotModelledError("training.quantization", asked.quantization, text, "leave it out")
    shape = shape_of(model, asked)
    root = _root(shape)
    tensors = tuple(
        replace(one, trainable=one.role == "parameter" and (shape.lora is None or ".lora_" in one.name))
        for one in root.tensors()
    )
    tied = {"output.weight": "tok_embeddings.weight"} if shape.tied else {}
    assumed = (*model.assumptions, f"torchtune's builder is {builder_of(model, asked.arguments)}")
    return replace(model, tensors=tensors, tied=tied, root=root, config=shape, assumptions=assumed)


def _root(shape: Shape) -> Module:
    """source: models/llama3/_component_builders.py: llama3, lora_llama3; models/llama3_2, models/qwen2 likewise"""
    output: Any = _matrix(shape, "output", shape.width, shape.vocabulary)
    parts: list[tuple[str, Layer]] = [
        ("tok_embeddings", Embedding(shape.vocabulary, shape.width)), ("layers", Stack(_block(shape), shape.layers)),
        ("norm", TuneNorm(shape.width, shape.norm)),
        ("output", TiedLinear(shape.width, shape.vocabulary) if shape.tied else output),
    ]  # fmt: skip
    if not shape.alone:
        parts.append(("layers.0.attn.pos_embeddings", _rope(shape)))
    return Module(parts)


def _rope(shape: Shape) -> Module:
    """``theta`` and ``cache``, in FP32 whatever the model is in (position_embeddings.py:rope_init)."""
    return Module((("theta", Held((shape.head_dim // 2,))), ("cache", Held(shape.cache))))


def _matrix(shape: Shape, target: str, width: Count, out: Count, *, bias: bool = False) -> TuneLinear:
    return TuneLinear(Linear(width, out, bias), shape.lora if target in shape.targets else None)


def _block(shape: Shape) -> TuneBlock:
    width, keys = shape.width, shape.groups * shape.head_dim
    outs = (width, keys, keys, width)
    matrices = tuple(
        (name, _matrix(shape, name, width, out, bias=shape.biased and name != "output_proj"))
        for name, out in zip(MATRICES, outs, strict=True)
    )
    attention = TuneAttention(matrices, shape.heads, shape.groups, shape.head_dim, shape.biased)
    mlp = TuneMLP((("w1", _matrix(shape, "mlp", width, shape.inner)), ("w2", _matrix(shape, "mlp", shape.inner, width)),
                   ("w3", _matrix(shape, "mlp", width, shape.inner))))  # fmt: skip
    parts: list[tuple[str, Layer]] = [("attn", attention), ("mlp", mlp)]
    if shape.alone:
        parts.append(("attn.pos_embeddings", _rope(shape)))
    norm = TuneNorm(width, shape.norm)
    return TuneBlock((*parts, ("sa_norm", norm), ("mlp_norm", norm)))


def play(machine: Machine, architecture: str, shape: Shape, root: Module, batch: Batch) -> tuple[Value, Any]:
    """source: recipes/full_finetune_single_device.py: _loss_step, train"""
    if machine.autocast is not None:
        raise NotModelledError("training.precision", machine.autocast, "is no autocast in torchtune, which has none",
                               "use bf16-pure or fp32")  # fmt: skip
    current_num_tokens = _counted(machine, batch["labels"])
    return mul(machine, _loss(machine, shape, root, batch), current_num_tokens), None


def _counted(machine: Machine, labels: Value) -> Value:
    """``(labels != ignore_index).sum()``."""
    seen = machine.like(labels, "ne.Scalar", "bool")
    total = machine.new((), "int64", "sum")
    del seen
    return total


def _loss(machine: Machine, shape: Shape, root: Module, batch: Batch) -> Value:
    logits = _decoded(machine, shape, root, batch["input_ids"])
    labels = machine.like(batch["labels"], "cat")  # hstack of the labels but the first, and what is ignored
    if shape.loss == "CrossEntropyLoss":
        return cross_entropy(machine, merge_dims(machine, logits[0], 0, 1), merge_dims(machine, labels, 0, 1))
    return _chunked_loss(machine, logits, labels)


def _chunked_loss(machine: Machine, logits: list[Value], labels: Value) -> Value:
    """source: modules/loss/ce_chunked_output_loss.py:CEWithChunkedOutputLoss.forward"""
    total_elements = _counted(machine, labels)
    parts = pieces(machine, labels, 1, [chunk.shape[1] for chunk in logits])
    flat = [merge_dims(machine, part, 0, 1) for part in parts]
    del parts
    rows = [merge_dims(machine, chunk, 0, 1) for chunk in logits]
    total: Value | None = None
    for scores, targets in zip(rows, flat, strict=True):
        loss = cross_entropy(machine, to(machine, scores, "float32"), targets)
        total = scaled(machine, loss, "add.Tensor") if total is None else added_in_place(machine, total, loss)
        del loss
    assert total is not None
    return div(machine, total, total_elements)


def _decoded(machine: Machine, shape: Shape, root: Module, tokens: Value) -> list[Value]:
    """source: modules/transformer.py: TransformerDecoder.forward, chunked_output"""
    positions = Positions(machine.constant(shape.cache, "float32"), shape.packed)
    h = machine.call("tok_embeddings", root.part("tok_embeddings").play, machine, tokens)
    h = _layers(machine, root.part("layers"), h, positions)
    h = machine.call("norm", root.part("norm").play, machine, h)
    output = root.part("output").play
    if shape.loss == "CrossEntropyLoss":
        return [to(machine, machine.call("output", output, machine, h), "float32")]
    lengths = chunks(machine, h.shape[1], ceil_div(h.shape[1], CHUNKS))
    return [machine.call("output", output, machine, chunk) for chunk in pieces(machine, h, 1, lengths)]


def _layers(machine: Machine, stack: Stack, h: Value, positions: Positions) -> Value:
    from memcalc.families._forward import run_layers

    return run_layers(machine, "layers", stack, _layer, h, positions)


def _layer(machine: Machine, layer: TuneBlock, h: Value, positions: Any) -> Value:
    return layer.play(machine, h, positions)


def held(model: Model, batch: Batch, dtype: str, low: str) -> Iterable[tuple[Buffer, Count]]:
    """What the recipe keeps beside the model: what is ignored, and of packed samples each token's position and document.

    source: recipes/full_finetune_single_device.py: ignore_labels_cache; data/_collate.py:padded_collate_packed; modules/
    attention_utils.py:packed_block_causal_mask
    """
    shape: Shape = model.config
    yield Buffer("ignore_labels_cache", 8 * batch.rows, "input"), 1
    if shape.packed:
        yield Buffer("input_pos", 8 * batch.rows * batch.tokens, "input"), 1
        yield Buffer("document_ids", 8 * batch.rows * batch.tokens, "input"), 1


IMPLEMENTATION = Implementation(
    name="torchtune", source="pytorch/torchtune, commits of 2024-11-10 to 2025-04", build=build, play=play, held=held,
    summary="Llama and Qwen 2 under its single-device recipes, and adapters of its own",
    arguments=("version", "builder", "loss", "packed", "max_seq_len"), adapts=True,
)  # fmt: skip
