"""Masks that are more than causal: windows, and runs of tokens that see each other."""

from __future__ import annotations

from collections.abc import Callable

from memcalc.arrays import Count
from memcalc.families._forward import Batch, find_packed, no_mask
from memcalc.play.machine import Machine
from memcalc.play.pointwise import broadcast, compare, shifted
from memcalc.play.reshape import expand
from memcalc.play.values import Value
from memcalc.records import replace


def window_mask(machine: Machine, place: Value | None, batch: Batch, dtype: str, reach: Count, *, eager: bool) -> Value | None:
    """What ``create_sliding_window_causal_mask`` makes of ``reach`` positions without a padding mask.

    For a kernel nothing where the window is longer than the sequence. Without ``place`` it does not look for packed rows.

    source: transformers 5.23.0 masking_utils.py: create_sliding_window_causal_mask, _ignore_causal_mask_sdpa, sdpa_mask
    """
    if machine.flashed:
        no_mask(machine, place, batch)
        return None
    if batch.is_given:
        from memcalc.families._given_masks import given_mask

        return given_mask(machine, batch, dtype, reach, eager=eager)
    if place is not None and machine.cache is None:
        find_packed(machine, place, batch)
    return unpacked_window(machine, batch, dtype, reach, eager=eager)


def unpacked_window(machine: Machine, batch: Batch, dtype: str, reach: Count, *, eager: bool) -> Value | None:
    """The same where no positions are given, which are then not looked at."""
    if machine.cache is not None:
        if not eager and not machine.cache.masked(machine, batch.tokens, reach):
            return None
        batch = replace(batch, keys=machine.cache.reach(machine, batch.tokens, reach))
    elif not eager and machine.decide(batch.tokens < reach):
        return None
    return seen(machine, batch, dtype, windowed, eager=eager)


def seen(machine: Machine, batch: Batch, dtype: str, function: Callable[[Machine, Batch], Value], *, eager: bool) -> Value:
    """A mask by a function of indices: true where a token sees another, or what is added to scores (sdpa_mask, eager_mask)."""
    rows, tokens = batch.rows, batch.tokens
    found = expand(machine, _by_indices(machine, batch, function), (rows, 1, tokens, batch.looked_at))
    if not eager:
        return found
    zero, least = machine.new((), dtype, "zeros"), machine.new((), dtype, "scalar_tensor")
    mask = machine.new(found.shape, dtype, "where.self")
    del zero, least
    return mask


def _by_indices(machine: Machine, batch: Batch, function: Callable[[Machine, Batch], Value]) -> Value:
    samples, heads = machine.new((batch.rows,), "int64", "arange"), machine.new((1,), "int64", "arange")
    queries = shifted(machine, machine.new((batch.tokens,), "int64", "arange"))
    reached = shifted(machine, machine.new((batch.looked_at,), "int64", "arange"))
    found = function(machine, batch)
    del samples, heads, queries, reached
    return found


def _square(machine: Machine, batch: Batch, dtype: str = "bool", operator: str = "le.Tensor") -> Value:
    return machine.new((1, 1, batch.tokens, batch.looked_at), dtype, operator)


def _start(machine: Machine, batch: Batch, mapped: bool) -> Value:
    """What masks are joined onto: one element, or under vmap one for each query (masking_utils.py: and_masks, or_masks)."""
    return machine.new((1, 1, batch.tokens, 1) if mapped else (1, 1, 1, 1), "bool", "new_ones")


def joined(machine: Machine, first: Value, second: Value) -> Value:
    """Both, or either."""
    return machine.new(broadcast(first.shape, second.shape), "bool", "bitwise_and.Tensor")


def windowed(machine: Machine, batch: Batch, mapped: bool = False) -> Value:
    """The window and the causal triangle together (masking_utils.py:sliding_window_causal_mask_function)."""
    result = _start(machine, batch, mapped)
    result = joined(machine, result, _within(machine, batch))
    return joined(machine, result, _square(machine, batch))


def _within(machine: Machine, batch: Batch) -> Value:
    first = machine.new((1, 1, batch.tokens, 1), "int64", "sub.Tensor")
    inside = _square(machine, batch, operator="gt.Tensor")
    del first
    return inside


def unbounded(machine: Machine, batch: Batch) -> Value:
    """The causal triangle or anything, by vmap (models/gemma3/modeling_gemma3.py:Gemma3TextModel.forward)."""
    result = _start(machine, batch, True)
    result = joined(machine, result, _square(machine, batch))
    return joined(machine, result, machine.new((1, 1, 1, 1), "bool", "_to_copy"))


def both_ways(machine: Machine, batch: Batch) -> Value:
    """A window to the left or one to either side, by vmap (modeling_gemma3.py:_bidirectional_window_overlay)."""
    result = _start(machine, batch, True)
    result = joined(machine, result, windowed(machine, batch, mapped=True))
    return joined(machine, result, _near(machine, batch))


def _near(machine: Machine, batch: Batch) -> Value:
    return compare(machine, machine.like(_square(machine, batch, "int64", "sub.Tensor"), "abs"), operator="lt.Scalar")


def blocks(machine: Machine, batch: Batch, mapped: bool = False) -> Value:
    """The causal triangle or one block of an image (masking_utils.py:blockwise_overlay)."""
    result = _start(machine, batch, mapped)
    result = joined(machine, result, _square(machine, batch))
    return joined(machine, result, _one_block(machine, batch))


def _one_block(machine: Machine, batch: Batch) -> Value:
    rows, tokens = batch.rows, batch.tokens
    of_query = machine.new((rows, 1, tokens, 1), "int64", "index.Tensor")
    of_key = machine.new((rows, 1, 1, tokens), "int64", "index.Tensor")
    same = machine.new((rows, 1, tokens, tokens), "bool", "eq.Tensor")
    inside = joined(machine, same, compare(machine, of_query, operator="ge.Scalar"))
    del of_query, of_key
    return inside


def blocks_in_window(machine: Machine, batch: Batch) -> Value:
    """The same within a window, by vmap (modeling_gemma3.py:create_masks_for_vision_model)."""
    result = _start(machine, batch, True)
    result = joined(machine, result, blocks(machine, batch, mapped=True))
    return joined(machine, result, _within(machine, batch))


def block_numbers(machine: Machine, batch: Batch) -> Value:
    """Which image each token is of, int64 (modeling_gemma3.py:get_block_sequence_ids_for_mask)."""
    shape = (batch.rows, batch.tokens)
    is_image = machine.new(shape, "bool", "eq.Scalar")
    before = machine.new((batch.rows, batch.tokens + 1), "bool", "constant_pad_nd")
    start = joined(machine, is_image, machine.new(shape, "bool", "bitwise_not"))
    group = shifted(machine, _summed(machine, machine.like(start, "_to_copy", "int32")), "sub.Tensor")
    least = machine.new((), "int64", "scalar_tensor")
    numbers = machine.new(shape, "int64", "where.self")
    del least, before, group
    return numbers


def _summed(machine: Machine, value: Value) -> Value:
    return machine.like(value, "cumsum", "int64")
