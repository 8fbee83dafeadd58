"""Every storage a live object holds, found by walking it: attributes, slots, lists, dicts at any depth, tensors in wrappers.

A storage counts once, with its whole bytes, and belongs to the parameter through which it is reached.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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
"""What holds no tensor of its own."""


class Storage(NamedTuple):
    """One storage.

    Attributes:
        key: tells it from every other one alive.
        dtype: of the first tensor found that looks into it.
        shape: that tensor's.
        nbytes: the whole storage, not the view.
        device: ``cpu``, ``cuda``, ``meta`` …
        path: how it was reached from its owner, as ``exp_avg`` or ``projector.ortho_matrix``.
        owner: index of the one parameter it is reached through; None where it is reached from none or from several.
    """

    key: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    device: str
    path: str
    owner: int | None


class Kept(NamedTuple):
    """One storage in brief: the dtype it is seen as, its whole bytes, and ``cpu``, ``cuda``, ``meta`` …"""

    dtype: str
    nbytes: int
    device: str


class Held(NamedTuple):
    """What an optimizer keeps: one list for each parameter, in their order, and what belongs to none or to several."""

    per_parameter: list[list[Kept]]
    shared: list[Kept]


def storages_of(
    thing: Any, params: Sequence[torch.Tensor] = (), names: Mapping[str, int] | None = None, *, grads: bool = False
) -> list[Storage]:
    """Every storage reachable from ``thing``, in the order found, without the parameters', their gradients' and empty ones.

    Args:
        thing: an optimizer, a module, a scaler: any object, or a list of them.
        params: the parameters that storages may belong to: reached through a mapping keyed by a parameter
            (``optimizer.state``, but also any other dict, at any depth) or by its ``id``.
        names: name -> index into ``params``, for mappings keyed by name.
        grads: whether the gradients of ``params`` are listed all the same.
    """
    walker = _Walker(params, names or {}, grads=grads)
    walker.visit(thing, None, "")
    return [found._replace(owner=next(iter(owners)) if len(owners) == 1 else None) for found, owners in walker.found.values()]


def held(optimizer: Any, params: Sequence[torch.Tensor], names: Mapping[str, int] | None = None) -> Held:
    """What :func:`storages_of` finds, sorted by parameter.

    A storage reached from no parameter, from several, or from a parameter and from outside too, is shared.
    """
    per_parameter: list[list[Kept]] = [[] for _ in params]
    shared: list[Kept] = []
    for found in storages_of(optimizer, params, names):
        kept = Kept(found.dtype, found.nbytes, found.device)
        (shared if found.owner is None else per_parameter[found.owner]).append(kept)
    return Held([sorted(kept) for kept in per_parameter], sorted(shared))


def storage_key(tensor: torch.Tensor) -> int:
    """The number that tells the storage of an ordinary tensor from every other one alive."""
    return int(tensor.untyped_storage()._cdata)


def plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The ordinary tensors inside one that may be a wrapper subclass (quantised states, shards) or sparse."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for part in (getattr(tensor, name) for name in names):
            if isinstance(part, torch.Tensor):  # a sharded tensor names its mesh beside its piece
                yield from plain_parts(part)
    elif tensor.is_sparse:
        yield from (tensor._indices(), tensor._values())
    else:
        yield tensor


class _Walker:
    def __init__(self, params: Sequence[torch.Tensor], names: Mapping[str, int], *, grads: bool) -> None:
        self.by_id = {id(param): index for index, param in enumerate(params)}
        self.names = names
        self.found: dict[int, tuple[Storage, set[int | None]]] = {}
        self.seen: set[tuple[int, int | None]] = set()
        self.alive: list[Any] = []  # keeps temporaries (attribute dicts, unwrapped parts) alive, so that ids stay unique
        self.not_ours = {
            storage_key(part)
            for param in params
            for tensor in (param, None if grads else param.grad)
            if tensor is not None
            for part in plain_parts(tensor)
        }

    def visit(self, thing: Any, owner: int | None, path: str) -> None:
        """Walk one object, list, dict or tensor in the name of ``owner`` (None: the object itself)."""
        if isinstance(thing, OPAQUE) or (id(thing), owner) in self.seen:
            return
        self.seen.add((id(thing), owner))
        self.alive.append(thing)
        if isinstance(thing, torch.Tensor):
            for part in plain_parts(thing):
                self.keep(part, owner, path)
            if thing.is_leaf and thing.grad is not None:  # a host copy of a parameter may carry a gradient of its own
                self.visit(thing.grad, owner, f"{path}.grad")
        elif isinstance(thing, Mapping):
            for key, value in thing.items():
                mine = self.owner_of(key, owner)
                self.visit(value, mine, "" if mine != owner else _under(path, key))
                self.visit(key, owner, path)
        elif isinstance(thing, list | tuple | set | frozenset):
            for index, value in enumerate(thing):
                self.visit(value, owner, _under(path, index))
        else:
            self.visit_attributes(thing, owner, path)

    def visit_attributes(self, thing: Any, owner: int | None, path: str) -> None:
        attributes = dict(getattr(thing, "__dict__", {}))
        for kind in type(thing).__mro__:
            for slot in kind.__dict__.get("__slots__", ()):
                attributes.setdefault(slot, getattr(thing, slot, None))
        if attributes:
            self.visit(attributes, owner, path)

    def owner_of(self, key: Any, owner: int | None) -> int | None:
        if isinstance(key, torch.Tensor):
            return self.by_id.get(id(key), owner)
        if isinstance(key, str):
            return self.names.get(key, owner)
        # small whole numbers are indices and step counts, never the id of an object
        return self.by_id.get(key, owner) if isinstance(key, int) and key > 2**20 else owner

    def keep(self, tensor: torch.Tensor, owner: int | None, path: str) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self.not_ours or storage.nbytes() == 0:
            return
        dtype = str(tensor.dtype).removeprefix("torch.")
        found = Storage(key, dtype, tuple(tensor.shape), storage.nbytes(), storage.device.type, path, owner)
        _, owners = self.found.setdefault(key, (found, set()))
        owners.add(owner)


def _under(path: str, key: Any) -> str:
    label = str(key) if isinstance(key, str | int) else type(key).__name__
    return f"{path}.{label}" if path else label
