"""A live ``nn.Module`` as a model: every parameter and buffer it registers, tensors that share storage counted once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from memcalc.errors import NotModelledError
from memcalc.models import Model
from memcalc.readers.grouping import group_tensors
from memcalc.readers.names import Stored, described
from memcalc.tensors import ITEMSIZE, Kind, Tensor

if TYPE_CHECKING:
    import torch


class Registered(NamedTuple):
    """One registered tensor: its name, itself, the module it is registered on, and as what."""

    name: str
    tensor: torch.Tensor
    owner: torch.nn.Module
    role: Literal["parameter", "buffer"]


def model_from_module(
    module: torch.nn.Module, *, name: str = "", assumptions: tuple[str, ...] = (), path: str = "model"
) -> Model:
    """The model of a live module, exact to the byte: its dtypes, what is frozen, what is tied.

    Args:
        module: any module, on any device; on ``meta`` it takes no memory.
        name: what to call it; its class's name by default.
        assumptions: what was already assumed in building it.
        path: what errors call it.

    Raises:
        InputError: a parameter that has no shape yet, or that no optimizer could write.
        NotModelledError: sparse tensors, dtypes without a size of their own, views that overlap in part.
    """
    from memcalc.runtime.storage import Storages

    module = getattr(module, "_orig_mod", module)  # torch.compile wraps the module it is given
    storages = Storages(path)
    listed: dict[str, tuple[Tensor, Registered]] = {}
    for entry in (*registered(module, "parameter"), *registered(module, "buffer")):
        same = storages.seen(entry)
        if same is None:
            for tensor in _tensors(entry, storages, path):
                listed[tensor.name] = (tensor, entry)
        elif same in listed:
            listed[same] = _merged(*listed[same], entry)
    tensors = _with_kinds(listed)
    shared = set(storages.tied.values())
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.dtype] += int(tensor.nbytes) * (tensor.role == "parameter")
    architecture = type(module).__name__
    # a tensor that others are tied to keeps its own name, so that it can be told from its likes
    grouped = group_tensors([tensor for tensor in tensors if tensor.name not in shared], path)
    alone = tuple(tensor for tensor in tensors if tensor.name in shared)
    return Model(
        name=name or architecture, family="module", architecture=architecture, tensors=(*alone, *grouped),
        tied=storages.tied, dtype=weights.most_common(1)[0][0] if weights else None,
        assumptions=(*assumptions, *storages.remarks),
    )  # fmt: skip


def _merged(tensor: Tensor, first: Registered, also: Registered) -> tuple[Tensor, Registered]:
    """What is known of a tensor once it is met again: it trains if one of its names does, and a table stays a table."""
    if also.tensor.requires_grad and not tensor.trainable:
        tensor = replace(tensor, trainable=True)
    leaf = also.name.rpartition(".")[2]
    table = kind_of_owner(also.owner, leaf, also.tensor.dim()) == "embedding"
    return tensor, first._replace(owner=also.owner) if table else first


def registered(module: torch.nn.Module, role: Literal["parameter", "buffer"]) -> Iterator[Registered]:
    """Every parameter or buffer with its name and owner, tied ones once for each name, in the order of registration."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        listing: Any = owner.named_parameters if role == "parameter" else owner.named_buffers
        for name, tensor in listing(prefix=prefix, recurse=False, remove_duplicate=False):
            yield Registered(name, tensor, owner, role)


def _tensors(entry: Registered, storages: Any, path: str) -> Iterator[Tensor]:
    """The tensor as it is stored: itself, or the inner tensors of a wrapper (a quantised weight)."""
    name, tensor = entry.name, entry.tensor
    if not hasattr(tensor, "__tensor_flatten__"):
        yield _tensor(name, tensor, storages.shape(entry), entry.role, path)
        return
    wrapper = type(tensor).__name__
    if tensor.requires_grad:
        way_out = "give the module before it is sharded" if wrapper == "DTensor" else "give the module before it is converted"
        raise NotModelledError(
            f"{path}.{name}", wrapper, "is a wrapper whose gradient and optimizer states depend on it", way_out
        )
    inner = [(attribute, getattr(tensor, attribute)) for attribute in tensor.__tensor_flatten__()[0]]
    storages.remarks.append(f"{name} is a frozen {wrapper} of {tensor.numel():,} elements, counted as what it stores")
    for index, (attribute, part) in enumerate(inner):
        # the first holds the weights, the others what turns them back into numbers
        role = entry.role if index == 0 else "buffer"
        yield _tensor(f"{name}.{attribute}", part, tuple(part.shape), role, path)


def _tensor(name: str, tensor: torch.Tensor, shape: tuple[int, ...], role: Literal["parameter", "buffer"], path: str) -> Tensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEMSIZE:
        raise NotModelledError(f"{path}.{name}", dtype, "is a dtype memcalc does not count", "cast the tensor to another")
    return Tensor(name, shape, dtype, role=role, trainable=tensor.requires_grad or role == "buffer")


def _with_kinds(listed: dict[str, tuple[Tensor, Registered]]) -> list[Tensor]:
    """The tensors with the kind their owner's class says, or, where it says nothing, their name."""
    named = described(Stored(tensor.name, _plain(tensor.shape), tensor.dtype) for tensor, _ in listed.values())
    result = []
    for (tensor, entry), guess in zip(listed.values(), named, strict=True):
        if tensor.role == "buffer":
            result.append(tensor)
            continue
        leaf = entry.name.rpartition(".")[2]
        known = kind_of_owner(entry.owner, leaf, entry.tensor.dim())
        result.append(replace(tensor, kind=known or guess.kind))
    return result


def _plain(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(int(extent) for extent in shape)


def kind_of_owner(owner: torch.nn.Module, leaf: str, rank: int) -> Kind | None:
    """The operator by which a module of that class reads its parameter ``leaf``; None where the class is not known.

    source: pytorch 2.13.0 torch/nn/modules; transformers 5.23.0 pytorch_utils.py Conv1D (a linear layer)
    """
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
    from torch.nn.modules.conv import _ConvNd
    from torch.nn.utils.parametrize import ParametrizationList

    called = type(owner).__name__
    plain = leaf in ("weight", "bias")
    if isinstance(owner, ParametrizationList):
        return "other"  # the operator reads what is computed from it
    if isinstance(owner, _BatchNorm):
        return "batch_norm"
    if isinstance(owner, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | _NormBase) or re.search(r"Norm(?:\dd)?$", called):
        return "norm"
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if re.search(r"Experts$", called):
        return "expert" if rank >= 2 else "other"
    classes: tuple[tuple[bool, Kind], ...] = (
        (isinstance(owner, nn.Linear) or (called == "Conv1D" and rank <= 2), "linear"),
        (isinstance(owner, _ConvNd), "conv"),
        (isinstance(owner, nn.Embedding | nn.EmbeddingBag), "embedding"),
    )
    return next((kind for matches, kind in classes if matches and plain), None)
