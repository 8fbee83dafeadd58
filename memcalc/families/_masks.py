"""Masks that are more than causal: windows, and runs of tokens that see each other."""

from __future__ import annotations

from memcalc.arrays import Count
from memcalc.families._forward import Batch, find_packed
from memcalc.play.machine import Machine
from memcalc.play.pointwise import shifted
from memcalc.play.reshape import expand
from memcalc.play.values import Value


def window_mask(machine: Machine, place: Value | None, batch: Batch, dtype: str, reach: Count, *, eager: bool) -> Value | None:
    """What ``create_sliding_window_causal_mask`` makes of ``reach`` positions without a padding mask.

    For a kernel nothing where the window is longer than the sequence. Without ``place`` it does not look for packed rows.

    source: transformers 5.23.0 masking_utils.py: create_sliding_window_causal_mask, _ignore_causal_mask_sdpa, sdpa_mask
    """
    if place is not None:
        find_packed(machine, place, batch)
    if not eager and machine.decide(batch.tokens < reach):
        return None
    seen = _seen(machine, batch)
    return additive(machine, seen, dtype) if eager else seen


def _seen(machine: Machine, batch: Batch) -> Value:
    """True where a token sees another: ``(batch, 1, length, length)`` over memory for one row of the batch."""
    rows, tokens = batch.rows, batch.tokens
    samples, heads = machine.new((rows,), "int64", "arange"), machine.new((1,), "int64", "arange")
    queries = shifted(machine, machine.new((tokens,), "int64", "arange"))
    reached = shifted(machine, machine.new((tokens,), "int64", "arange"))
    seen = windowed(machine, tokens)
    del samples, heads, queries, reached
    return expand(machine, seen, (rows, 1, tokens, tokens))


def windowed(machine: Machine, tokens: Count) -> Value:
    """The window and the causal triangle together (masking_utils.py: and_masks, sliding_window_overlay)."""
    shape = (1, 1, tokens, tokens)
    result = machine.new((), "bool", "new_ones")
    result = anded(machine, result, _within(machine, tokens))
    return anded(machine, result, machine.new(shape, "bool", "le.Tensor"))


def _within(machine: Machine, tokens: Count) -> Value:
    first = machine.new((1, 1, tokens, 1), "int64", "sub.Tensor")
    inside = machine.new((1, 1, tokens, tokens), "bool", "gt.Tensor")
    del first
    return inside


def anded(machine: Machine, first: Value, second: Value, operator: str = "bitwise_and.Tensor") -> Value:
    """Both (or either) of two."""
    shape = second.shape if len(second.shape) >= len(first.shape) else first.shape
    return machine.new(shape, "bool", operator)


def additive(machine: Machine, seen: Value, dtype: str) -> Value:
    """Zero where something is seen, the least number elsewhere (masking_utils.py:eager_mask)."""
    zero, least = machine.new((), dtype, "zeros"), machine.new((), dtype, "scalar_tensor")
    mask = machine.new(seen.shape, dtype, "where.self")
    del zero, least
    return mask
