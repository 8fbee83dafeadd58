"""What an operator's result looks like, remembered: the same call on the same shapes is answered without running it again.

PyTorch's fake tensors remember too (pytorch torch/_subclasses/fake_tensor.py:FakeTensorMode._cached_dispatch_impl), but asking
takes them some 150 µs, and results that are lists are not remembered. Here the first call is theirs, whatever it takes. What it
answered is made a second time in the cheapest way, and that way is kept only where both are alike in all that a tensor shows.

A rule holds for one operator, one default dtype, the same layout of every tensor (:func:`look`) and the same other arguments.
What may depend on more has no rule: operators that read values or change their arguments' shapes, those of other libraries,
and tensors with a known value (``FakeTensor.constant``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

Rule = Callable[[Sequence[Any]], Any]
"""From the tensors among the arguments, in order, to the result."""
_META = torch.device("meta")
_INDEX = torch.ops.aten.index.Tensor
_UNSEEN = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view})
_PLAIN = frozenset({int, bool, float, complex, type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format})
"""Kinds of arguments that say all they are by being equal."""
_keys = torch._C._dispatch_keys
_empty, _empty_strided = torch.empty, torch.empty_strided
_make_subclass = torch.Tensor._make_subclass
_REFUSE_POINTERS = torch._C._set_throw_on_mutable_data_ptr
_WARN_OF_POINTERS = torch._C._set_warn_deprecated_on_mutable_data_ptr


class Operator:
    """One operator and its rules.

    Attributes:
        func: the operator; held, as its id is what it is found by.
        rules: by what :func:`take_down` made of the arguments.
        ruled: whether it may have rules.
        pointwise: whether a float among its arguments decides nothing by its value, only by being one.
    """

    __slots__ = ("func", "pointwise", "ruled", "rules")

    def __init__(self, func: Any) -> None:
        self.func = func
        self.rules: dict[tuple[Any, ...], Rule | None] = {}
        self.ruled = (
            isinstance(func, torch._ops.OpOverload)
            and func.namespace in ("aten", "prims")
            and func not in FakeTensorMode.lift_fns
            and (func is _INDEX or _UNSEEN.isdisjoint(func.tags))
        )
        self.pointwise = self.ruled and (torch.Tag.pointwise in func.tags or func._opname.startswith("_foreach_"))


class Rules:
    """The rules of one mode.

    Args:
        mode: whose tensors they are for.

    Attributes:
        checking: whether every answer by rule is compared with the mode's own, for tests.
        hits: answers by rule.
        misses: answers by the mode that might have been.
    """

    checking = False

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.hits = self.misses = 0
        self._operators: dict[int, Operator] = {}

    def answer(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], ask: Callable[[], Any]) -> Any:
        """An operator's result: by rule, else as ``ask`` says."""
        operator = self._operators.get(id(func))
        if operator is None:
            operator = self._operators[id(func)] = Operator(func)
        if not operator.ruled or self.mode.in_kernel_invocation or torch.is_inference_mode_enabled():
            return ask()
        tensors: list[Any] = []
        key = self._key(operator, args, kwargs, tensors)
        if key is None:
            return ask()
        rule = operator.rules.get(key)
        if rule is not None:
            self.hits += 1
            result = rule(tensors)
            if self.checking:
                assert alike(result, ask(), tensors), f"{func} by rule is not what it is by itself"
            return result
        self.misses += 1
        result = ask()
        if key not in operator.rules:  # else it was tried, and cannot be ruled
            kept = self._key(operator, args, kwargs, []) == key  # no argument has changed its shape
            operator.rules[key] = rule_of(result, tensors, self.mode) if kept else None
        return result

    def _key(
        self, operator: Operator, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[Any]
    ) -> tuple[Any, ...] | None:
        """A call, taken down; None where it cannot be. A result's device is a tensor's: makers of tensors have none."""
        key: list[Any] = [torch.get_default_dtype()]
        if not take_down(args, key, tensors, self.mode, operator.pointwise) or not tensors:
            return None
        if kwargs:
            key += kwargs
            if not take_down(kwargs.values(), key, tensors, self.mode, operator.pointwise):
                return None
        if operator.func is _INDEX and any(index.dtype in (torch.bool, torch.uint8) for index in tensors[1:]):
            return None
        return tuple(key)


def look(tensor: FakeTensor) -> tuple[Any, ...]:
    """All of a strided fake tensor that a result can depend on, its values apart."""
    return (
        tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset(), _keys(tensor).raw_repr(), tensor._fake_device,
        tensor.requires_grad, tensor.untyped_storage().nbytes(),
    )  # fmt: skip


def take_down(values: Any, key: list[Any], tensors: list[Any], mode: FakeTensorMode, pointwise: bool) -> bool:
    """Puts arguments into a key, and their tensors into a list; False where one cannot be."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None or value.fake_mode is not mode or value.layout is not torch.strided:
                return False
            tensors.append(value)
            key.append(look(value))
        elif kind is float and pointwise:
            key.append(float)
        elif kind in _PLAIN:
            key += (kind, value)
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            if not take_down(value, key, tensors, mode, pointwise):
                return False
        else:
            return False
    return True


def rule_of(result: Any, tensors: Sequence[Any], mode: FakeTensorMode) -> Rule | None:
    """How to make a result again; None where that cannot be told, or does not come out the same."""
    kind = type(result)
    if kind is list or kind is tuple:
        storages = [one.untyped_storage()._cdata for one in result if isinstance(one, FakeTensor)]
        given = {one.untyped_storage()._cdata for one in tensors}
        fresh = [one for one in storages if one not in given]
        parts = [_part_of(one, tensors, mode) for one in result]
        if len(fresh) != len(set(fresh)) or None in parts:
            return None
        rule: Rule | None = lambda tensors: kind([part(tensors) for part in parts])  # type: ignore[misc]  # noqa: E731
    else:
        rule = _part_of(result, tensors, mode)
    return rule if rule is not None and alike(rule(tensors), result, tensors) else None


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
    storage = result.untyped_storage()._cdata
    places = [index for index, one in enumerate(tensors) if one.untyped_storage()._cdata == storage]
    return None if len(places) > 1 else _maker(result, places[0] if places else None, mode)


def _maker(like: FakeTensor, place: int | None, mode: FakeTensorMode) -> Rule:
    """Makes a tensor like one: on memory of its own, or on that of the argument in a place."""
    shape, stride, dtype, offset = like.shape, like.stride(), like.dtype, like.storage_offset()
    device, state = like._fake_device, dict(like.__dict__)
    told = {"dispatch_device": device.type != "cuda", "device_for_backend_keys": device}  # as bridge._subclass
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
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(a, b, tensors) for a, b in zip(one, other, strict=True))
    if not isinstance(one, FakeTensor):
        return bool(one == other)
    if one is other or any(each is one or each is other for each in tensors):
        return one is other
    shared = [[each.untyped_storage()._cdata == result.untyped_storage()._cdata for each in tensors] for result in (one, other)]
    return (
        look(one) == look(other) and one.__dict__ == other.__dict__ and shared[0] == shared[1] and one.device == other.device
        and one.is_leaf == other.is_leaf and one._is_view() == other._is_view()
    )  # fmt: skip
