"""How attention runs: projections, rotation, the kernel, and what it is given by the model around it."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

from memcalc.play import attention as kernels
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, mul, neg
from memcalc.play.reshape import cat, contiguous, expand, merge_dims, narrow, split_dim, transpose, unsqueeze
from memcalc.play.values import Value
from memcalc.records import dataclass

if TYPE_CHECKING:
    from memcalc.layers.transformer import Attention


@dataclass
class Context:
    """What a model hands to each of its layers.

    Attributes:
        mask: the attention mask; None where none is made.
        cos: of the rotary positions, ``(1, length, rotated)``; None without them.
        sin: likewise.
        cache: where keys and values are kept; None without a cache.
        eager: whether attention is written out.
        encoder: what an encoder gave, for attention to it.
        place: the positions, which layers are handed and a checkpoint keeps.
        bias: what is added to the scores for how far apart two positions are.
        weights: where written-out attention leaves its weights, for a layer that holds them to its end; None where none does.
    """

    mask: Value | None = None
    cos: Value | None = None
    sin: Value | None = None
    cache: list[Value] | None = field(default_factory=list)
    eager: bool = False
    encoder: Value | None = None
    place: Value | None = None
    bias: Value | None = None
    weights: list[Value] | None = None


def separate(machine: Machine, layer: Attention, hidden: Value, context: Context) -> Value:
    """Queries, keys and values of three matrices.

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaAttention.forward
    """
    matrices, names = layer.matrices(), layer.names
    query = _projected(machine, layer, "q", matrices, hidden, layer.heads)
    key = _projected(machine, layer, "k", matrices, hidden, layer.kv_heads)
    value = _projected(machine, layer, "v", matrices, hidden, layer.kv_heads)
    if layer.rotary is not None:
        query, key = rotated(machine, query, key, context)
    if context.cache is not None:
        context.cache += (key, value)
    out = core(machine, layer, query, key, value, context)
    out = contiguous(machine, merge_dims(machine, out, 2, 3))
    return machine.call(names["o"], matrices["o"].play, machine, out)  # type: ignore[no-any-return]


def _projected(machine: Machine, layer: Attention, key: str, matrices: Any, hidden: Value, heads: Any) -> Value:
    """(batch, heads, length, head dimension)."""
    made = machine.call(layer.names[key], matrices[key].play, machine, hidden)
    made = split_dim(machine, made, 2, (heads, layer.head_dim))
    norm = layer.norm_of(key) if key in ("q", "k") else None
    if norm is not None:
        made = machine.call(layer.names.get(f"{key}_norm", f"{key}_norm"), norm.play, machine, made)
    return transpose(machine, made, 1, 2)


def rotated(machine: Machine, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    """Queries and keys turned by their positions (modeling_llama.py:apply_rotary_pos_emb)."""
    assert context.cos is not None
    assert context.sin is not None
    cos, sin = unsqueeze(machine, context.cos, 1), unsqueeze(machine, context.sin, 1)
    turned = add(machine, mul(machine, query, cos), mul(machine, rotate_half(machine, query), sin))
    return turned, add(machine, mul(machine, key, cos), mul(machine, rotate_half(machine, key), sin))


def rotate_half(machine: Machine, value: Value) -> Value:
    """The halves of the last dimension exchanged, the second negated (modeling_llama.py:rotate_half)."""
    half = value.shape[-1] // 2
    first = narrow(machine, value, -1, half)
    second = narrow(machine, value, -1, value.shape[-1] - half)
    return cat(machine, (neg(machine, second), first), -1)


def core(machine: Machine, layer: Any, query: Value, key: Value, value: Value, context: Context) -> Value:
    """The kernel, or attention written out: (batch, length, heads, head dimension)."""
    shared = not machine.same(layer.heads, layer.kv_heads)
    if context.eager:
        if shared:
            key, value = repeated(machine, key, layer.heads), repeated(machine, value, layer.heads)
        upcast = getattr(layer, "upcast", True)
        return kernels.eager(
            machine, query, key, value, context.mask, probability=layer.dropout, upcast=upcast, held=context.weights
        )
    # transformers 5.23.0 integrations/sdpa_attention.py:use_gqa_in_sdpa: no mask, and heads of at most 256
    grouped = shared and context.mask is None and machine.decide(key.shape[-1] <= 256)
    if shared and not grouped:
        key, value = repeated(machine, key, layer.heads), repeated(machine, value, layer.heads)
    causal = layer.causal and context.mask is None and machine.decide(query.shape[2] > 1)
    out = kernels.attend(machine, query, key, value, context.mask, probability=layer.dropout, causal=causal, grouped=grouped)
    return contiguous(machine, transpose(machine, out, 1, 2))


def repeated(machine: Machine, value: Value, heads: Any) -> Value:
    """Key or value heads repeated for each query head (modeling_llama.py:repeat_kv)."""
    batch, held, length, dim = value.shape
    wide = expand(machine, unsqueeze(machine, value, 2), (batch, held, heads // held, length, dim))
    return merge_dims(machine, wide, 1, 2)
