"""Parameters of lists of layers as FSDP2 finds them: by the member they are in, and in the order their modules are listed.

source: pytorch 2.13 torch/distributed/fsdp/_fully_shard/_fsdp_init.py: _get_managed_modules, _get_managed_states
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.parallelism.base import ScalarOnlyError
from memcalc.play.values import alike
from memcalc.records import replace
from memcalc.tensors import Span, Tensor

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def outermost(name: str) -> str:
    """The member of an outermost list of layers that a parameter within some list is in.

    >>> [outermost(name) for name in ("groups.*.layers.*.ffn.bias", "stages.0.layers.*.norm.bias", "layers.layer_*.ln.bias")]
    ['groups.*', 'stages.0', 'layers.layer_*']
    """
    parts = name.split(".")
    return ".".join(parts[: next(place for place, part in enumerate(parts) if part.endswith("*") or part.isdigit()) + 1])


def managed(names: Sequence[tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Parameters as FSDP2 lists them: what a module holds itself comes after what its parts hold (_get_managed_modules).

    Args:
        names: each parameter's, and what is left of it from here on, part by part.

    >>> list(managed([("head.bias", ["head", "bias"]), ("head.norm.bias", ["head", "norm", "bias"])]))
    ['head.norm.bias', 'head.bias']
    """
    parts: dict[str, list[tuple[str, Sequence[str]]]] = {}
    for name, (first, *rest) in names:
        parts.setdefault(first if rest else "", []).append((name, rest))
    own = parts.pop("", [])
    for part in parts.values():
        yield from managed(part)
    yield from (name for name, _ in own)


def of_kind(tensors: Sequence[Tensor], layer: Any) -> list[Tensor] | None:
    """Of a list's parameters, named from a member down, those of members like ``layer``, whatever stands on its matrices.

    None where that is not told by names and shapes.
    """
    kinds: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(id(tensor.spans[0]), []).append(tensor)
    if len(kinds) == 1:
        return list(tensors)
    if layer is None:
        return None
    wanted = {tensor.name: tensor.shape for tensor in layer.tensors() if tensor.role == "parameter"}
    alike_ones = [kind for kind in kinds.values() if _bare(kind).keys() == wanted.keys()]
    alike_ones = [kind for kind in alike_ones if all(alike(shape, wanted[name]) for name, shape in _bare(kind).items())]
    return alike_ones[0] if alike_ones else None


def _bare(tensors: Iterable[Tensor]) -> dict[str, tuple[Count, ...]]:
    """The shapes of a layer without its adapters, as it names them itself."""
    own = (tensor for tensor in tensors if not any(part.startswith("lora_") for part in tensor.name.split(".")))
    return {tensor.name.replace(".base_layer.", "."): tensor.shape for tensor in own}


def each_member(machine: Machine, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Those that are there, of lists within a module one by one, as modules are registered: a member's before the next one's.

    Raises:
        ScalarOnlyError: sizes are those of many jobs, and which of several kinds a member of a list is cannot be told.
    """
    for start, group in groupby(tensors, key=lambda tensor: tensor.name.partition("*")[0] if "*" in tensor.name else None):
        held = list(group)
        if start is None:
            yield from (tensor for tensor in held if machine.decide(tensor.count > 0))
            continue
        if any(tensor.spans[0].indices is None for tensor in held) and len({id(tensor.spans[0]) for tensor in held}) > 1:
            raise ScalarOnlyError
        place, member = 0, held
        while member:
            member = [tensor for tensor in held if _has(machine, tensor.spans[0], place)]
            named = [replace(each, name=each.name.replace("*", str(place), 1), spans=each.spans[1:]) for each in member]
            yield from each_member(machine, named)
            place += 1


def _has(machine: Machine, span: Span, place: int) -> bool:
    return machine.decide(place < span.count) if span.indices is None else place in span.indices
