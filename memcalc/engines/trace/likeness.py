"""What a fake tensor shows, and another that shows the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

Rule = Callable[[Sequence[Any]], Any]
"""From the tensors among a call's arguments, in order, to its result."""
_META = torch.device("meta")
_REFUSE_POINTERS = torch._C._set_throw_on_mutable_data_ptr
_WARN_OF_POINTERS = torch._C._set_warn_deprecated_on_mutable_data_ptr
_keys = torch._C._dispatch_keys
_empty, _empty_strided = torch.empty, torch.empty_strided
_make_subclass = torch.Tensor._make_subclass


def look(tensor: FakeTensor) -> tuple[Any, ...]:
    """All of a strided fake tensor that a result can depend on, its values apart."""
    return (
        tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset(), _keys(tensor).raw_repr(), tensor._fake_device,
        tensor.requires_grad, tensor.untyped_storage().nbytes(),
    )  # fmt: skip


def rule_of(result: Any, tensors: Sequence[Any], mode: FakeTensorMode) -> Rule | None:
    """How to make a call's result again; None where that cannot be told, or does not come out the same."""
    if isinstance(result, list | tuple):
        own = [_memory(one) for one in result if isinstance(one, FakeTensor)]
        given = {_memory(one) for one in tensors}
        fresh = [memory for memory in own if memory not in given]
        parts = [_part_of(one, tensors, mode) for one in result]
        if None in parts or len(fresh) != len(set(fresh)):
            return None
        rule: Rule | None = several(list if isinstance(result, list) else tuple, parts)  # type: ignore[arg-type]
    else:
        rule = _part_of(result, tensors, mode)
    return rule if rule is not None and alike(rule(tensors), result, tensors) else None


def several(kind: type, parts: Sequence[Rule]) -> Rule:
    """A list or a tuple, each part by its own rule; a tuple's names do not outlive the dispatcher."""
    return lambda tensors: kind([part(tensors) for part in parts])


def maker(like: FakeTensor, place: int | None, mode: FakeTensorMode) -> Rule:
    """Makes a tensor like one: on memory of its own, or on that of the argument in a place."""
    shape, stride, dtype, offset = like.shape, like.stride(), like.dtype, like.storage_offset()
    device, state = like._fake_device, dict(like.__dict__)
    told: dict[str, Any] = {
        "dispatch_device": device.type != "cuda",
        "device_for_backend_keys": device,
    }  # as in presence._subclass
    protect = _WARN_OF_POINTERS if mode._allow_unsafe_data_ptr_access else _REFUSE_POINTERS

    def make(tensors: Sequence[Any]) -> FakeTensor:
        if place is None:
            data = _empty_strided(shape, stride, dtype=dtype, device=_META)
        else:
            data = _empty(0, dtype=dtype, device=_META)
            data.set_(tensors[place].untyped_storage(), offset, shape, stride)
        made: FakeTensor = _make_subclass(FakeTensor, data, False, **told)
        protect(made)
        made.__dict__.update(state)
        return made

    return make


def alike(one: Any, other: Any, tensors: Sequence[Any]) -> bool:
    """Whether two results of one call look the same, Python's attributes and aliasing of the call's tensors included."""
    memories = [_memory(each) for each in tensors]
    given = {id(each) for each in tensors}

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, list | tuple):
            return isinstance(one, list) == isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
        if type(one) is not type(other):
            return False
        if not isinstance(one, FakeTensor):
            return bool(one == other)
        if one is other or id(one) in given or id(other) in given:
            return one is other
        mine, its = _memory(one), _memory(other)
        return (
            look(one) == look(other) and one.__dict__ == other.__dict__ and (mine == its or not {mine, its} & set(memories))
            and one.device == other.device and one.is_leaf == other.is_leaf and one._is_view() == other._is_view()
        )  # fmt: skip

    return same(one, other)


def apart(made: Sequence[Any], tensors: Sequence[Any]) -> bool:
    """Whether all of a list are tensors on memory that neither the call's tensors nor the others have."""
    own = [_memory(one) for one in made if isinstance(one, FakeTensor)]
    return len(set(own)) == len(made) and not set(own) & {_memory(one) for one in tensors}


def _part_of(result: Any, tensors: Sequence[Any], mode: FakeTensorMode) -> Rule | None:
    """For one tensor, or a number that is no tensor's value."""
    if result is None or type(result) in (bool, int):
        return lambda tensors: result
    if type(result) is not FakeTensor or result.layout is not torch.strided or result.constant is not None:
        return None
    places = [index for index, one in enumerate(tensors) if one is result]
    if places:
        return (lambda tensors: tensors[places[0]]) if len(places) == 1 else None
    if result.requires_grad:
        return None
    memory = _memory(result)
    places = [index for index, one in enumerate(tensors) if _memory(one) == memory]
    return None if len(places) > 1 else maker(result, places[0] if places else None, mode)


def _memory(tensor: FakeTensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
