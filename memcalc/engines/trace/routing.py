"""How a router is assumed to choose, and which choices are a router's.

Without data no router can choose. Uniform routing is assumed: of ``rows`` tokens that choose ``chosen`` of ``experts`` each,
every expert gets the same number of rows, or one more. An imbalance of *r* gives the last expert *r* times the uniform share
instead (rounded up, at most every row), and the others share what is left evenly. Rows are conserved either way, and no token
chooses an expert twice. The last one is the fullest because a loop over experts comes to it last, where its temporaries stand
on top of what all others saved, and because backward begins with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch

from memcalc.engines.trace.known import Router


def choices(rows: int, chosen: int, experts: int, imbalance: float = 1.0) -> torch.Tensor:
    """The experts that each row chooses, as ``[rows, chosen]`` of int64 on the CPU.

    >>> choices(4, 2, 4).tolist()
    [[0, 1], [2, 3], [1, 2], [3, 0]]
    >>> choices(8, 1, 4, 2.0).flatten().bincount().tolist()
    [2, 1, 1, 4]
    """
    row, place = torch.arange(rows), torch.arange(chosen)
    full = fullest(rows, chosen, experts, imbalance)
    if imbalance <= 1 or chosen == experts:
        # after each whole round the start moves by one, so that every single column is spread as evenly as all of them
        start = row * chosen + row // (experts // math.gcd(chosen, experts))
        return (start[:, None] + place) % experts
    apart = row < full  # these choose the last expert first
    count = chosen - apart.long()
    start = count.cumsum(0) - count
    others = (start[:, None] + place) % (experts - 1)
    shifted = torch.cat([torch.full((rows, 1), experts - 1), others[:, : chosen - 1]], 1)
    return torch.where(apart[:, None], shifted, others)


def fullest(rows: int, chosen: int, experts: int, imbalance: float = 1.0) -> int:
    """Rows of the fullest expert.

    >>> fullest(10, 2, 8), fullest(10, 2, 8, 1.5), fullest(10, 2, 8, 100.0)
    (3, 4, 10)
    """
    return min(rows, math.ceil(round(imbalance * rows * chosen / experts, 9)))


LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.ParameterList, torch.nn.ParameterDict)
"""Where a module keeps parts that are alike."""


def experts_of(module: torch.nn.Module) -> set[int]:
    """Numbers of experts a module may have: how long its lists are, and how many matrices its stacked weights are."""
    found: set[int] = set()
    for owner in module.modules():
        if isinstance(owner, LISTS):
            found.add(len(owner))
        if not isinstance(owner, torch.nn.modules.conv._ConvNd):
            found |= {param.shape[0] for param in owner.parameters(recurse=False) if param.ndim == 3}
    return {number for number in found if number > 1}


def chosen_of(func: Any, args: Any, kwargs: Any, experts: Collection[int]) -> tuple[int, int] | None:
    """(chosen, dimension) where an operator chooses among experts by what it cannot know: top-k, argmax, or max."""
    place = DIMENSIONS.get(func)
    if place is None or not args[0].is_floating_point() or not args[0].ndim:
        return None
    source, dim = args[0], args[place] if len(args) > place else kwargs.get("dim", -1 if func is TOPK else None)
    if dim is None or source.shape[dim] not in experts:
        return None
    return int(args[1]) if func is TOPK else 1, dim % source.ndim


TOPK = torch.ops.aten.topk.default
DIMENSIONS = {TOPK: 2, torch.ops.aten.argmax.default: 1, torch.ops.aten.max.dim: 1}
"""Operators that choose, and where their dimension stands among their arguments."""


def assumed(routers: Iterable[Router], imbalance: float) -> Iterator[str]:
    """What was assumed, a line for each kind of router."""
    found = sorted(set(routers))
    kinds = {router[1:4]: [one for one in found if one[1:4] == router[1:4]] for router in found}
    for (rows, chosen, experts), alike in kinds.items():
        modules = sorted({one.module for one in alike})
        named = modules[0] + (f" and {len(modules) - 1} more" if len(modules) > 1 else "")
        most, total = fullest(rows, chosen, experts, imbalance), rows * chosen
        share = f"{total // experts} to {-(-total // experts)}" if total % experts else str(total // experts)
        how = "is uniform" if imbalance <= 1 else f"has an imbalance of {imbalance:g}"
        each = f"{share} rows an expert" if imbalance <= 1 else f"{most} rows for the fullest expert"
        weights = ", its weights equal" if any(one.what == "weights" for one in alike) else ""
        yield f"routing {how}: {rows} tokens choose {chosen} of {experts} experts in {named}: {each}{weights}"
