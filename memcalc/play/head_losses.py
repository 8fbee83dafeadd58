"""Losses of a language model that are given hidden states and the head's matrix, so that logits are never there whole.

liger: liger-kernel 0.8.2 (ead96b61) ops/fused_linear_cross_entropy.py. cce: cut-cross-entropy 25.6.4 (d42911f) cce.py,
cce_lse_forward.py, indexed_dot.py, cce_backward.py. chunked: torchtune bd2a0fc7 modules/loss/cross_entropy_loss.py:
LinearCrossEntropyLoss, whose head is a module. Every label but a row's last, which has no successor, counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count, ceil_div, minimum
from memcalc.kernels.sorting import cub_scan
from memcalc.play import losses
from memcalc.play.graph import Gradients, Node
from memcalc.play.pointwise import scaled, to
from memcalc.play.reduce import split
from memcalc.play.reshape import contiguous, merge_dims, narrow
from memcalc.play.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from memcalc.play.machine import Machine

CHUNKS = 8
"""Of torchtune's loss (cross_entropy_loss.py:LinearCrossEntropyLoss.__init__, num_output_chunks)."""


def liger(machine: Machine, hidden: Value, weight: Value, labels: Value) -> Value:
    """Hidden states ``(rows, tokens, width)``: loss and gradients of both operands are made in forward, chunk by chunk.

    source: liger-kernel 0.8.2 transformers/model/loss_utils.py:LigerForCausalLMLoss
    """
    padded = machine.new((labels.shape[0], labels.shape[1] + 1), "int64", "constant_pad_nd")
    target = contiguous(machine, narrow(machine, padded, 1, labels.shape[1]))
    del padded
    flat = merge_dims(machine, hidden, 0, 1)
    before, machine.recording = machine.recording, False
    loss, of_input, of_weight = _liger_forward(machine, flat, weight, target.numel)
    machine.recording = before
    return machine.record(loss, (flat, weight), (of_input, of_weight), _liger_backward)


def _liger_forward(machine: Machine, flat: Value, weight: Value, rows: Count) -> tuple[Value, Value, Value | None]:
    """ops/fused_linear_cross_entropy.py:fused_linear_cross_entropy_forward; names live as long as its locals."""
    vocabulary, width = weight.shape
    chunk = machine.each(_power_of_two, ceil_div(rows, ceil_div(vocabulary, width)))
    of_input = machine.like(flat, "zeros_like")
    of_weight = machine.like(weight, "zeros_like") if weight.node is not None else None
    loss_1d, counted = machine.new((rows,), "float32", "zeros"), machine.new((rows,), "bool", "ne.Scalar")
    total = machine.new((), "int64", "sum")
    split(machine, counted, [0])
    del total
    gradient = turned = given = None  # what its locals hold of the chunk before
    place = 0
    while machine.decide(place * chunk < rows):
        size = minimum(chunk, rows - place * chunk)
        logits = _logits(machine, size, flat, weight)
        gradient = logits  # made in place by the kernel
        machine.blas("mm")
        back = machine.low(weight)
        part = machine.new((size, width), gradient.dtype, "mm")
        del part, back
        turned = gradient
        if of_weight is not None:
            given = _into_weight(machine, of_weight, turned, (size, width), flat, given)
        place += 1
    loss = machine.new((), "float32", "sum")
    split(machine, loss_1d, [0])
    del logits, gradient, turned, given, counted, loss_1d
    return loss, of_input, of_weight


def _logits(machine: Machine, size: Count, flat: Value, weight: Value) -> Value:
    """A chunk's. Autocast keeps no copy of ``weight.t()``, which is a view (autocast_mode.cpp:cached_cast)."""
    low, operands = machine.autocast, []
    if low is not None:
        operands = [machine.new(value.shape, low, "_to_copy") for value in (weight,) if value.dtype != low]
        operands += [machine.new((size, flat.shape[1]), low, "_to_copy")] if flat.dtype != low else []
    machine.blas("mm")
    logits = machine.new((size, weight.shape[0]), low or flat.dtype, "mm")
    del operands
    return logits


def _into_weight(
    machine: Machine, of_weight: Value, turned: Value, shape: tuple[Count, Count], flat: Value, given: Value | None
) -> Value | None:
    """The chunk's part of the weight's gradient: added by the product itself into FP32, else made whole and widened."""
    halves = ("float16", "bfloat16")
    if machine.policy.behaviour.major >= 8 and of_weight.dtype == "float32" and turned.dtype in halves:
        if flat.dtype != turned.dtype:
            cast = machine.new(shape, turned.dtype, "_to_copy")
            del given
            given = cast
        machine.blas("addmm")
        return given
    machine.blas("mm")
    made = machine.new(of_weight.shape, turned.dtype, "mm")
    wide = to(machine, made, "float32")
    del made, wide
    return given


def _liger_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """In place (fused_linear_cross_entropy_backward)."""
    machine.scratch(4, "a one to compare with")
    return tuple(saved)


def _power_of_two(number: int) -> int:
    """The next power of two (triton.next_power_of_2)."""
    return 1 << (number - 1).bit_length()


def cce(machine: Machine, hidden: Value, weight: Value, labels: Value, *, capped: bool = False) -> Value:
    """Hidden states ``(rows, tokens, width)``: one number for each token is kept, and logits are made anew in backward.

    ``capped`` says that logits are capped in the kernel. source: cut_cross_entropy/cce.py:cce_linear_cross_entropy
    """
    valids = _valids(machine, labels)
    flat = merge_dims(machine, hidden, 0, 1)
    before, machine.recording = machine.recording, False
    tokens, (vocabulary, _) = valids.shape[0], weight.shape
    states, head = (value.detached() for value in (flat, weight))
    if machine.autocast is not None:  # .to, which autocast's cache knows nothing of
        states, head = to(machine, states, machine.autocast), to(machine, head, machine.autocast)
    lse = machine.new((tokens,), "float32", "new_full")
    locks = machine.new((ceil_div(tokens, 128),), "uint32", "new_full")
    average = machine.new((vocabulary,), "float32", "new_full")
    del locks
    correct = machine.new((tokens,), "float32", "new_zeros")
    if capped:
        correct = machine.new((tokens,), "float32", "softcapping")
    loss = machine.new((), "float32", "mean")
    split(machine, correct, [0])
    del correct
    machine.recording = before
    dtypes = flat.dtype, weight.dtype
    return machine.record(loss, (flat, weight), (states, head, lse, valids, average), _cce_backward, dtypes)


def _valids(machine: Machine, labels: Value) -> Value:
    """The places of labels that count (cut_cross_entropy/utils.py:_build_flat_valids)."""
    rows, tokens = labels.shape[0], labels.shape[1] - 1
    kept = machine.new((rows, tokens), "bool", "ne.Scalar")
    places = _nonzero(machine, kept, 2)
    del kept
    narrowed = to(machine, places, "int32")
    del places
    return machine.new((narrowed.shape[0],), "int64", "sum.dim_IntList")


def _nonzero(machine: Machine, mask: Value, dims: int) -> Value:
    """Where a mask holds, which is everywhere but at the last token of each row (ATen native/cuda/Nonzero.cu)."""
    rows, tokens = mask.shape
    count = rows * (tokens if dims == 2 else tokens - 1)
    machine.scratches([("number of nonzeros", 4), ("cub reduction", cub_scan(mask.numel, 4))])
    return machine.new((count, dims), "int64", "nonzero")


def _cce_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: cut_cross_entropy/cce.py:sort_logit_avg; cce_backward.py:cce_backward_kernel"""
    states, head, lse = saved[:3]
    vocabulary, width = head.shape
    ordered, places = machine.new((vocabulary,), "float32", "sort"), machine.new((vocabulary,), "int64", "sort")
    del ordered
    order = to(machine, places, "int32")
    del places
    of_states = machine.like(states, "zeros_like") if node.needs(0) else None
    of_head = machine.like(head, "zeros_like") if node.needs(1) else None
    locks = [
        machine.new((ceil_div(number, 128), ceil_div(width, 64)), "int32", "new_zeros")
        for number, made in ((lse.shape[0], of_states), (vocabulary, of_head))
        if made is not None
    ]
    of_head = None if of_head is None else to(machine, of_head, node.meta[1])
    of_states = None if of_states is None else to(machine, of_states, node.meta[0])
    del locks, order
    return of_states, of_head


def chunked(machine: Machine, hidden: Value, head: Callable[[Value], Value], labels: Value) -> Value:
    """Hidden states ``(rows, tokens, width)``: logits and their FP32 copies are made for an eighth of the tokens at a time.

    Labels are shifted before (torchtune bd2a0fc7 recipes/full_finetune_single_device.py:_loss_step). What autograd keeps of
    every chunk, its log-probabilities in FP32, is kept.
    """
    rows, tokens = labels.shape
    targets = machine.new((rows, tokens), "int64", "cat")
    found = _where(machine, targets)
    del found
    states = merge_dims(machine, hidden, 0, 1)
    indices = _where(machine, targets)
    states, targets = _selected(machine, states, indices), machine.new(indices.shape, "int64", "index_select")
    del indices
    number = states.shape[0]
    parts = [_rows(machine, states, _part(number, place)) for place in range(CHUNKS)]
    total = machine.new((), "float32", "scalar_tensor")
    for part in parts:
        total = _added(machine, total, _chunk(machine, part, head, targets))
    del parts, part, states, targets
    return scaled(machine, total, "div.Tensor")


def _where(machine: Machine, targets: Value) -> Value:
    mask = machine.new(targets.shape, "bool", "ne.Scalar")
    found = _nonzero(machine, mask, 1)
    return Value(found.storage, found.shape[:1], "int64", view=True)


def _selected(machine: Machine, states: Value, indices: Value) -> Value:
    """``index_select``, whose gradient is added into zeros of the source's shape."""
    out = machine.new((indices.shape[0], states.shape[1]), states.dtype, "index_select")
    return machine.record(out, (states,), (indices,), _selected_backward, states.shape)


def _selected_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.new(node.meta, grad.dtype, "new_zeros"),)


def _part(number: Count, place: int) -> Count:
    """Rows of a part: the first ones have one more (ATen TensorShape.cpp:tensor_split)."""
    return (number + CHUNKS - 1 - place) // CHUNKS


def _rows(machine: Machine, states: Value, number: Count) -> Value:
    """Neighbouring rows of a matrix, which lie in memory as they stand; the gradient is put into zeros of the whole."""
    out = Value(states.storage, (number, states.shape[1]), states.dtype, view=True)
    return machine.record(out, (states,), (), _rows_backward, states.shape)


def _rows_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (machine.new(node.meta, grad.dtype, "slice_backward"),)


def _chunk(machine: Machine, part: Value, head: Callable[[Value], Value], targets: Value) -> Value:
    logits = head(part)
    wide = to(machine, logits, "float32")
    loss = losses.cross_entropy(machine, wide, targets)
    del wide, logits
    return loss


def _added(machine: Machine, total: Value, loss: Value) -> Value:
    """``total += loss``, in place: a node, and no memory."""
    out = total.detached()
    return machine.record(out, (total, loss), (), _added_backward)


def _added_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return grad, grad
