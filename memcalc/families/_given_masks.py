"""Masks of batches that are not whole sequences: a padding mask that is given, or positions that start anew within a row.

source: transformers 5.23.0 masking_utils.py: create_causal_mask, create_sliding_window_causal_mask, sdpa_mask, eager_mask
"""

from __future__ import annotations

from functools import partial

from memcalc.arrays import Count
from memcalc.families._forward import Batch, found_packed
from memcalc.families._masks import _square, _start, joined, seen, windowed
from memcalc.play.machine import Machine
from memcalc.play.reduce import split
from memcalc.play.values import Value

PADDED, PACKED = "attention_mask", "position_ids"
"""What a batch is given that is padded, or packed."""


def given_mask(machine: Machine, batch: Batch, dtype: str, reach: Count | None, *, eager: bool) -> Value:
    """A mask ``(rows, 1, tokens, tokens)``: boolean for a kernel, else added to scores; ``reach`` is the window's, if any."""
    if PADDED in batch.values:
        return _padded(machine, batch, dtype, reach, eager=eager)
    parts = found_packed(machine, batch[PACKED], batch)
    mask = seen(machine, batch, dtype, partial(_in_one, reach=reach), eager=eager)
    del parts
    return mask


def _padded(machine: Machine, batch: Batch, dtype: str, reach: Count | None, *, eager: bool) -> Value:
    kept = machine.new((batch.rows, batch.tokens), "bool", "_to_copy")
    if not eager and (reach is None or machine.decide(batch.tokens < reach)):
        for _ in range(2):  # it is looked at whether anything is padded (_ignore_causal_mask_sdpa: fast_all)
            total = machine.new((), "int64", "sum")
            split(machine, kept, [0, 1])
            same = machine.new((), "bool", "eq.Scalar")
            del total, same
    mask = seen(machine, batch, dtype, partial(_unpadded, reach=reach), eager=eager)
    del kept
    return mask


def _unpadded(machine: Machine, batch: Batch, *, reach: Count | None) -> Value:
    """What is seen, of keys that are no padding (padding_mask_function)."""
    result = _start(machine, batch, False)
    result = joined(machine, result, _causal(machine, batch, reach))
    return joined(machine, result, machine.new((batch.rows, 1, 1, batch.tokens), "bool", "index.Tensor"))


def _causal(machine: Machine, batch: Batch, reach: Count | None) -> Value:
    return _square(machine, batch) if reach is None else windowed(machine, batch)


def _in_one(machine: Machine, batch: Batch, *, reach: Count | None) -> Value:
    """What is seen within one sequence, by positions in it (packed_sequence_compatibility_function)."""
    result = _start(machine, batch, False)
    result = joined(machine, result, _compared(machine, batch, "eq.Tensor"))
    return joined(machine, result, _remapped(machine, batch, reach))


def _remapped(machine: Machine, batch: Batch, reach: Count | None) -> Value:
    """The causal triangle, and the window, of positions that differ from row to row (remap_positions_for_packed_sequence)."""
    query, key = _ends(machine, batch)
    if reach is None:
        return _whole(machine, batch, "le.Tensor")
    result = _start(machine, batch, False)
    first = machine.new(query.shape, "int64", "sub.Tensor")
    inside = _whole(machine, batch, "gt.Tensor")
    del first
    result = joined(machine, result, inside)
    del inside
    result = joined(machine, result, _whole(machine, batch, "le.Tensor"))
    del key
    return result


def _compared(machine: Machine, batch: Batch, operator: str) -> Value:
    query, key = _ends(machine, batch)
    found = _whole(machine, batch, operator)
    del query, key
    return found


def _ends(machine: Machine, batch: Batch) -> tuple[Value, Value]:
    """A number of each query and of each key."""
    query = machine.new((batch.rows, 1, batch.tokens, 1), "int64", "index.Tensor")
    return query, machine.new((batch.rows, 1, 1, batch.tokens), "int64", "index.Tensor")


def _whole(machine: Machine, batch: Batch, operator: str) -> Value:
    return machine.new((batch.rows, 1, batch.tokens, batch.tokens), "bool", operator)
