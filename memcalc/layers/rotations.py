"""How queries and keys are turned by their positions, in the manners that differ from llama's.

Each gives queries, keys, and what the module's locals hold of them until attention is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memcalc.layers.attending import Context, core, rotate_half, rotated
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, mul, neg, sub, to
from memcalc.play.reshape import cat, contiguous, merge_dims, narrow, pieces, split_dim, stack, strided, transpose, unsqueeze
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.layers.transformer import Attention, FusedAttention

Turned = tuple[Value, Value, Any]


def halves(machine: Machine, layer: Attention, query: Value, key: Value, context: Context) -> Turned:
    """Halves of the whole head exchanged (modeling_llama.py:apply_rotary_pos_emb)."""
    query, key = rotated(machine, query, key, context)
    return query, key, None


def wide(machine: Machine, layer: Attention, query: Value, key: Value, context: Context) -> Turned:
    """The same with cosines in FP32, cast back behind it.

    source: transformers 5.23.0 models/olmo/modeling_olmo.py:apply_rotary_pos_emb
    """
    turned, of_key = rotated(machine, query, key, context)
    return to(machine, turned, query.dtype), to(machine, of_key, key.dtype), None


def part(machine: Machine, layer: Attention, query: Value, key: Value, context: Context) -> Turned:
    """The first ``rotary`` dimensions of a head turned, the rest passed by; locals hold both parts.

    source: transformers 5.23.0 models/phi/modeling_phi.py:PhiAttention.forward
    """
    width = layer.rotary
    assert width is not None
    rest = query.shape[-1] - width
    query_rot, query_pass = narrow(machine, query, -1, width), narrow(machine, query, -1, rest)
    key_rot, key_pass = narrow(machine, key, -1, width), narrow(machine, key, -1, rest)
    query_rot, key_rot = rotated(machine, query_rot, key_rot, context)
    query = cat(machine, (query_rot, query_pass), -1)
    key = cat(machine, (key_rot, key_pass), -1)
    return query, key, (query_rot, query_pass, key_rot, key_pass)


def joined(machine: Machine, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    """The same within one function, which lets go of the parts.

    source: transformers 5.23.0 models/phi3/modeling_phi3.py:apply_rotary_pos_emb
    """
    assert context.cos is not None
    assert context.sin is not None
    cos, sin = unsqueeze(machine, context.cos, 1), unsqueeze(machine, context.sin, 1)
    width = cos.shape[-1]
    rest = query.shape[-1] - width
    query_rot, query_pass = narrow(machine, query, -1, width), narrow(machine, query, -1, rest)
    key_rot, key_pass = narrow(machine, key, -1, width), narrow(machine, key, -1, rest)
    turned = cat(machine, (_turned(machine, query_rot, cos, sin, rotate_half), query_pass), -1)
    return turned, cat(machine, (_turned(machine, key_rot, cos, sin, rotate_half), key_pass), -1)


def _turned(machine: Machine, value: Value, cos: Value, sin: Value, half: Callable[[Machine, Value], Value]) -> Value:
    return add(machine, mul(machine, value, cos), mul(machine, half(machine, value), sin))


def sliced(machine: Machine, layer: FusedAttention, hidden: Value, context: Context) -> Value:
    """Attention whose queries, keys and values are slices of one projection, rotated in part.

    source: transformers 5.23.0 models/phi3/modeling_phi3.py:Phi3Attention.forward
    """
    names, matrices = layer.names, layer.matrices()
    fused = machine.call(names["qkv"], matrices["qkv"].play, machine, hidden)
    query = narrow(machine, fused, -1, layer.heads * layer.head_dim)
    key = narrow(machine, fused, -1, layer.kv_heads * layer.head_dim)
    value = narrow(machine, fused, -1, layer.kv_heads * layer.head_dim)
    query, key, value = (_by_head(machine, layer, each) for each in (query, key, value))
    query, key = joined(machine, query, key, context)
    if machine.cache is not None:
        key, value = machine.cache.update(machine, key, value, context.window)
    out = core(machine, layer, query, key, value, context)
    out = contiguous(machine, merge_dims(machine, out, 2, 3))
    made: Value = machine.call(names["o"], matrices["o"].play, machine, out)
    del fused
    return made


def _by_head(machine: Machine, layer: FusedAttention, value: Value) -> Value:
    return transpose(machine, split_dim(machine, value, 2, (value.shape[2] // layer.head_dim, layer.head_dim)), 1, 2)


def pairs(machine: Machine, layer: Attention, query: Value, key: Value, context: Context) -> Turned:
    """Neighbouring dimensions exchanged, on FP32 copies, cast back behind it.

    source: transformers 5.23.0 models/cohere/modeling_cohere.py:apply_rotary_pos_emb
    """
    query, key = _in_float(machine, query, key, context)
    return query, key, None


def _in_float(machine: Machine, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    assert context.cos is not None
    assert context.sin is not None
    dtype = query.dtype
    query, key = to(machine, query, "float32"), to(machine, key, "float32")
    cos, sin = unsqueeze(machine, context.cos, 1), unsqueeze(machine, context.sin, 1)
    turned = _turned(machine, query, cos, sin, rotate_pairs)
    of_key = _turned(machine, key, cos, sin, rotate_pairs)
    return to(machine, turned, dtype), to(machine, of_key, dtype)


def rotate_pairs(machine: Machine, value: Value) -> Value:
    """Even and odd dimensions exchanged, the odd ones negated (modeling_cohere.py:rotate_half)."""
    even, odd = strided(machine, value, value.shape[-1] // 2), strided(machine, value, value.shape[-1] // 2)
    place = len(value.shape)
    return merge_dims(machine, stack(machine, (neg(machine, odd), even), -1), place - 1, place)


def chunks(machine: Machine, layer: Attention, query: Value, key: Value, context: Context) -> Turned:
    """Halves of the head turned one after the other by tables of half a head's width.

    source: transformers 5.23.0 models/gpt_oss/modeling_gpt_oss.py:apply_rotary_pos_emb
    """
    assert context.cos is not None
    assert context.sin is not None
    cos, sin = unsqueeze(machine, context.cos, 1), unsqueeze(machine, context.sin, 1)
    query, key = (_chunk_turned(machine, each, cos, sin) for each in (query, key))
    return query, key, None


def _chunk_turned(machine: Machine, value: Value, cos: Value, sin: Value) -> Value:
    half = value.shape[-1] // 2
    first, second = pieces(machine, value, -1, (half, half))
    turned = sub(machine, mul(machine, first, cos), mul(machine, second, sin))
    other = add(machine, mul(machine, second, cos), mul(machine, first, sin))
    return cat(machine, (turned, other), -1)


TURNS: dict[str, Callable[[Machine, Attention, Value, Value, Context], Turned]] = {
    "halves": halves,
    "wide": wide,
    "part": part,
    "pairs": pairs,
    "chunks": chunks,
}
"""By an attention's ``turn``."""
