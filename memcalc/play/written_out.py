"""Attention without a fused kernel: the math kernel of torch, and as modelling code writes it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.graph import Gradients, Node
from memcalc.play.matmul import matmul
from memcalc.play.norms import softmax
from memcalc.play.pointwise import add, dropout, scaled, tanh, to
from memcalc.play.reshape import clone, expand, merge_dims, transpose, unsqueeze
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def additive(machine: Machine, mask: Value | None, dtype: str) -> Value | None:
    """A boolean mask as an additive one (attention.cpp:convert_boolean_attn_mask_)."""
    if mask is None or mask.dtype != "bool":
        return mask
    infinity = machine.new((), dtype, "scalar_tensor")
    zero = machine.new((), dtype, "scalar_tensor")
    out = machine.new(mask.shape, dtype, "where.self")
    del infinity, zero
    return out


def math_kernel(
    machine: Machine, query: Value, key: Value, value: Value, mask: Any, p: float, causal: bool, grouped: bool
) -> Value:
    """source: attention.cpp:_scaled_dot_product_attention_math"""
    dtype = query.dtype
    mask = additive(machine, mask, dtype)
    if machine.policy.behaviour.torch >= (2, 5) and dtype != "float32":
        query, key, value = (to(machine, v, "float32") for v in (query, key, value))
    query = scaled(machine, query)
    if causal:
        mask = _triangle(machine, query, key)
    if grouped:
        key, value = (_repeated(machine, v, query) for v in (key, value))
    scores = _product(machine, query, scaled(machine, transpose(machine, key, 2, 3)))
    if mask is not None:
        scores = _added_in_place(machine, scores, mask)
    weights = safe_softmax(machine, scores)
    del scores
    weights = dropout(machine, weights, p)
    return to(machine, _product(machine, weights, value), dtype)


def _product(machine: Machine, first: Value, second: Value) -> Value:
    cast, machine.autocast = machine.autocast, None
    out = matmul(machine, first, second)
    machine.autocast = cast
    return out


def _triangle(machine: Machine, query: Value, key: Value) -> Value:
    shape = (query.shape[2], key.shape[2])
    ones = machine.new(shape, "bool", "ones")
    lower = machine.new(shape, "bool", "tril")
    del ones
    made = additive(machine, lower, query.dtype)
    assert made is not None
    return made


def _repeated(machine: Machine, value: Value, query: Value) -> Value:
    if machine.same(value.shape[1], query.shape[1]):
        return value
    batch, heads, length, dim = value.shape
    wide = expand(machine, unsqueeze(machine, value, 2), (batch, heads, query.shape[1] // heads, length, dim))
    return merge_dims(machine, clone(machine, wide), 1, 2)


def _added_in_place(machine: Machine, scores: Value, mask: Value) -> Value:
    out = Value(scores.storage, scores.shape, scores.dtype, scores.order, scores.view, scores.gaps)
    return machine.record(out, (scores, mask), (), _both)


def _both(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return grad, grad if node.needs(1) else None


def safe_softmax(machine: Machine, scores: Value) -> Value:
    """Softmax whose rows of minus infinity are 0 (attention.cpp:_safe_softmax)."""
    out = machine.new(scores.shape, scores.dtype, "_safe_softmax")
    rows = out.numel // out.shape[-1]
    held: list[tuple[str, Count]] = [("masked", out.numel), ("masked_rows", rows), ("minus infinity", out.itemsize)]
    if machine.policy.behaviour.torch < (2, 13):
        held.append(("softmax", out.nbytes))
    machine.scratches(held)
    return machine.record(out, (scores,), (out,), _safe_softmax_backward)


def _safe_softmax_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.like(saved[0], "_softmax_backward_data"),)


def eager(
    machine: Machine,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    *,
    probability: float = 0.0,
    upcast: bool = True,
    softcap: float | None = None,
    held: list[Value] | None = None,
) -> Value:
    """Attention written out: scores, their softmax in FP32, dropout, values; heads of the result moved back, contiguous.

    Without ``upcast`` the softmax has the dtype the scores have, and is not cast back where autocast makes it FP32. ``held`` is
    handed the weights, for a caller that keeps them a while.

    source: transformers 5.23.0 models/llama/modeling_llama.py, models/bert/modeling_bert.py: eager_attention_forward
    """
    scores = scaled(machine, matmul(machine, query, transpose(machine, key, 2, 3)))
    if softcap is not None:  # models/gemma2/modeling_gemma2.py:eager_attention_forward
        scores = scaled(machine, scores, "div.Tensor")
        scores = tanh(machine, scores)
        scores = scaled(machine, scores)
    if mask is not None:
        scores = add(machine, scores, mask)
    dtype = query.dtype
    # where it is cast back that is one expression: what goes into the softmax is named until the cast is done
    scores = to(machine, softmax(machine, scores, "float32"), dtype) if upcast else softmax(machine, scores)
    scores = dropout(machine, scores, probability)
    if held is not None:
        held.append(scores)
    out = matmul(machine, scores, value)
    return _moved(machine, out)


def _moved(machine: Machine, out: Value) -> Value:
    from memcalc.play.reshape import contiguous

    return contiguous(machine, transpose(machine, out, 1, 2))
