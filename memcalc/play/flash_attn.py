"""flash-attn's own kernels, as transformers calls them: rows of one length, or one row of packed sequences of any lengths.

source: transformers 5.23.0 modeling_flash_attention_utils.py:_flash_attention_forward; flash-attn 2.8.3
flash_attn/flash_attn_interface.py (FlashAttnFunc, FlashAttnVarlenFunc), csrc/flash_attn/flash_api.cpp for what kernels take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count, ceil_div, round_up, where
from memcalc.errors import InputError, NotModelledError
from memcalc.kernels.sorting import cub_scan
from memcalc.play.attention import accumulators
from memcalc.play.graph import Gradients, Node
from memcalc.play.pointwise import to
from memcalc.play.policy import FLASH_ATTN
from memcalc.play.reduce import split
from memcalc.play.reshape import _sliced, contiguous, merge_dims, split_dim, transpose
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

KEY = "training.attention"
HALF = ("float16", "bfloat16")
BLOCK = 128
"""Rows that backward keeps between sequences, so that one's additions do not reach the next (mha_varlen_bwd: dq_accum)."""


def flash_attention(
    machine: Machine,
    query: Value,
    key: Value,
    value: Value,
    place: Value | None,
    probability: float,
    *,
    capped: bool = False,
) -> Value:
    """``(batch, heads, length, size)`` to ``(batch, length, heads, size)`` (integrations/flash_attention.py).

    ``place`` are the positions, ``(1 or batch, length)``, in which packed sequences are found; ``capped`` says that scores are.

    Raises:
        InputError: a GPU, a dtype or a head that the kernels do not take, or dropout of capped scores.
        NotModelledError: values narrower than queries.
    """
    probability = probability if machine.training else 0.0
    _check(machine, query, value)
    if capped and probability:
        raise InputError(KEY, FLASH_ATTN, "caps no scores under dropout (mha_fwd)", "use eager, or attention_dropout 0")
    query, key, value = (transpose(machine, each, 1, 2) for each in (query, key, value))
    if query.dtype == "float32":  # get_target_dtype, fa_peft_integration_check
        dtype = machine.autocast or machine.policy.dtype
        query, key, value = (to(machine, each, dtype) for each in (query, key, value))
    if not query.dtype == key.dtype == value.dtype or query.dtype not in HALF:
        raise InputError(KEY, FLASH_ATTN, "takes FP16 and BF16 alone", "use precision bf16, or attention efficient")
    machine.assumed["attention runs on the kernels of flash-attn 2.8.3"] = None
    rows, tokens = query.shape[:2]
    _look(machine, rows, tokens, place)
    if machine.policy.sequences is None:
        return _kernel(machine, query, key, value, probability, None, None)
    query, key, value = (merge_dims(machine, contiguous(machine, each), 0, 1) for each in (query, key, value))
    ends, longest = _lengths(machine, tokens, machine.policy.sequences)
    out = _kernel(machine, query, key, value, probability, ends, longest)
    return split_dim(machine, out, 0, (rows, tokens))


def _check(machine: Machine, query: Value, value: Value) -> None:
    size = query.shape[-1]
    if machine.policy.behaviour.major < 8:
        raise InputError(KEY, FLASH_ATTN, "asks for compute capability 8.0 or more (mha_fwd)", "use auto")
    if not machine.same(size, value.shape[-1]):
        raise NotModelledError(KEY, FLASH_ATTN, "is not modelled of heads whose values are narrower than queries", "use auto")
    if not machine.decide(size <= 256):
        raise InputError(KEY, FLASH_ATTN, f"takes heads of at most 256, not {size}", "use auto")


def _look(machine: Machine, rows: Count, tokens: Count, place: Value | None) -> None:
    """Of one row it is looked at in every layer whether its positions start anew (_is_packed_sequence)."""
    if place is None or not machine.decide(rows == 1) or machine.decide(tokens == 1):
        return
    counted = machine.new((tokens,), "int64", "arange")
    least = _reduced(machine, place, "min")
    increasing = machine.new((tokens,), "int64", "add.Tensor")
    del counted, least
    apart = machine.new((1, tokens), "int64", "sub.Tensor")
    apart = machine.like(apart, "abs")
    total = _reduced(machine, apart, "sum")
    del apart
    differs = machine.new((), "bool", "_to_copy")
    del total, increasing, differs


def _reduced(machine: Machine, value: Value, operator: str) -> Value:
    out = machine.new((), value.dtype, operator)
    split(machine, value, range(len(value.shape)))
    return out


def _lengths(machine: Machine, tokens: Count, sequences: Count) -> tuple[Value, Value]:
    """Where each sequence ends, and the longest's length, from positions (prepare_fa_kwargs_from_position_ids).

    Raises:
        InputError: more sequences than tokens.
    """
    if not machine.decide(sequences <= tokens):
        raise InputError("training.packed_sequences", sequences, f"are more than a row's {tokens} tokens", "use fewer")
    least = machine.new((), "int64", "min")
    first = machine.new((tokens,), "bool", "eq.Tensor")
    del least
    starts = machine.new((sequences, 1), "int64", "nonzero")
    machine.scratches([("num_nonzeros", 4), ("cub scan", cub_scan(tokens, 4))])  # native/cuda/Nonzero.cu
    del first
    narrow, last = machine.new((sequences,), "int32", "_to_copy"), machine.new((1,), "int32", "_to_copy")
    ends = machine.new((sequences + 1,), "int32", "cat")
    del narrow, last
    lengths = machine.new((sequences,), "int32", "sub.Tensor")
    longest = _reduced(machine, lengths, "max")
    del lengths, starts
    return ends, longest


def _kernel(
    machine: Machine, query: Value, key: Value, value: Value, probability: float, ends: Value | None, longest: Value | None
) -> Value:
    """One autograd function, of rows ``(batch, length, heads, size)`` or, with ``ends``, of tokens ``(total, heads, size)``."""
    given, size = (query, key, value), query.shape[-1]
    query, key, value = (_padded(machine, each) for each in given)
    operator = "_flash_attn_forward" if ends is None else "_flash_attn_varlen_forward"
    made = machine.like(query, operator)
    *rows, heads, wide = query.shape
    shape = (rows[0], heads, rows[1]) if ends is None else (heads, rows[0])
    statistics, state = machine.new(shape, "float32", operator), machine.new((2,), "int64", operator)
    if ends is None and not probability:  # mha_fwd: set_params_splitkv; packed rows are never split
        twice = 2 * machine.policy.behaviour.multiprocessors
        machine.scratches(accumulators(machine, (rows[0], heads, rows[1], wide), key.shape[1], twice))
    out = _like_given(made, size)
    saved = (query, key, value, made, statistics, *(() if ends is None else (ends,)), state)
    # the longest length is an attribute of the node's context: no checkpoint drops it
    return machine.record(out, given, saved, _backward, (size, longest))


def _padded(machine: Machine, value: Value) -> Value:
    """Heads of a multiple of 8, outside of the graph (FlashAttnFunc.forward)."""
    size = value.shape[-1]
    if machine.decide(size % 8 == 0):
        return value
    return machine.new((*value.shape[:-1], round_up(size, 8)), value.dtype, "constant_pad_nd")


def _like_given(value: Value, size: Count) -> Value:
    """The last dimension as wide as it was given."""
    if value.shape[-1] is size:
        return Value(value.storage, value.shape, value.dtype, value.order, value.view, value.gaps)
    return _sliced(value, len(value.shape) - 1, (*value.shape[:-1], size))


def _backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: flash_attn_interface.py: FlashAttnFunc, FlashAttnVarlenFunc (backward); flash_api.cpp: mha_bwd, mha_varlen_bwd"""
    query, key, value = saved[:3]
    packed = len(saved) > 6
    operator = "_flash_attn_varlen_backward" if packed else "_flash_attn_backward"
    results = [machine.like(each, "empty_like") for each in (query, key, value)]
    padded = _padded(machine, grad)
    *rows, heads, size = query.shape
    if packed:
        sequences = saved[5].shape[0] - 1
        kept = (rows[0] + BLOCK * sequences) * heads
    else:
        kept = rows[0] * BLOCK * ceil_div(rows[1], BLOCK) * heads
    wide = round_up(size, where(size <= 128, 32, 64))
    held: list[tuple[str, Count]] = [("softmax_d", 4 * kept), ("dq_accum", 4 * kept * wide)]
    whole = key.numel // key.shape[-2] * heads * key.itemsize
    expanded = where(key.shape[-2] == heads, 0, whole)
    held += [("dk_expanded", expanded), ("dv_expanded", expanded)]
    if grad.order is not None and grad.order[-1] != len(grad.shape) - 1:  # maybe_contiguous
        held.append((f"contiguous grad of {operator}", grad.nbytes))
    machine.scratches(held)
    del padded
    return [_like_given(each, node.meta[0]) for each in results]
