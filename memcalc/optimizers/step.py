"""From an entry's temporaries to the bytes its step needs: one fold, over ints or over arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from memcalc.arrays import Count, maximum, where
from memcalc.optimizers.base import Optimizer, Options, Param, Temporary

Size = Callable[[Count], Count]


def as_it_is(nbytes: Count) -> Count:
    """A buffer takes the bytes it asked for."""
    return nbytes


def step_bytes(entry: Optimizer, params: Sequence[Param], options: Options, size: Size = as_it_is) -> Count | None:
    """The most bytes one step allocates at once over these parameters, which form one group of one dtype.

    Args:
        entry: the optimizer.
        params: what the step walks, in its order; ``count`` equal ones are taken to follow each other, which is the most
            that any interleaving of them with others needs.
        options: the resolved options.
        size: what one buffer takes: its bytes as they are, or rounded up to the allocator's blocks.

    Returns:
        Bytes, or None where nobody has measured them. Several groups are processed one after another and leave nothing
        behind, so the need of a step is the largest of theirs.
    """
    if entry.temporaries is None:
        return None
    form = entry.implementation(options)
    together: dict[str, Count] = {}
    in_turn: dict[str, Count] = {}
    before: dict[str, Count] = {}
    for param in params:
        for moment, live in _moments(entry.temporaries(param, options, form), size).items():
            left = maximum(before.get(moment, 0), where(param.count > 1, live["previous"], 0))
            present = param.count > 0
            in_turn[moment] = maximum(in_turn.get(moment, 0), where(present, live["max"] + left, 0))
            before[moment] = where(present, live["previous"], before.get(moment, 0))
            together[moment] = together.get(moment, 0) + live["sum"] * param.count
    peak: Count = 0
    for moment, summed in together.items():
        peak = maximum(peak, summed + in_turn[moment])
    return peak


def _moments(terms: Iterable[Temporary], size: Size) -> dict[str, dict[str, Count]]:
    """Bytes by moment, then by how they add up over parameters."""
    moments: dict[str, dict[str, Count]] = {}
    for term in terms:
        live = moments.setdefault(term.moment, {"sum": 0, "max": 0, "previous": 0})
        live[term.over] = live[term.over] + size(term.nbytes) * term.count
    return moments
