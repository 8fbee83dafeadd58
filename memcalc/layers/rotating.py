"""Rotary positions of a part of each head, in halves (gpt_neox) or in pairs side by side (gptj)."""

from __future__ import annotations

from memcalc.arrays import Count
from memcalc.layers.attending import Context, rotate_half
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, mul, neg
from memcalc.play.reshape import cat, clone, expand, merge_dims, narrow, pieces, stack, unsqueeze
from memcalc.play.values import Value


def rotated_part(machine: Machine, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    """Queries and keys whose first dimensions are turned, in halves; the others stay.

    source: transformers 5.23.0 models/gpt_neox/modeling_gpt_neox.py:apply_rotary_pos_emb
    """
    assert context.cos is not None
    assert context.sin is not None
    cos, sin = unsqueeze(machine, context.cos, 1), unsqueeze(machine, context.sin, 1)
    query_turned, query_rest = _divided(machine, query, cos.shape[-1])
    key_turned, key_rest = _divided(machine, key, cos.shape[-1])
    turned = _turned(machine, query_turned, cos, sin)
    other = _turned(machine, key_turned, cos, sin)
    turned = cat(machine, (turned, query_rest), -1)
    other = cat(machine, (other, key_rest), -1)
    return turned, other


def _divided(machine: Machine, value: Value, rotary: Count) -> tuple[Value, Value]:
    return narrow(machine, value, -1, rotary), narrow(machine, value, -1, value.shape[-1] - rotary)


def _turned(machine: Machine, value: Value, cos: Value, sin: Value) -> Value:
    return add(machine, mul(machine, value, cos), mul(machine, rotate_half(machine, value), sin))


def paired_table(machine: Machine, table: Value, place: Value, dtype: str) -> tuple[Value, Value, tuple[Value, Value]]:
    """Sines and cosines of the positions, and what attention holds on to besides: copies of the table and of the positions.

    source: transformers 5.23.0 models/gptj/modeling_gptj.py:GPTJAttention.forward
    """
    rows, width = table.shape
    copied = machine.new((1, rows, width), "float32", "repeat")
    repeated = machine.new((*place.shape, width), "int64", "repeat")
    found = machine.new((*place.shape, width), "float32", "gather")
    found = found if dtype == "float32" else machine.like(found, "_to_copy", dtype)
    sin, cos = pieces(machine, found, 2, (width // 2, width // 2))
    return sin, cos, (copied, repeated)


def rotated_pairs(machine: Machine, value: Value, sin: Value, cos: Value) -> Value:
    """(batch, length, heads, rotated) turned in pairs side by side (modeling_gptj.py:apply_rotary_pos_emb)."""
    sin = _twice(machine, unsqueeze(machine, sin, 2))
    cos = _twice(machine, unsqueeze(machine, cos, 2))
    return add(machine, mul(machine, value, cos), mul(machine, _rotate_every_two(machine, value), sin))


def _twice(machine: Machine, value: Value) -> Value:
    """``repeat_interleave(value, 2, 3)`` (ATen native/Repeat.cpp: a copy of the value expanded)."""
    wide = expand(machine, unsqueeze(machine, value, 4), (*value.shape, 2))
    return merge_dims(machine, clone(machine, wide), 3, 4)


def _rotate_every_two(machine: Machine, value: Value) -> Value:
    half = value.shape[-1] // 2
    first = narrow(machine, value, -1, half)
    second = narrow(machine, value, -1, value.shape[-1] - half)
    value = stack(machine, (neg(machine, second), first), -1)
    return merge_dims(machine, value, 3, 4)
