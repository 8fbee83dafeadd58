"""Torchtune's TransformerDecoder under its single-device recipes: Llama and Qwen 2, whole or with adapters, logits in chunks.

source: pytorch/torchtune modules/transformer.py, modules/loss/ce_chunked_output_loss.py, models/llama2, llama3, llama3_1,
llama3_2, qwen2 _component_builders.py, recipes/full_finetune_single_device.py, lora_finetune_single_device.py, at the commits
of ``VERSIONS``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from memcalc.arrays import Count, ceil_div
from memcalc.errors import InputError, NotModelledError, did_you_mean, either
from memcalc.families._forward import Batch
from memcalc.implementations._litgpt_scripts import chunks
from memcalc.implementations._torchtune_layers import (
    NormKind,
    Positions,
    TuneAttention,
    TuneBlock,
    TuneLinear,
    TuneLora,
    TuneMLP,
    TuneNorm,
)
from memcalc.implementations.base import Asked, Implementation
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer as Held
from memcalc.layers.basic import Embedding, Linear, TiedLinear
from memcalc.models import Model
from memcalc.play.checkpoint import checkpointed
from memcalc.play.inplace import added_in_place
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import div, mul, scaled, to
from memcalc.play.reshape import merge_dims, narrow, pieces
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tape.events import Buffer

class Version(NamedTuple):
    """What changed from time to time.

    Attributes:
        norm: how an RMSNorm is written.
        copies: whether builders that build one layer copy it, with the rotary cache in it (modules/transformer.py:_get_clones);
            else every layer is built on one cache.
    """

    norm: NormKind
    copies: bool


VERSIONS: Mapping[str, Version] = {
    "2024-11-10": Version("own", copies=True),  # e1caa9f8 to 1814feb1, v0.4.0
    "2024-11-25": Version("built_in", copies=True),  # 1450d612, v0.5.0
    "2025-01-27": Version("built_in", copies=False),  # 23896c30, v0.6.0 and v0.6.1
}
"""By the date of the first commit that was read with it."""
BUILDERS: Mapping[str, tuple[int, bool]] = {
    "llama2": (4096, True), "llama3": (8192, True), "llama3_1": (131072, False), "llama3_2": (131072, False),
    "qwen2": (32768, True),
}  # fmt: skip
"""By builder: positions that its rotary cache has (models/*/_model_builders.py: max_seq_len), and whether it built one layer
and copied it."""
LOSSES = ("CEWithChunkedOutputLoss", "CrossEntropyLoss")
"""Of the recipes' ``loss._component_``."""
CHUNKS = 8
"""``num_output_chunks`` (modules/loss/ce_chunked_output_loss.py)."""
FAMILIES = ("llama", "qwen2")
MATRICES = ("q_proj", "k_proj", "v_proj", "output_proj")
TARGETS = (*MATRICES, "mlp", "output")
"""What adapters stand on (models/llama3/_component_builders.py: lora_attn_modules, apply_lora_to_mlp, apply_lora_to_output)."""


@dataclass
class Shape:
    """A decoder as torchtune's builders are told it, read from a config of Hugging Face's.

    Attributes:
        vocabulary: tokens.
        width: features.
        layers: blocks.
        heads: of queries.
        groups: of keys and values.
        inner: features of the feed-forward.
        longest: positions in the rotary cache (``max_seq_len``).
        tied: whether the output reads the embedding's table.
        biased: whether queries, keys and values have biases, and halves turn (Qwen 2).
        alone: whether every layer has a rotary cache of its own (a layer built once and copied: transformer.py:_get_clones).
        norm: how the norms are written.
        loss: one of ``LOSSES``.
        packed: whether samples are packed.
        lora: the adapters; None for none.
        targets: what they stand on.
    """

    vocabulary: Count
    width: Count
    layers: Count
    heads: Count
    groups: Count
    inner: Count
    longest: Count
    tied: bool
    biased: bool
    alone: bool
    norm: NormKind
    loss: str
    packed: bool
    lora: TuneLora | None
    targets: frozenset[str]

    @property
    def head_dim(self) -> Count:
        """Of each head."""
        return self.width // self.heads

    @property
    def cache(self) -> tuple[Count, ...]:
        """The rotary cache: pairs of a cosine and a sine, or of Qwen 2 both for every dimension of a head."""
        return (self.longest, 2 * self.head_dim) if self.biased else (self.longest, self.head_dim // 2, 2)


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
        raise NotModelledError("training.quantization", asked.quantization, "is bitsandbytes', and torchtune's NF4 is torchao's",
                               "leave it out")  # fmt: skip
    shape = _shape(model, asked)
    root = _root(shape)
    tensors = tuple(
        replace(one, trainable=one.role == "parameter" and (shape.lora is None or ".lora_" in one.name))
        for one in root.tensors()
    )
    tied = {"output.weight": "tok_embeddings.weight"} if shape.tied else {}
    assumed = (*model.assumptions, f"torchtune's builder is {_builder(model, asked.arguments)}")
    return replace(model, tensors=tensors, tied=tied, root=root, config=shape, assumptions=assumed)


def _shape(model: Model, asked: Asked) -> Shape:
    config, told, family = model.config, asked.arguments, model.family
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None and not _alike(head_dim * heads, width):
        raise NotModelledError("model.head_dim", head_dim, "is the width over the heads in torchtune", "leave it out")
    if family == "llama" and (config.attention_bias or config.mlp_bias):
        raise NotModelledError("model.attention_bias", True, "is not in torchtune's Llama", "leave it out")
    loss, packed = told.get("loss", LOSSES[0]), told.get("packed", False)
    version = _version(told)
    longest, copied = BUILDERS[_builder(model, told)]
    longest = told.get("max_seq_len", longest)
    if loss not in LOSSES:
        raise NotModelledError("implementation_args.loss", loss, "is not modelled", f"use {either(list(LOSSES))}")
    if not isinstance(packed, bool):
        raise InputError("implementation_args.packed", packed, "is not what a dataset takes", "use true or false")
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise InputError("implementation_args.max_seq_len", longest, "is no number of tokens", "use 8192 or another")
    groups = heads if config.num_key_value_heads is None else config.num_key_value_heads
    return Shape(
        config.vocab_size, width, config.num_hidden_layers, heads, groups, config.intermediate_size, longest,
        bool(config.tie_word_embeddings), family == "qwen2", copied and version.copies, version.norm, loss, packed, *_lora(asked),
    )  # fmt: skip


def _builder(model: Model, told: Mapping[str, Any]) -> str:
    """As the job says; else Qwen 2's, or that of Llama 3.2 for tied embeddings and of Llama 3.1 for others."""
    usual = "qwen2" if model.family == "qwen2" else "llama3_2" if model.config.tie_word_embeddings else "llama3_1"
    name = told.get("builder", usual)
    if name not in BUILDERS or (name == "qwen2") != (model.family == "qwen2"):
        raise InputError("implementation_args.builder", name, f"does not build a {model.family}", did_you_mean(str(name), [
            each for each in BUILDERS if (each == "qwen2") == (model.family == "qwen2")]))  # fmt: skip
    return str(name)


def _alike(first: Any, second: Any) -> bool:
    same = first == second
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _version(told: Mapping[str, Any]) -> Version:
    date = str(told.get("version", max(VERSIONS)))
    known = [each for each in VERSIONS if each <= date]
    if not known:
        raise InputError("implementation_args.version", date, "is before what is known of torchtune",
                         f"give a date from {min(VERSIONS)} on")  # fmt: skip
    return VERSIONS[max(known)]


def _lora(asked: Asked) -> tuple[TuneLora | None, frozenset[str]]:
    """Torchtune's defaults: rank 8, no dropout; the recipes' configs adapt queries, values and output_proj."""
    if asked.lora is None:
        return None, frozenset()
    targets = asked.lora.get("target_modules") or ("q_proj", "v_proj", "output_proj")
    for name in targets:
        if name not in TARGETS:
            raise InputError("training.lora.target_modules", name, "is nothing that torchtune adapts", did_you_mean(name, TARGETS))
    return TuneLora(int(asked.lora.get("r", 8)), float(asked.lora.get("lora_dropout", 0.0))), frozenset(targets)


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
    arguments=("version", "builder", "loss", "packed", "max_seq_len"), adapts=True,
)  # fmt: skip
