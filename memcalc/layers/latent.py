"""How latent attention runs.

Locals stand for the locals of the modules: what they hold lives until the function returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.layers.attending import Context, core, rotated
from memcalc.layers.basic import Linear, rms_norm
from memcalc.play.complexes import as_complex, as_real, turned_by
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, mul, sub, to
from memcalc.play.reshape import cat, contiguous, expand, merge_dims, narrow, pieces, split_dim, strided, transpose, unsqueeze
from memcalc.play.values import Value
from memcalc.play.written import written_into

if TYPE_CHECKING:
    from memcalc.layers.latent_attention import LatentAttention


def latent(machine: Machine, layer: LatentAttention, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py:DeepseekV3Attention.forward"""
    query = _queries(machine, layer, hidden)
    query = transpose(machine, split_dim(machine, query, 2, (layer.heads, layer.query_dim)), 1, 2)
    plain, turned = pieces(machine, query, -1, (layer.nope_dim, layer.rope_dim))
    narrowed = Linear(layer.hidden, layer.kv_rank + layer.rope_dim, layer.bias)
    compressed = machine.call("kv_a_proj_with_mqa", narrowed.play, machine, hidden)
    low, key_turned = pieces(machine, compressed, -1, (layer.kv_rank, layer.rope_dim))
    low = machine.call("kv_a_layernorm", rms_norm(layer.kv_rank).play, machine, low)
    low, key_turned = unsqueeze(machine, low, 1), unsqueeze(machine, key_turned, 1)
    turned, key_turned = _turn(machine, layer, turned, key_turned, context)
    if machine.cache is not None:  # the latents, before they are widened
        low, key_turned = machine.cache.update(machine, low, key_turned, context.window)
    states = cat(machine, (plain, turned), -1)
    key, value = _widened(machine, layer, low, key_turned)
    out = core(machine, layer, states, key, value, context)
    out = contiguous(machine, merge_dims(machine, out, 2, 3))
    output = Linear(layer.heads * layer.value_dim, layer.hidden, layer.bias)
    made: Value = machine.call("o_proj", output.play, machine, out)
    del compressed
    return made


def _queries(machine: Machine, layer: LatentAttention, hidden: Value) -> Value:
    wide = layer.heads * layer.query_dim
    if layer.query_rank is None:
        made: Value = machine.call("q_proj", Linear(layer.hidden, wide, bias=False).play, machine, hidden)
        return made
    narrowed = Linear(layer.hidden, layer.query_rank, layer.bias)
    low = machine.call("q_a_proj", narrowed.play, machine, hidden)
    low = machine.call("q_a_layernorm", rms_norm(layer.query_rank).play, machine, low)
    return machine.call("q_b_proj", Linear(layer.query_rank, wide, bias=False).play, machine, low)  # type: ignore[no-any-return]


def _turn(machine: Machine, layer: LatentAttention, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    if layer.turned == "complex":
        return _turned_complex(machine, query, key, context)
    if not layer.interleaved:
        return rotated(machine, query, key, context)
    return _turned_pairs(machine, query, key, context)


def _turned_pairs(machine: Machine, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py:apply_rotary_pos_emb_interleave"""
    assert context.cos is not None
    assert context.sin is not None
    half = context.cos.shape[-1] // 2
    cos = unsqueeze(machine, narrow(machine, context.cos, -1, half), 1)
    sin = unsqueeze(machine, narrow(machine, context.sin, -1, half), 1)
    q1, q2 = strided(machine, query, half), strided(machine, query, half)
    k1, k2 = strided(machine, key, half), strided(machine, key, half)
    return _pair(machine, q1, q2, cos, sin), _pair(machine, k1, k2, cos, sin)


def _pair(machine: Machine, first: Value, second: Value, cos: Value, sin: Value) -> Value:
    turned = sub(machine, mul(machine, first, cos), mul(machine, second, sin))
    other = add(machine, mul(machine, second, cos), mul(machine, first, sin))
    return cat(machine, (turned, other), -1)


def _turned_complex(machine: Machine, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/deepseek_v2/modeling_deepseek_v2.py:apply_rotary_emb"""
    assert context.cos is not None
    wide = _in_complex(machine, query)
    wide_key = _in_complex(machine, key)
    angles = unsqueeze(machine, context.cos, 1)
    turned = _from_complex(machine, turned_by(machine, wide, angles), query.dtype)
    return turned, _from_complex(machine, turned_by(machine, wide_key, angles), key.dtype)


def _in_complex(machine: Machine, value: Value) -> Value:
    paired = split_dim(machine, to(machine, value, "float32"), 3, (value.shape[3] // 2, 2))
    return as_complex(machine, paired)


def _from_complex(machine: Machine, value: Value, dtype: str) -> Value:
    return to(machine, merge_dims(machine, as_real(machine, value), 3, 4), dtype)


def _widened(machine: Machine, layer: LatentAttention, low: Value, key_turned: Value) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/deepseek_v3/modeling_deepseek_v3.py:DeepseekV3Attention.expand_kv"""
    each = layer.nope_dim + layer.value_dim
    wide = Linear(layer.kv_rank, layer.heads * each, bias=False)
    low = machine.call("kv_b_proj", wide.play, machine, low)
    low = split_dim(machine, merge_dims(machine, low, 0, 1), 2, (layer.heads, each))
    low = transpose(machine, low, 1, 2)
    plain, value = pieces(machine, low, -1, (layer.nope_dim, layer.value_dim))
    key_turned = expand(machine, key_turned, (*plain.shape[:3], layer.rope_dim))
    key = machine.new((*plain.shape[:3], layer.query_dim), low.dtype, "new_empty")
    key = written_into(machine, key, plain)
    key = written_into(machine, key, key_turned)
    return key, value
