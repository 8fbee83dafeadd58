"""The order in which a step walks a model's tensors: layer by layer, as they are registered, repetition written once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from memcalc.arrays import Count, is_array, maximum
from memcalc.models import Model
from memcalc.optimizers.base import Param
from memcalc.optimizers.player import Node, in_a_row
from memcalc.tensors import Span


class _Placed(NamedTuple):
    """A parameter, the name of the list it is in up to each repeated axis, and its axes."""

    param: Param
    pieces: tuple[str, ...]
    spans: tuple[Span, ...]


def in_order(model: Model, params: Sequence[Param]) -> tuple[Node, ...]:
    """Parameters as the model registers them: a stack of layers stands where its first tensor stands.

    Params that are not the model's own tensors (flat partitions) follow one another as they are given.
    """
    trainable = [tensor for tensor in model.parameters if tensor.trainable]
    if [tensor.name for tensor in trainable] != [param.name for param in params]:
        return in_a_row(params)
    return _stacked(
        [
            _Placed(param, tuple(tensor.name.split("*")), tensor.spans if same(tensor.count, param.count) else ())
            for tensor, param in zip(trainable, params, strict=True)
        ],
        0,
    )


def same(first: Count, second: Count) -> bool:
    """Whether two counts are one in every job."""
    equal = first == second
    return bool(equal.all() if is_array(equal) else equal)  # type: ignore[union-attr]


def _stacked(placed: Sequence[_Placed], depth: int) -> tuple[Node, ...]:
    """Those that share a repeated axis under it, others alone."""
    found: dict[object, list[_Placed]] = {}
    for number, one in enumerate(placed):
        key = "*".join(one.pieces[: depth + 1]) if len(one.spans) > depth else number
        found.setdefault(key, []).append(one)
    nodes: list[Node] = []
    for members in found.values():
        first = members[0]
        if len(first.spans) <= depth:
            nodes.append((_present(first, depth), first.param))
        else:
            nodes += _axes(members, depth)
    return tuple(nodes)


def _axes(members: Sequence[_Placed], depth: int) -> list[Node]:
    """One list of modules, whose members may be of several kinds: runs of modules with the same tensors."""
    spans = [one.spans[depth] for one in members]
    if any(is_array(span.count) for span in spans):
        kinds: list[list[_Placed]] = []
        for one in members:
            alike = [kind for kind in kinds if same(kind[0].spans[depth].count, one.spans[depth].count)]
            if alike:
                alike[0].append(one)
            else:
                kinds.append([one])
        return [(kind[0].spans[depth].count, _stacked(kind, depth + 1)) for kind in kinds]
    labels = [frozenset(span.labels()) for span in spans]
    every = sorted(frozenset().union(*labels))
    runs = groupby(every, key=lambda label: tuple(label in mine for mine in labels))
    return [
        (len(list(run)), _stacked([one for one, there in zip(members, present, strict=True) if there], depth + 1))
        for present, run in runs
    ]


def _present(one: _Placed, depth: int) -> Count:
    """How many of it there are beside its axes: none where it is absent."""
    axes: Count = 1
    for span in one.spans[:depth]:
        axes = axes * span.count
    return one.param.count // maximum(axes, 1)
