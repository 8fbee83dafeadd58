"""The oracle's eyes: every storage a live optimizer holds, told apart by parameter, by hand of torch alone.

``held`` finds what the library keeps; ``promised`` says what the registry claims; both are multisets of
``(dtype, storage bytes)`` so that two lists are equal only when no byte differs.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from memcalc.optimizers.base import Optimizer, Param

OPAQUE = (
    str,
    bytes,
    int,
    float,
    complex,
    bool,
    type(None),
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.Generator,
)


class Kept(NamedTuple):
    """One storage: the dtype it is seen as, its whole bytes (not the view's), and ``cpu``, ``cuda``, ``meta`` …"""

    dtype: str
    nbytes: int
    device: str


class Held(NamedTuple):
    """What an optimizer keeps: one list for each parameter, in their order, and what belongs to none or to several."""

    per_parameter: list[list[Kept]]
    shared: list[Kept]


def held(optimizer: Any, params: Sequence[torch.Tensor], names: Mapping[str, int] | None = None) -> Held:
    """Every storage reachable from ``optimizer``, without the parameters, their gradients and empty storages.

    A storage belongs to a parameter when it is reached through a mapping keyed by that parameter (``optimizer.state``, but
    also any other dict, at any depth), by its ``id`` or, with ``names`` (name -> index into ``params``), by its name. One
    reached from no parameter, from several, or from a parameter and from outside too, is shared. A storage counts once.
    """
    walker = _Walker(params, names or {})
    walker.visit(optimizer, None)
    per_parameter: list[list[Kept]] = [[] for _ in params]
    shared: list[Kept] = []
    for kept, owners in walker.found.values():
        owner = next(iter(owners)) if len(owners) == 1 else None
        (shared if owner is None else per_parameter[owner]).append(kept)
    return Held([sorted(kept) for kept in per_parameter], sorted(shared))


class _Walker:
    def __init__(self, params: Sequence[torch.Tensor], names: Mapping[str, int]) -> None:
        self.by_id = {id(param): index for index, param in enumerate(params)}
        self.names = names
        self.found: dict[int, tuple[Kept, set[int | None]]] = {}
        self.seen: set[tuple[int, int | None]] = set()
        self.alive: list[Any] = []  # keeps temporaries (attribute dicts, unwrapped parts) alive, so that ids stay unique
        self.not_ours = {
            part.untyped_storage()._cdata
            for param in params
            for tensor in (param, param.grad)
            if tensor is not None
            for part in plain_parts(tensor)
        }

    def visit(self, thing: Any, owner: int | None) -> None:
        """Walk one object, list, dict or tensor in the name of ``owner`` (None: the optimizer itself)."""
        if isinstance(thing, OPAQUE) or (id(thing), owner) in self.seen:
            return
        self.seen.add((id(thing), owner))
        self.alive.append(thing)
        if isinstance(thing, torch.Tensor):
            for part in plain_parts(thing):
                self.keep(part, owner)
            if thing.is_leaf and thing.grad is not None:  # a host copy of a parameter may carry a gradient of its own
                self.visit(thing.grad, owner)
        elif isinstance(thing, Mapping):
            for key, value in thing.items():
                self.visit(value, self.owner_of(key, owner))
                self.visit(key, owner)
        elif isinstance(thing, list | tuple | set | frozenset):
            for value in thing:
                self.visit(value, owner)
        else:
            self.visit_attributes(thing, owner)

    def visit_attributes(self, thing: Any, owner: int | None) -> None:
        attributes = dict(getattr(thing, "__dict__", {}))
        for kind in type(thing).__mro__:
            for slot in kind.__dict__.get("__slots__", ()):
                attributes.setdefault(slot, getattr(thing, slot, None))
        if attributes:
            self.visit(attributes, owner)

    def owner_of(self, key: Any, owner: int | None) -> int | None:
        if isinstance(key, torch.Tensor):
            return self.by_id.get(id(key), owner)
        if isinstance(key, str):
            return self.names.get(key, owner)
        return self.by_id.get(key, owner) if isinstance(key, int) and key > 2**20 else owner

    def keep(self, tensor: torch.Tensor, owner: int | None) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self.not_ours or storage.nbytes() == 0:
            return
        kept = Kept(str(tensor.dtype).removeprefix("torch."), storage.nbytes(), storage.device.type)
        _, owners = self.found.setdefault(storage._cdata, (kept, set()))
        owners.add(owner)


def plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The ordinary tensors inside one that may be a wrapper subclass (quantised states) or sparse."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from plain_parts(getattr(tensor, name))
    elif tensor.is_sparse:
        yield from (tensor._indices(), tensor._values())
    else:
        yield tensor


def parameters(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float32, *, device: str = "cpu"
) -> list[torch.nn.Parameter]:
    """Real, non-zero parameters of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def take_steps(optimizer: Any, params: Sequence[torch.Tensor], steps: int = 2) -> None:
    """Real steps, each with fresh gradients in the parameter's own dtype."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step + 1)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)
        optimizer.step()


def described(
    params: Sequence[torch.Tensor], names: Sequence[str] | None = None, kinds: Sequence[Any] | None = None
) -> list[Param]:
    """The same parameters as the registry is told of them."""
    return [
        Param(
            shape=tuple(param.shape),
            dtype=str(param.dtype).removeprefix("torch."),
            grad_dtype=str((param if param.grad is None else param.grad).dtype).removeprefix("torch."),
            name=names[index] if names else f"weight{index}",
            kind=kinds[index] if kinds else "linear",
        )
        for index, param in enumerate(params)
    ]


def promised(entry: Optimizer, params: Sequence[Param], arguments: Mapping[str, Any]) -> tuple[list[Counter], Counter]:
    """What the registry claims: a multiset of (dtype, bytes) for each parameter, and the shared one; nothing empty."""
    options = entry.resolve(arguments)
    return [_multiset(entry.states(param, options)) for param in params], _multiset(
        entry.shared(params, options) if entry.shared else ()
    )


def _multiset(states: Any) -> Counter:
    counted: Counter = Counter()
    for state in states:
        counted[state.dtype, int(state.nbytes)] += int(state.count)
    return Counter({key: count for key, count in counted.items() if key[1] and count})


def multiset(kept: Sequence[Kept]) -> Counter:
    """Storages as a multiset of (dtype, bytes), the device left out."""
    return Counter((one.dtype, one.nbytes) for one in kept)


def assert_held_as_promised(
    optimizer: Any,
    params: Sequence[torch.Tensor],
    entry: Optimizer,
    arguments: Mapping[str, Any] | None = None,
    **told: Any,
) -> None:
    """Zero bytes of difference, tensor by tensor, for each parameter and for the shared tables."""
    found = held(optimizer, params)
    expected, shared = promised(entry, described(params, **told), arguments or {})
    for param, kept, claim in zip(params, found.per_parameter, expected, strict=True):
        assert multiset(kept) == claim, f"{entry.name} on {tuple(param.shape)} {param.dtype}"
    assert multiset(found.shared) == shared, f"{entry.name}: shared tables"
