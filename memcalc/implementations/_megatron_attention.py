"""Transformer Engine's three ways to attention on ``(length, batch, heads, size)``: flash-attn, cuDNN's, and written out.

From source alone (TE v2.8 pytorch/attention/dot_product_attention/backends.py, softmax.py, utils.py).
"""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.play import attention as kernels
from memcalc.play.graph import Gradients, Node
from memcalc.play.machine import Machine
from memcalc.play.matmul import bmm
from memcalc.play.pointwise import dropout
from memcalc.play.reshape import _sliced, contiguous, expand, merge_dims, permute, split_dim, transpose, unsqueeze
from memcalc.play.values import Value

WAYS = {"flash": "flash", "cudnn": "fused", "eager": "unfused"}
"""What a job's ``attention`` asks TE for."""


def way_of(machine: Machine, size: Count) -> str:
    """The backend TE takes: cuDNN's before flash-attn from Hopper on (utils.py:get_attention_backend).

    Raises:
        NotModelledError: a kernel TE does not have, or a head that none of its kernels takes.
    """
    asked = machine.policy.attention
    if asked == "auto":
        asked = "cudnn" if machine.policy.behaviour.major >= 9 else "flash"
    if asked not in WAYS:
        raise NotModelledError("training.attention", asked, "is none of Transformer Engine's", "use flash, cudnn or eager")
    limit = {"flash": 256, "cudnn": 128}.get(asked)
    if limit is not None and not machine.decide((size <= limit) & (size % 8 == 0)):
        raise NotModelledError("model.head_dim", size, f"is not known to be served by {asked}",
                               f"use attention eager, or a multiple of 8 up to {limit}")  # fmt: skip
    return WAYS[asked]


def core(machine: Machine, query: Value, key: Value, value: Value, probability: float) -> Value:
    """``DotProductAttention`` under a causal mask: ``(length, batch, heads, size)`` to ``(length, batch, width)``."""
    packed = query.storage is key.storage is value.storage
    if not packed:  # utils.py:get_qkv_layout: a slice of something else is made contiguous
        query, key, value = (contiguous(machine, part) for part in (query, key, value))
    way = way_of(machine, query.shape[3])
    if way == "flash":
        return _flash(machine, query, key, value, probability)
    if way == "fused":
        return _fused(machine, query, key, value, probability, packed=packed)
    return _unfused(machine, query, key, value, probability)


def _flash(machine: Machine, query: Value, key: Value, value: Value, probability: float) -> Value:
    """On copies with the batch in front (FlashAttention.forward; _PrepareQKVForFA makes the same in one buffer)."""
    query, key, value = (contiguous(machine, transpose(machine, part, 0, 1)) for part in (query, key, value))
    query, key, value = (transpose(machine, part, 1, 2) for part in (query, key, value))
    out = kernels.KERNELS["flash"](machine, query, key, value, None, probability, True, True)
    out = merge_dims(machine, transpose(machine, out, 1, 2), 2, 3)
    return contiguous(machine, transpose(machine, out, 0, 1))


def _fused(machine: Machine, query: Value, key: Value, value: Value, probability: float, *, packed: bool) -> Value:
    """source: FusedAttnFunc.forward; csrc/extensions/attention.cpp:fused_attn_fwd (softmax statistics, rng_state)"""
    length, batch, heads, size = query.shape
    out = machine.new((length, batch, heads * size), query.dtype, "te.fused_attn_fwd")
    stats = machine.new((batch, heads, length, 1), "float32", "te.fused_attn_fwd")
    state = machine.new((2,), "int64", "te.fused_attn_fwd")
    machine.scratch(4 * batch * heads * length, "cuDNN workspace")
    saved = (query, key, value, out, stats, state)
    return machine.record(out, (query, key, value), saved, _fused_backward, packed)


def _fused_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """Gradients lie as query, key and value do: in one memory where those are slices of one (fused_attn_bwd)."""
    query, key, value = saved[:3]
    length, batch, heads, size = query.shape
    if node.meta:
        whole = machine.new((length, batch, heads, 3 * size), grad.dtype, "te.fused_attn_bwd")
        results = [_sliced(whole, 3, query.shape) for _ in range(3)]
        del whole
    else:
        results = [machine.new(part.shape, grad.dtype, "te.fused_attn_bwd") for part in (query, key, value)]
    rows = batch * heads * length
    machine.scratch(4 * rows + 4 * rows * size, "cuDNN workspace")  # as memcalc.play.attention has it of torch's
    return results


def _unfused(machine: Machine, query: Value, key: Value, value: Value, probability: float) -> Value:
    """source: UnfusedDotProductAttention.forward"""
    length, batch, heads = query.shape[:3]
    mask = _mask(machine, batch, length)
    if not machine.same(key.shape[2], heads):
        key, value = _repeated(machine, key, heads), _repeated(machine, value, heads)
    query = transpose(machine, merge_dims(machine, query, 1, 2), 0, 1)
    key = permute(machine, merge_dims(machine, key, 1, 2), (1, 2, 0))
    room = machine.new((batch * heads, length, length), query.dtype, "empty")
    scores = split_dim(machine, bmm(machine, query, key), 0, (batch, heads))
    del room
    probs = _softmax(machine, scores)
    del scores, mask
    probs = merge_dims(machine, dropout(machine, probs, probability), 0, 1)
    value = transpose(machine, merge_dims(machine, value, 1, 2), 0, 1)
    context = split_dim(machine, bmm(machine, probs, value), 0, (batch, heads))
    context = contiguous(machine, permute(machine, context, (2, 0, 1, 3)))
    return merge_dims(machine, context, 2, 3)


def _mask(machine: Machine, batch: Count, length: Count) -> Value:
    """The causal mask and the data loader's, together (utils.py:get_full_mask)."""
    shape = (1, 1, length, length)
    mask = machine.new(shape, "int32", "sub.Tensor")
    left, right = machine.new(shape, "int32", "sub.Tensor"), machine.new(shape, "int32", "add.Tensor")
    swa = machine.new(shape, "bool", "logical_not")
    both = machine.new((batch, *shape[1:]), "bool", "logical_or")
    del mask, left, right, swa
    return both


def _repeated(machine: Machine, part: Value, heads: Count) -> Value:
    """``repeat_interleave`` over the heads."""
    length, batch, groups, size = part.shape
    wide = expand(machine, unsqueeze(machine, part, 3), (length, batch, groups, heads // groups, size))
    return merge_dims(machine, wide, 2, 3)


def _softmax(machine: Machine, scores: Value) -> Value:
    """Scale, mask and softmax in one kernel, whose result is kept and whose gradient is made in place.

    source: softmax.py:FusedScaleMaskSoftmax.is_kernel_available, ScaledMaskedSoftmax; csrc/extensions/softmax.cpp
    """
    batch, heads, length = scores.shape[:3]
    served = (length > 16) & (length < 16384) & (length % 8 == 0) & ((batch * heads) % 4 == 0)
    if not machine.decide(served):
        raise NotModelledError("training.sequence_length", length, "is not served by the fused softmax of unfused attention",
                               "use a multiple of 8 between 16 and 16384, and heads times batch a multiple of 4")  # fmt: skip
    out = machine.new(scores.shape, scores.dtype, "te.scaled_masked_softmax_forward")
    return machine.record(out, (scores,), (out,), _softmax_backward)


def _softmax_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (grad,)  # csrc/extensions/softmax.cpp: the gradient is written over
