"""Which predicted tensor is which real one: by name, then by parameter, then by size alone; what is left is a difference."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from memcalc.measurement import Tensor
from memcalc.records import dataclass, replace
from memcalc.verify.predict import LISTED, Expected

HOST = "host_optimizer_states"
"""What a record calls optimizer states in CPU memory; a footprint lists them apart, under ``host``."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor, predicted and measured; None on the side that does not have it.

    Attributes:
        component: one of LISTED, or HOST.
        name: as measured; as predicted where nothing like it was measured.
        predicted: requested bytes.
        measured: bytes of its storage.
    """

    component: str
    name: str
    predicted: int | None
    measured: int | None

    @property
    def difference(self) -> int:
        """Measured less predicted."""
        return (self.measured or 0) - (self.predicted or 0)


def pairs(expected: Iterable[Expected], tensors: Iterable[Tensor], *, on_cpu: bool) -> list[Pair]:
    """Every tensor of both sides once, in the order they were measured, those only predicted last.

    Args:
        expected: the prediction for one rank.
        tensors: what that rank held.
        on_cpu: the record is of a CPU, where device and host are one memory, so that the prediction says which is meant.
    """
    theirs: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        component = "optimizer_states" if tensor.component == HOST else tensor.component
        if component in LISTED:
            theirs[component].append(tensor)
    ours: dict[str, list[Expected]] = defaultdict(list)
    for one in expected:
        ours[one.component] += [replace(one, times=1)] * one.times
    return [pair for component in LISTED for pair in _matched(component, ours[component], theirs[component], on_cpu)]


def _matched(component: str, ours: list[Expected], theirs: list[Tensor], on_cpu: bool) -> list[Pair]:
    partner: dict[int, int] = {}
    free = set(range(len(ours)))
    rules: Sequence[tuple[Callable[[Expected], Hashable], Callable[[Tensor], Iterable[Hashable]]]] = (
        (lambda p: (p.name, p.nbytes), lambda t: [(name, t.nbytes) for name in (t.name, *t.also)]),
        (lambda p: (p.owner, p.nbytes), lambda t: [(t.owner or "", t.nbytes)]),
        (lambda p: p.name, lambda t: (t.name, *t.also)),
        (lambda p: (starred(p.name), p.nbytes), lambda t: [(starred(t.name), t.nbytes)]),
        (lambda p: starred(p.name), lambda t: [starred(t.name)]),
        (lambda p: p.nbytes, lambda t: [t.nbytes]),
    )
    for of_ours, of_theirs in rules:
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for at in sorted(free, reverse=True):
            waiting[of_ours(ours[at])].append(at)
        for index, tensor in enumerate(theirs):
            if index in partner:
                continue
            at_hand = next((waiting[key] for key in of_theirs(tensor) if waiting.get(key)), None)
            if at_hand:
                partner[index] = at_hand.pop()
                free.discard(partner[index])
    found = []
    for index, tensor in enumerate(theirs):
        mate = ours[partner[index]] if index in partner else None
        found.append(
            Pair(_counted_as(component, mate, tensor, on_cpu), tensor.name, mate.nbytes if mate else None, tensor.nbytes)
        )
    return [*found, *(Pair(_counted_as(component, ours[at]), ours[at].name, ours[at].nbytes, None) for at in sorted(free))]


def _counted_as(component: str, mate: Expected | None, tensor: Tensor | None = None, on_cpu: bool = False) -> str:
    """The component a tensor counts to: states in CPU memory are counted apart from the device's."""
    if component != "optimizer_states":
        return component
    if mate is not None and (on_cpu or tensor is None):
        return HOST if mate.place != "device" else component
    assert tensor is not None
    on_host = tensor.component == HOST if on_cpu else tensor.device.startswith("cpu")
    return HOST if on_host else component


def starred(name: str) -> str:
    """A name with its indices left out, as the prediction writes what it does not tell apart.

    >>> starred("model.layers.31.mlp.weight exp_avg")
    'model.layers.*.mlp.weight exp_avg'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name)
