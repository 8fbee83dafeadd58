"""Attention with queries, keys and values of one matrix: how each family takes them apart, and attention written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.layers.attending import Context, core, repeated
from memcalc.play.machine import Machine
from memcalc.play.matmul import matmul
from memcalc.play.norms import softmax
from memcalc.play.pointwise import add, dropout, scaled, to, where
from memcalc.play.reshape import contiguous, merge_dims, pieces, select, split_dim, transpose, unsqueeze
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.layers.transformer import Attention, FusedAttention

Heads = tuple[Value, Value, Value]
"""Queries, keys and values, (batch, heads, length, head dimension)."""


def projected(machine: Machine, layer: FusedAttention, key: str, value: Value) -> Value:
    """A value through the fused (``qkv``) or the last (``o``) matrix."""
    made: Value = machine.call(layer.names[key], layer.matrices()[key].play, machine, value)
    return made


def thirds(machine: Machine, layer: FusedAttention, fused: Value) -> Heads:
    """All queries, then all keys, then all values.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2Attention.forward
    """
    width = layer.heads * layer.head_dim
    query, key, value = pieces(machine, fused, 2, (width, width, width))
    del fused
    return _apart(machine, layer, query), _apart(machine, layer, key), _apart(machine, layer, value)


def _apart(machine: Machine, layer: FusedAttention | Attention, value: Value) -> Value:
    return transpose(machine, split_dim(machine, value, 2, (layer.heads, layer.head_dim)), 1, 2)


def by_head(machine: Machine, layer: FusedAttention, fused: Value) -> Heads:
    """For each head its query, its key and its value.

    source: transformers 5.23.0 models/gpt_neox/modeling_gpt_neox.py:GPTNeoXAttention.forward
    """
    dim = layer.head_dim
    whole = transpose(machine, split_dim(machine, fused, 2, (layer.heads, 3 * dim)), 1, 2)
    query, key, value = pieces(machine, whole, 3, (dim, dim, dim))
    return query, key, value


def selected(machine: Machine, layer: FusedAttention, fused: Value) -> Heads:
    """For each head its query, its key and its value, picked one by one.

    source: transformers 5.23.0 models/bloom/modeling_bloom.py:BloomAttention._reshape
    """
    whole = split_dim(machine, fused, 2, (layer.heads, 3, layer.head_dim))
    query, key, value = (transpose(machine, select(machine, whole, 3), 1, 2) for _ in range(3))
    return query, key, value


def one_key(machine: Machine, layer: FusedAttention, fused: Value) -> Heads:
    """All queries, then the one key and the one value.

    source: transformers 5.23.0 models/gpt_bigcode/modeling_gpt_bigcode.py:GPTBigCodeAttention.forward
    """
    width, dim = layer.heads * layer.head_dim, layer.head_dim
    query, key, value = pieces(machine, unsqueeze(machine, fused, 1), 3, (width, dim, dim))
    query = split_dim(machine, merge_dims(machine, query, 0, 1), 2, (layer.heads, dim))
    return transpose(machine, query, 1, 2), key, value


def own_heads(machine: Machine, layer: Attention, hidden: Value) -> Heads:
    """Queries, keys and values of matrices of their own.

    source: transformers 5.23.0 models/gpt_neo/modeling_gpt_neo.py:GPTNeoSelfAttention.forward
    """
    matrices = layer.matrices()
    query, key, value = (machine.call(layer.names[each], matrices[each].play, machine, hidden) for each in "qkv")
    return _apart(machine, layer, query), _apart(machine, layer, key), _apart(machine, layer, value)


def merged(machine: Machine, out: Value) -> Value:
    """(batch, length, heads, head dimension) to (batch, length, features), contiguous."""
    return contiguous(machine, merge_dims(machine, out, 2, 3))


def cached(machine: Machine, key: Value, value: Value) -> tuple[Value, Value]:
    """Keys and values with those that a cache has kept; as they are where there is none."""
    return (key, value) if machine.cache is None else machine.cache.update(machine, key, value)


def attended(
    machine: Machine, layer: Any, query: Value, key: Value, value: Value, context: Context, written: Any
) -> tuple[Value, Value | None]:
    """(batch, length, heads, head dimension) by a kernel or by what is ``written`` out; the latter's weights, else None."""
    if context.eager:
        out: tuple[Value, Value | None] = written(machine, query, key, value, context.mask, layer.dropout)
        return out
    return core(machine, layer, query, key, value, context), None


def plain(
    machine: Machine, query: Value, key: Value, value: Value, mask: Value | None, probability: float
) -> tuple[Value, Value]:
    """Attention written out, its softmax in the scores' own dtype.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:eager_attention_forward
    """
    weights = scaled(machine, matmul(machine, query, transpose(machine, key, 2, 3)))
    if mask is not None:
        weights = add(machine, weights, mask)
    weights = softmax(machine, weights)
    weights = to(machine, weights, value.dtype)
    weights = dropout(machine, weights, probability)
    out = matmul(machine, weights, value)
    out = transpose(machine, out, 1, 2)
    return out, weights


def upcast(
    machine: Machine, query: Value, key: Value, value: Value, mask: Value | None, probability: float
) -> tuple[Value, Value]:
    """Attention written out, its softmax in FP32; keys and values are repeated where queries share them.

    source: transformers 5.23.0 models/gpt_bigcode/modeling_gpt_bigcode.py:eager_attention_forward
    """
    heads = query.shape[1]
    shared = not machine.same(heads, key.shape[1])
    keys = repeated(machine, key, heads) if shared else key
    values = repeated(machine, value, heads) if shared else value
    weights = scaled(machine, matmul(machine, query, transpose(machine, keys, 2, 3)))
    if mask is not None:
        weights = add(machine, weights, mask)
    weights = to(machine, softmax(machine, weights, "float32"), query.dtype)
    weights = dropout(machine, weights, probability)
    out = matmul(machine, weights, values)
    out = contiguous(machine, transpose(machine, out, 1, 2))
    return out, weights


def in_float(
    machine: Machine, query: Value, key: Value, value: Value, mask: Value | None, probability: float
) -> tuple[Value, Value]:
    """Attention written out on FP32 copies of queries and keys, and divided.

    source: transformers 5.23.0 models/gptj/modeling_gptj.py:GPTJAttention._attn
    """
    query = to(machine, query, "float32")
    key = to(machine, key, "float32")
    weights = matmul(machine, query, transpose(machine, key, 2, 3))
    weights = scaled(machine, weights, "div.Tensor")
    if mask is not None:
        weights = add(machine, weights, mask)
    weights = softmax(machine, weights)
    weights = to(machine, weights, value.dtype)
    weights = dropout(machine, weights, probability)
    return matmul(machine, weights, value), weights


def windowed(
    machine: Machine, query: Value, key: Value, value: Value, mask: Value | None, probability: float
) -> tuple[Value, Value]:
    """The same without a division, under the layer's own mask, which tells windows.

    source: transformers 5.23.0 models/gpt_neo/modeling_gpt_neo.py:GPTNeoSelfAttention._attn
    """
    query = to(machine, query, "float32")
    key = to(machine, key, "float32")
    weights = matmul(machine, query, transpose(machine, key, 2, 3))
    reach = machine.constant((1, 1, query.shape[2], key.shape[2]), "bool")
    least = machine.new((), weights.dtype, "tensor")
    weights = where(machine, reach, weights, least)
    if mask is not None:
        weights = add(machine, weights, mask)
    weights = softmax(machine, weights)
    weights = to(machine, weights, value.dtype)
    weights = dropout(machine, weights, probability)
    return matmul(machine, weights, value), weights
