"""Megatron-LM's GPT on Transformer Engine's layers, one rank without tensor parallelism: fused norms, one FP32 copy of logits.

From source alone, for neither runs without a GPU: its DDP buffers and its distributed optimizer are those of
memcalc.parallelism.megatron, and FP8 is not part of it.

source: NVIDIA/Megatron-LM d98e8a64 megatron/core/models/gpt/gpt_model.py, gpt_layer_specs.py (transformer_engine),
transformer/transformer_layer.py, attention.py, mlp.py; NVIDIA/TransformerEngine v2.8
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memcalc.arrays import Count, round_up
from memcalc.errors import InputError, NotModelledError
from memcalc.families._forward import Batch
from memcalc.implementations import _megatron_te as te
from memcalc.implementations._megatron_layers import MegatronLayer, Shape, norm_of
from memcalc.implementations.base import Asked, Implementation
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Embedding, Linear, Norm
from memcalc.models import Model
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout
from memcalc.play.reentrant import reentrant
from memcalc.play.reshape import contiguous, transpose
from memcalc.play.values import Value
from memcalc.records import replace
from memcalc.tape.events import Buffer

HALF = ("bfloat16", "float16")
WORKSPACE = 32 * 2**20 + 1024
"""Of TE's matrix products on Hopper, allocated at their first (pytorch/module/base.py:get_cublas_workspace_size_bytes)."""


def build(model: Model, asked: Asked) -> Model:
    """The model with Megatron's tensors: query, key and value in one matrix, norms inside the matrices they go before.

    Raises:
        NotModelledError: a family that is neither GPT-2's nor Llama's, or a variant Megatron's layers do not have.
        InputError: arguments that are none of Megatron's.
    """
    shape = _shape(model, asked.arguments)
    body: list[tuple[str, Layer]] = [("embedding.word_embeddings", Embedding(shape.vocabulary, shape.width))]
    if shape.positions is not None:
        body.append(("embedding.position_embeddings", Embedding(shape.positions, shape.width)))
    body.append(("decoder.layers", Stack(MegatronLayer(shape), shape.layers)))
    body.append(("decoder.final_layernorm", Norm(shape.width, bias=shape.biased, function="layer" if shape.biased else "rms")))
    if not shape.tied:
        body.append(("output_layer", Linear(shape.width, shape.vocabulary, bias=False)))
    root = Module(tuple(body))
    tied = {"output_layer.weight": "embedding.word_embeddings.weight"} if shape.tied else {}
    return replace(model, tensors=tuple(root.tensors()), tied=tied, root=root, config=shape)


def _shape(model: Model, arguments: Mapping[str, Any]) -> Shape:
    if model.architecture not in ("GPT2LMHeadModel", "LlamaForCausalLM"):
        raise NotModelledError("implementation", "megatron", f"is not modelled for {model.architecture or model.family}",
                               "use a gpt2 or a llama config")  # fmt: skip
    config = model.config
    multiple = _whole(arguments, "make_vocab_size_divisible_by", 128)
    more = {
        "vocabulary": round_up(config.vocab_size, multiple), "every": _whole(arguments, "recompute_num_layers", 1),
        "method": _method(arguments),
    }  # fmt: skip
    if model.architecture == "GPT2LMHeadModel":
        return _gpt2(config, more)
    return _llama(config, more)


def _gpt2(config: Any, more: dict[str, Any]) -> Shape:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise NotModelledError("model.activation_function", config.activation_function, "is not Megatron's fused GELU",
                               "use gelu_new")  # fmt: skip
    heads, width = config.num_attention_heads, config.hidden_size
    inner = 4 * width if config.intermediate_size is None else config.intermediate_size
    return Shape(
        width=width, layers=config.num_hidden_layers, heads=heads, groups=heads, size=width // heads, inner=inner, biased=True,
        positions=config.max_position_embeddings, tied=config.tie_word_embeddings, embedding_dropout=config.embd_pdrop,
        hidden_dropout=config.resid_pdrop, attention_dropout=config.attn_pdrop, **more,
    )  # fmt: skip


def _llama(config: Any, more: dict[str, Any]) -> Shape:
    from memcalc.families._rotary_decoder import head_sizes

    heads, groups, size = head_sizes(config)
    if config.attention_bias or config.mlp_bias:
        raise NotModelledError("model.attention_bias", True, "is not modelled on megatron's Llama", "use no biases")
    return Shape(
        width=config.hidden_size, layers=config.num_hidden_layers, heads=heads, groups=groups, size=size,
        inner=config.intermediate_size, biased=False, positions=None, tied=config.tie_word_embeddings, **more,
    )  # fmt: skip


def _whole(arguments: Mapping[str, Any], name: str, usual: int) -> int:
    value = arguments.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"implementation_args.{name}", value, "is not a whole number over 0", f"use {usual}")
    return value


def _method(arguments: Mapping[str, Any]) -> str:
    method = arguments.get("recompute_method", "uniform")
    if method not in ("uniform", "block"):
        raise InputError("implementation_args.recompute_method", method, "is none of Megatron's", "use uniform or block")
    return str(method)


def play(machine: Machine, architecture: str, config: Shape, root: Module, batch: Batch) -> tuple[Value, Any]:
    """source: gpt_model.py:GPTModel.forward; pretrain_gpt.py:loss_func

    Raises:
        NotModelledError: parameters that are not in 16 bits, or autocast, which Megatron does not run under.
    """
    if machine.policy.dtype not in HALF or machine.autocast is not None:
        raise NotModelledError("training.precision", machine.policy.dtype, "is not what Megatron's layers are modelled in",
                               "use bf16, bf16-pure or their FP16 kind")  # fmt: skip
    hidden = _embedded(machine, config, root, batch)
    hidden = _layers(machine, config, root.part("decoder.layers"), [hidden])
    hidden = machine.call("decoder.final_layernorm", norm_of, machine, config, hidden)
    weight = machine.call("output_layer", machine.parameter, "weight", (config.vocabulary, config.width), "linear")
    logits = machine.call("output_layer", te.linear, machine, hidden, weight, "matmul")
    del hidden
    return te.cross_entropy(machine, logits, batch["labels"]), None


def _embedded(machine: Machine, shape: Shape, root: Module, batch: Batch) -> Value:
    """source: language_model_embedding.py:LanguageModelEmbedding.forward"""
    name = "embedding.word_embeddings"
    embeddings = machine.call(name, root.part(name).play, machine, batch["input_ids"])
    if shape.positions is not None:
        name = "embedding.position_embeddings"
        places = machine.constant((batch.rows, batch.tokens), "int64")
        embeddings = add(machine, embeddings, machine.call(name, root.part(name).play, machine, places))
    embeddings = contiguous(machine, transpose(machine, embeddings, 0, 1))
    return dropout(machine, embeddings, shape.embedding_dropout)


def _layers(machine: Machine, shape: Shape, stack: Stack, box: list[Value]) -> Value:
    """Layers one after another, or in groups that are recomputed (core/recompute.py:checkpointed_forward)."""
    layer = MegatronLayer(shape)
    full = machine.policy.checkpointing == "full"
    each = shape.every if full and shape.method == "uniform" else 1
    block = shape.every if full and shape.method == "block" else None  # the first so many are recomputed, each by itself

    def group(names: Sequence[object], *, again: bool = full) -> None:
        def run(hidden: Value) -> Value:
            for name in names:
                hidden = machine.call(f"decoder.layers.{name}", layer.play, machine, hidden)
            return hidden

        box[0] = reentrant(machine, run, box[0]) if again else run(box[0])

    def named(mark: str, count: int) -> list[str]:
        return [mark if each == 1 else f"{mark}{place}" for place in range(count)]

    begun = 0
    groups = stack.count // each
    if block is None and not machine.unrolled and machine.decide(groups > 3):
        group(range(each))
        machine.repeated(groups - 2, lambda: group(named("*", each)), box)
        group(named("last", each))
        left = stack.count - groups * each
        while machine.decide(left > begun):
            begun += 1
        if begun:
            group(named("end", begun))
        return box.pop()
    while machine.decide(stack.count > begun):
        first = begun
        while begun < first + each and machine.decide(stack.count > begun):
            begun += 1
        group(range(first, begun), again=full and (block is None or begun <= block))
    return box.pop()


def held(model: Model, batch: Batch, dtype: str, low: str) -> Iterable[tuple[Buffer, Count]]:
    """What the data loader gives beside tokens and labels, and what TE and the rotary embedding keep."""
    shape: Shape = model.config
    tokens = batch.rows * batch.tokens
    yield Buffer("loss_mask", 4 * tokens, "input"), 1  # core/../training/utils.py:get_batch_on_this_tp_rank
    yield Buffer("position_ids", 8 * tokens, "input"), 1
    yield Buffer("attention_mask", tokens * batch.tokens, "input"), 1
    yield Buffer("TE cuBLAS workspace", WORKSPACE, "workspace"), 1
    if shape.positions is None:
        yield Buffer("rotary_pos_emb", 4 * batch.tokens * shape.size, "buffer"), 1


IMPLEMENTATION = Implementation(
    name="megatron", source="NVIDIA/Megatron-LM d98e8a64 on NVIDIA/TransformerEngine v2.8", build=build, play=play, held=held,
    summary="GPT and Llama on Transformer Engine's layers, one rank, tp 1, no FP8 (from source alone)",
    arguments=("make_vocab_size_divisible_by", "recompute_method", "recompute_num_layers"),
)  # fmt: skip
