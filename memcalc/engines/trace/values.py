"""Values that follow from a router's choice, computed beside the fake tensors that have none.

The indices a router gives are assumed (``memcalc.engines.trace.routing``), and so is every number made of them and of plain
numbers alone: counts, masks, sorted orders, offsets. They are computed on the CPU as the step goes, by the very operators it
calls, and whatever asks for a value or makes a shape of one is answered: ``nonzero``, ``x[mask]``, ``tolist``, ``unique``,
``bincount``. What hangs on anything else has no value, and who asks for it is refused as ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from memcalc.engines.trace.known import Known, Memory, Router, followed, keep, known, ones_of
from memcalc.engines.trace.routing import choices, chosen_of
from memcalc.engines.trace.sites import Sites

aten = torch.ops.aten
Answer = Callable[[Any, Sequence[type], Sequence[Any], Mapping[str, Any]], Any]
MOST = 2**26
"""Elements of the largest tensor whose values are followed; masks of attention are larger, and decide nothing."""
_INDEX, _MASKED_SELECT, _NONZERO = aten.index.Tensor, aten.masked_select.default, aten.nonzero.default
_EMPTY, _TO_COPY = aten.empty_strided.default, aten._to_copy.default
_SHAPED = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})
_FILLED: dict[Any, int] = {  # operator: what it fills with, or the place of that among its arguments, negative
    aten.zeros.default: 0, aten.zeros_like.default: 0, aten.new_zeros.default: 0, aten.ones.default: 1,
    aten.ones_like.default: 1, aten.new_ones.default: 1, aten.full.default: -1, aten.full_like.default: -1,
    aten.new_full.default: -2,
}  # fmt: skip
_RANGES = frozenset({aten.arange.default, aten.arange.start, aten.arange.start_step})


class Values:
    """The values of one trace.

    Args:
        experts: numbers of experts to choose among that are a router's.
        imbalance: of the routing.
        sites: the module under way.
        answer: what an operator gives on fake tensors.

    Attributes:
        read: routers whose choice decided something.
    """

    def __init__(self, experts: set[int], imbalance: float, sites: Sites, answer: Answer) -> None:
        self.experts, self.imbalance, self.sites, self.answer = experts, imbalance, sites, answer
        self.read: set[Router] = set()
        self._chosen: dict[tuple[int, int, int], list[weakref.ref[torch.Tensor]]] = {}
        self._inside = False

    def run(self, func: Any, types: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operator: its result, with values where they follow."""
        if self._inside:  # what a fake tensor makes of an operator has been computed with the operator
            return self.answer(func, types, args, kwargs)
        self._inside = True
        try:
            return self._run(func, types, args, kwargs)
        finally:
            self._inside = False

    def _run(self, func: Any, types: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = (func, types, args, kwargs)
        tensors = list(_tensors((args, tuple(kwargs.values()))))
        told = [one for tensor in tensors if (one := known(tensor)) is not None]
        ours = func is _TO_COPY or any(map(followed, tensors))
        deciding = _deciding(func, args)
        if told and ours and len(told) == len(tensors) and torch.Tag.nondeterministic_seeded not in func.tags:
            return self._decide(call, told, deciding) if deciding else self._follow(call, told)
        if func in (_INDEX, _MASKED_SELECT) and deciding and all(map(followed, deciding)):
            return self._picked(call, deciding)
        result = self.answer(*call)
        if told:
            _forget(func, args, kwargs)
        elif (choice := chosen_of(func, args, kwargs, self.experts)) is not None:
            self._choose(result, args[0], *choice)
        else:
            self._fill(func, args, result)
        return result

    def _follow(self, call: Any, told: list[Known]) -> Any:
        """An operator on tensors whose values are all known."""
        func, _, args, kwargs = call
        result = self.answer(*call)
        fakes = list(_tensors(result))
        try:
            if any(fake.numel() > MOST for fake in fakes):
                raise MemoryError
            reals = list(_tensors(_really(func, args, kwargs)))
        except Exception:  # whatever it is: the result has no values, and what it may share memory with has none any more
            for one in told:
                one.memory.valid = False
            return result
        memories = {one.real.untyped_storage()._cdata: one.memory for one in told}
        routers = _routers(told)
        for fake, real in zip(fakes, reals, strict=True):
            if isinstance(fake, FakeTensor) and fake.shape == real.shape:
                keep(fake, Known(real, memories.get(real.untyped_storage()._cdata) or Memory(), routers))
        return result

    def _decide(self, call: Any, told: list[Known], deciding: list[torch.Tensor]) -> Any:
        """One that gives a value, or a shape that hangs on values, where all of them are known."""
        func, _, args, kwargs = call
        self._read(deciding)
        device = next(_tensors(args)).device

        def fake(real: torch.Tensor) -> Any:
            # Nonzero.cu:nonzero_cuda_out_impl gives its result transposed
            stride = (1, real.shape[0]) if func is _NONZERO else real.stride()
            made = self.answer(_EMPTY, (), (tuple(real.shape), stride), {"dtype": real.dtype, "device": device})
            with _disable_current_modes():
                laid = torch.empty_strided(real.shape, stride, dtype=real.dtype).copy_(real)
            keep(made, Known(laid, Memory(), _routers(told)))
            return made

        return _map(_really(func, args, kwargs), fake)

    def _picked(self, call: Any, masks: list[torch.Tensor]) -> Any:
        """Elements that masks pick, of a tensor that has no values."""
        func, types, args, kwargs = call
        self._read(masks)
        source = args[0]

        def empty(number: int, dtype: torch.dtype) -> Any:
            return self.answer(_EMPTY, (), ((number,), (1,)), {"dtype": dtype, "device": source.device})

        if func is _MASKED_SELECT:
            shape: torch.Size = torch.broadcast_shapes(masks[0].shape, source.shape)  # type: ignore[no-untyped-call]
            times = shape.numel() // max(1, masks[0].numel())
            return empty(_ones(masks[0]) * times, source.dtype)
        indices: list[Any] = []
        for index in args[1]:
            if any(index is mask for mask in masks):
                # IndexingUtils.h:expandTensors: a mask stands for the places where it is not zero, an index for each dimension
                indices += [empty(_ones(index), torch.int64) for _ in range(index.ndim)]
            else:
                indices.append(index)
        return self.answer(func, types, (source, indices), kwargs)

    def _read(self, tensors: list[torch.Tensor]) -> None:
        self.read |= _routers([one for tensor in tensors if (one := known(tensor)) is not None])

    def _choose(self, result: Any, source: torch.Tensor, chosen: int, dim: int) -> None:
        """A router's choice, ``[…, chosen, …]`` or without that dimension, and its weights."""
        experts, parts = source.shape[dim], list(_tensors(result))
        rest = [size for at, size in enumerate(source.shape) if at != dim]
        rows = source.numel() // experts
        router = Router(self.sites.path() or "the module", rows, chosen, experts, "choice")
        before = self._before(source, rows, experts) if chosen == 1 else 0
        with _disable_current_modes():
            picked = (choices(rows, chosen, experts, self.imbalance) + before) % experts
            picked = picked.reshape(*rest, chosen).movedim(-1, dim).reshape(parts[-1].shape)
            keep(parts[-1], Known(picked.contiguous(), Memory(), frozenset({router})))
            if len(parts) > 1:
                weights = torch.full(parts[0].shape, 1 / chosen, dtype=parts[0].dtype)
                keep(parts[0], Known(weights, Memory(), frozenset({router._replace(what="weights")})))

    def _before(self, source: torch.Tensor, rows: int, experts: int) -> int:
        """Choices of one expert that a forward made before: a second one, by other scores, is of another expert."""
        made = self._chosen.setdefault((self.sites.run(), rows, experts), [])
        known_as = [place for place, scores in enumerate(made) if scores() is source]
        if not known_as:
            made.append(weakref.ref(source))
        return known_as[0] if known_as else len(made) - 1

    def _fill(self, func: Any, args: Sequence[Any], result: Any) -> None:
        """Plain numbers: whole ones, and zeros; as large ones of no value cost nothing (calloc's pages are never touched)."""
        filled = _FILLED.get(func)
        if (filled is None and func not in _RANGES) or result.numel() > MOST:
            return
        value = args[-filled] if filled is not None and filled < 0 else filled
        if result.is_floating_point() and value != 0:
            return
        with _disable_current_modes():
            if value is None:
                real = torch.arange(*args, dtype=result.dtype)
            else:
                make = torch.zeros if value == 0 else torch.ones
                real = make(result.shape, dtype=result.dtype)
                real = real if value in (0, 1) else real.fill_(value)
            keep(result, Known(real, Memory(), frozenset()))


def _ones(mask: torch.Tensor) -> int:
    number = ones_of(mask)
    assert number is not None
    return number


def _routers(told: list[Known]) -> frozenset[Router]:
    return frozenset[Router]().union(*(one.routers for one in told))


def _deciding(func: Any, args: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors whose values decide a shape, or are asked for; none of most operators."""
    if func is _INDEX:  # its shape hangs on masks alone
        return [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
    if func is _MASKED_SELECT:
        return [args[1]]
    return [] if _SHAPED.isdisjoint(func.tags) else list(_tensors(args))


def _forget(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """What an operator writes to has no known values any more."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for tensor in _tensors(args[place] if place < len(args) else kwargs.get(argument.name)):
                if (found := known(tensor)) is not None:
                    found.memory.valid = False


def _really(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operator on values, on the CPU."""
    named = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}
    if any(argument.name == "device" for argument in func._schema.arguments):
        named["device"] = torch.device("cpu")
    with _disable_current_modes():
        return func(*_map(args, _real), **_map(named, _real))


def _real(tensor: torch.Tensor) -> torch.Tensor:
    found = known(tensor)
    assert found is not None
    return found.real


def _map(values: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same with every tensor changed."""
    if isinstance(values, torch.Tensor):
        return change(values)
    if isinstance(values, tuple | list):
        made = [_map(value, change) for value in values]
        return made if isinstance(values, list) else tuple(made)
    return {key: _map(value, change) for key, value in values.items()} if isinstance(values, dict) else values


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
