"""Attention whose scores get a table of position biases, as T5 has it.

source: transformers 5.23.0 models/t5/modeling_t5.py, integrations/sdpa_attention.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.attention import attend
from memcalc.play.graph import Gradients, Leaf, Node
from memcalc.play.matmul import matmul
from memcalc.play.norms import softmax
from memcalc.play.pointwise import add, dropout, scaled, to
from memcalc.play.pointwise import where as select_by
from memcalc.play.reshape import contiguous, permute, transpose, unsqueeze
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def buckets(machine: Machine, queries: Count, keys: Count, *, bidirectional: bool) -> tuple[Value, Value, Value]:
    """What stands for each pair of positions in the table, and the locals that live as long as the lookup.

    source: modeling_t5.py:T5Attention.compute_bias
    """
    counted = machine.new((queries,), "int64", "arange")
    context = machine.like(counted, "add.Tensor")
    del counted
    memory = machine.new((keys,), "int64", "arange")
    relative = machine.new((queries, keys), "int64", "sub.Tensor")
    found = _bucket(machine, relative, bidirectional=bidirectional)
    return context, _Held(memory, relative), found  # type: ignore[return-value]


class _Held:
    """Locals that live on together."""

    def __init__(self, *values: Value) -> None:
        self.values = values


def _bucket(machine: Machine, relative: Value, *, bidirectional: bool) -> Value:
    """source: modeling_t5.py:T5Attention._relative_position_bucket"""
    found: Value | None = None
    if bidirectional:
        after = machine.like(relative, "gt.Scalar", "bool")
        wide = machine.like(relative, "_to_copy")
        del after
        times = machine.like(wide, "mul.Tensor")
        del wide
        found = machine.like(times, "add.Tensor")
        del times
        relative = machine.like(relative, "abs")
    else:
        zeros = machine.like(relative, "zeros_like")
        least = machine.like(relative, "minimum")
        del zeros
        relative = machine.like(least, "neg")
        del least
    small = machine.like(relative, "lt.Scalar", "bool")
    value = machine.like(relative, "_to_copy", "float32")
    for operator in ("div.Tensor", "log", "div.Tensor", "mul.Tensor"):
        value = machine.like(value, operator)
    value = machine.like(value, "_to_copy", "int64")
    large = machine.like(value, "add.Tensor")
    del value
    most = machine.like(large, "full_like")
    large = machine.like(large, "minimum")
    del most
    chosen = machine.like(relative, "where.self")
    if found is None:
        found = machine.like(chosen, "add.Tensor")
    del chosen, small
    return found


def headed(machine: Machine, values: Value) -> Value:
    """(queries, keys, heads) as (1, heads, queries, keys)."""
    return unsqueeze(machine, permute(machine, values, (2, 0, 1)), 0)


def no_bias(machine: Machine, query: Value, key: Value) -> Value:
    """The biases of a layer without a table: zeros, to which checkpointing gives a gradient of their own.

    source: modeling_t5.py:T5Attention.forward (position_bias.requires_grad)
    """
    _, heads, length, _ = query.shape
    zeros = machine.new((1, heads, length, key.shape[2]), query.dtype, "zeros")
    if machine.policy.checkpointing != "none" and machine.training and machine.recording:
        leaf = Leaf("", zeros.shape, zeros.dtype)  # no parameter: nothing hooks it
        leaf.meta = zeros.detached()  # accumulate_grad.h: the node holds its variable
        zeros.node = leaf
    return zeros


def fused(
    machine: Machine,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    bias: Value,
    *,
    causal: bool,
    probability: float,
) -> tuple[Value, Value | None]:
    """By a kernel, the biases as its additive mask (sdpa_attention.py:sdpa_attention_forward)."""
    causal = causal and machine.decide(query.shape[2] > 1)
    added = _as_mask(machine, bias, query, key, causal=causal)
    out = attend(machine, query, key, value, added, probability=probability)
    return contiguous(machine, transpose(machine, out, 1, 2)), None


def _as_mask(machine: Machine, bias: Value, query: Value, key: Value, *, causal: bool) -> Value:
    """source: sdpa_attention.py:create_position_bias_mask"""
    if causal:
        queries, keys = query.shape[2], key.shape[2]
        rows, columns = machine.new((queries,), "int64", "arange"), machine.new((keys,), "int64", "arange")
        lower = machine.new((1, 1, queries, keys), "bool", "ge.Tensor")
        del rows, columns
        least = machine.new((), bias.dtype, "scalar_tensor")
        bias = select_by(machine, lower, bias)
        del least
    return contiguous(machine, bias)


def eager(
    machine: Machine,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    bias: Value | None,
    *,
    causal: bool,
    probability: float,
    upcast: bool = False,
) -> tuple[Value, Value | None]:
    """Written out, and the weights, which the layer's caller is handed (modeling_t5.py:eager_attention_forward)."""
    scores = scaled(machine, matmul(machine, query, transpose(machine, key, 2, 3)))
    if bias is not None:
        scores = add(machine, scores, bias)
    if mask is not None:
        scores = add(machine, scores, mask)
    # one expression there: what goes into the softmax is named until the cast is done
    scores = to(machine, softmax(machine, scores, "float32"), query.dtype) if upcast else softmax(machine, scores)
    scores = dropout(machine, scores, probability)
    out = matmul(machine, scores, value)
    return contiguous(machine, transpose(machine, out, 1, 2)), scores


def plain(
    machine: Machine,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    *,
    causal: bool,
    probability: float,
    upcast: bool = False,
) -> tuple[Value, Value | None]:
    """Without biases: the kernel, or written out; (batch, length, heads, head dimension), and the weights.

    source: integrations/sdpa_attention.py:sdpa_attention_forward; the models' eager_attention_forward
    """
    if machine.policy.attention == "eager":
        return eager(machine, query, key, value, mask, None, causal=causal, probability=probability, upcast=upcast)
    causal = causal and mask is None and machine.decide(query.shape[2] > 1)
    out = attend(machine, query, key, value, mask, probability=probability, causal=causal)
    return contiguous(machine, transpose(machine, out, 1, 2)), None


def clamped(machine: Machine, hidden: Value) -> Value:
    """An FP16 value held between bounds that are lower where it overflowed (modeling_t5.py:T5Block.forward)."""
    infinite = machine.like(hidden, "isinf", "bool")
    machine.scratch(hidden.nbytes, "abs")  # TensorCompare.cpp:isinf: self.abs() == infinity
    some = machine.new((), "bool", "any")
    del infinite
    lower, largest = machine.new((), "float32", "scalar_tensor"), machine.new((), "float32", "scalar_tensor")
    most = machine.new((), "float32", "where.self")
    del some, lower, largest
    least = machine.like(most, "neg")
    return machine.record(machine.like(hidden, "clamp.Tensor"), (hidden,), (hidden, least, most), _clamp_backward)


def _clamp_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:clamp_backward
    zero = machine.new((), grad.dtype, "scalar_tensor")
    above = machine.like(saved[0], "ge.Tensor", "bool")
    below = machine.like(saved[0], "le.Tensor", "bool")
    out = machine.like(grad, "where.self")
    del zero, above, below
    return (out,)
