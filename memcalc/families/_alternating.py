"""Lists of layers in which kinds alternate: how many there are of each kind, and which indices they carry.

Counts are formulas, so that a sweep over depths and steps is one evaluation; indices exist for one job alone, to print names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from memcalc.arrays import Condition, Count, as_count, both, is_array, minimum
from memcalc.layers.base import Layer, Module, Stack
from memcalc.tensors import Span


def periodic(
    total: Count, step: Count, *, offset: Count = 0, first: Count = 0, never: Collection[int] = (), present: Condition = True
) -> Span:
    """The layers ``i`` of ``total`` with ``i >= first`` and ``(i + offset) % step == 0``, without those in ``never``.

    ``present`` false leaves none. DeepSeek's mixtures are ``first = first_k_dense_replace, step = moe_layer_freq``; Qwen's are
    ``offset = 1, step = decoder_sparse_step, never = mlp_only_layers``.

    >>> periodic(8, 2, offset=1, never=[3])
    Span(count=3, indices=(1, 5, 7))
    """
    start = minimum(first, total)
    # multiples of step among start + offset ... total + offset - 1
    count = (total + offset - 1) // step - (start + offset - 1) // step
    for index in set(never):
        inside = both(both(index >= start, index < total), (index + offset) % step == 0)
        count = count - as_count(inside)
    count = count * as_count(present)
    if any(is_array(number) for number in (count, total, step, offset, first)):
        return Span(count)
    chosen = (i for i in range(total) if present and i >= first and (i + offset) % step == 0 and i not in never)
    return Span(count, tuple(chosen))


def others(total: Count, span: Span) -> Span:
    """The layers of ``total`` that ``span`` leaves."""
    if span.indices is None or is_array(total):
        return Span(total - span.count)
    taken = set(span.indices)
    return Span(total - span.count, tuple(i for i in range(int(total)) if i not in taken))


def listed(kinds: Sequence[str], kind: str) -> Span:
    """The layers of that kind in a list that names each one's.

    >>> listed(["full", "sliding", "full"], "full")
    Span(count=2, indices=(0, 2))
    """
    indices = tuple(i for i, each in enumerate(kinds) if each == kind)
    return Span(len(indices), indices)


def matching(total: Count, test: Callable[[int], Condition]) -> Span:
    """The layers of ``total`` that pass a test no single formula counts: one step per index, over all jobs at once.

    >>> matching(5, lambda i: i % 2 == 0)
    Span(count=3, indices=(0, 2, 4))
    """
    deepest = int(total.max()) if is_array(total) else int(total)  # type: ignore[union-attr]
    count = sum((as_count(both(index < total, test(index))) for index in range(deepest)), 0)
    if is_array(count) or is_array(total):
        return Span(count)
    return Span(count, tuple(index for index in range(deepest) if test(index)))


Order = tuple[tuple[tuple[str, ...], Count], ...]
"""The kinds of layers from first to last, as stretches: (the kinds of a turn, how many turns)."""


def in_turns(kinds: Sequence[str]) -> Order:
    """A list of kinds as the shortest turn that repeats itself, and what is left of one.

    >>> in_turns(["slide", "full", "slide", "full", "slide"])
    ((('slide', 'full'), 2), (('slide',), 1))
    """
    total = len(kinds)
    period = next(p for p in range(1, total + 1) if all(kinds[i] == kinds[i % p] for i in range(total)))
    whole = total // period
    return ((tuple(kinds[:period]), whole), *(((kind,), 1) for kind in kinds[whole * period :]))


def alternating(*members: tuple[Layer, Span]) -> Module:
    """One list of layers, a stack for each kind."""
    return Module([("", Stack(layer, span.count, span.indices)) for layer, span in members])
