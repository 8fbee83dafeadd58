"""What an operator's result looks like, remembered: the same call on the same shapes is answered without running it again.

PyTorch's fake tensors remember too (pytorch torch/_subclasses/fake_tensor.py:FakeTensorMode._cached_dispatch_impl), but asking
takes them some 150 µs, and results that are lists are not remembered. Here the first call is theirs, whatever it takes. What it
answered is made a second time in the cheapest way, and that way is kept only where both are alike in all that a tensor shows.

A rule holds for one operator, one default dtype, the same look of every tensor (:func:`memcalc.engines.trace.likeness.look`)
and the same other arguments. What may depend on more has no rule: operators that read values or change their arguments' shapes,
those of other libraries, and tensors with a known value (``FakeTensor.constant``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from memcalc.engines.trace.likeness import Rule, alike, apart, look, maker, rule_of, several

Ask = Callable[[Any, Sequence[type], Sequence[Any], Mapping[str, Any]], Any]
"""(operator, types, arguments, keyword arguments) -> the mode's own answer."""
_INDEX = torch.ops.aten.index.Tensor
_UNSEEN = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view})
_PLAIN = frozenset({int, bool, float, complex, type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format})
"""Kinds of arguments that say all they are by being equal."""


class Operator:
    """One operator and its rules.

    Attributes:
        func: the operator; held, as its id is what it is found by.
        rules: by what :func:`take_down` made of the arguments.
        ruled: whether it may have rules.
        foreach: whether it does one thing to each place of its lists.
        pointwise: whether a float among its arguments decides nothing by its value, only by being one.
    """

    __slots__ = ("foreach", "func", "pointwise", "ruled", "rules")

    def __init__(self, func: Any) -> None:
        self.func = func
        self.rules: dict[tuple[Any, ...], Rule | None] = {}
        self.ruled = (
            isinstance(func, torch._ops.OpOverload)
            and func.namespace in ("aten", "prims")
            and func not in FakeTensorMode.lift_fns
            and (func is _INDEX or _UNSEEN.isdisjoint(func.tags))
        )
        self.foreach = self.ruled and func._opname.startswith("_foreach_")
        self.pointwise = self.foreach or (self.ruled and torch.Tag.pointwise in func.tags)


class Rules:
    """The rules of one mode.

    Args:
        mode: whose tensors they are for.
        ask: its own answer.

    Attributes:
        checking: whether every answer by rule is compared with the mode's own, for tests.
        hits: answers by rule.
        misses: answers by the mode that might have been.
        by_places: rules for lists that were learnt from one place of each kind.
    """

    checking = False

    def __init__(self, mode: FakeTensorMode, ask: Ask) -> None:
        self.mode, self.ask = mode, ask
        self.hits = self.misses = self.by_places = 0
        self._operators: dict[int, Operator] = {}

    def answer(self, func: Any, types: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operator's result: by rule, else as the mode has it."""
        operator = self._operators.get(id(func))
        if operator is None:
            operator = self._operators[id(func)] = Operator(func)
        if not operator.ruled or self.mode.in_kernel_invocation or torch.is_inference_mode_enabled():
            return self.ask(func, types, args, kwargs)
        tensors: list[Any] = []
        key = self._key(operator, args, kwargs, tensors)
        if key is None:
            return self.ask(func, types, args, kwargs)
        rule = operator.rules.get(key)
        if rule is None and operator.foreach and not self.checking:
            rule = operator.rules[key] = self._by_places(operator, types, args, kwargs)
        if rule is None:
            return self._learn(operator, key, tensors, types, args, kwargs)
        self.hits += 1
        result = rule(tensors)
        if self.checking:
            assert alike(result, self.ask(func, types, args, kwargs), tensors), f"{func} by rule is not what it is by itself"
        return result

    def forget(self) -> None:
        """All of them."""
        self._operators.clear()

    def _learn(
        self, operator: Operator, key: Any, tensors: list[Any], types: Sequence[type], args: Sequence[Any], kwargs: Any
    ) -> Any:
        """The mode's own answer, and a rule from it; no rule where a first try gave none."""
        self.misses += 1
        result = self.ask(operator.func, types, args, kwargs)
        if key not in operator.rules or operator.foreach:
            kept = self._key(operator, args, kwargs, []) == key  # no argument has changed its shape
            operator.rules[key] = rule_of(result, tensors, self.mode) if kept else None
        return result

    def _key(
        self, operator: Operator, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[Any]
    ) -> tuple[Any, ...] | None:
        """A call, taken down; None where it cannot be, as where neither a tensor nor an argument tells the device."""
        key: list[Any] = [torch.get_default_dtype()]
        if not take_down(args, key, tensors, self.mode, operator.pointwise):
            return None
        if not tensors and kwargs.get("device") is None:
            return None
        if kwargs:
            key += kwargs
            if not take_down(kwargs.values(), key, tensors, self.mode, operator.pointwise):
                return None
        if operator.func is _INDEX and any(index.dtype in (torch.bool, torch.uint8) for index in tensors[1:]):
            return None
        return tuple(key)

    def _by_places(
        self, operator: Operator, types: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Rule | None:
        """The rule of a foreach operator, from a call on one place of each kind; None where that says nothing."""
        count = len(args[0]) if args and type(args[0]) is list else 0
        listed = [type(arg) is list and len(arg) == count for arg in args]
        if not all(yes or type(arg) in _PLAIN for arg, yes in zip(args, listed, strict=True)):
            return None
        numbers: dict[Any, int] = {}
        kinds: list[int] = []
        for place in range(count):
            kind: list[Any] = []
            take_down([arg[place] for arg, yes in zip(args, listed, strict=True) if yes], kind, [], self.mode, True)
            kinds.append(numbers.setdefault(tuple(kind), len(numbers)))
        firsts = [kinds.index(number) for number in range(len(numbers))]
        few = [[arg[place] for place in firsts] if yes else arg for arg, yes in zip(args, listed, strict=True)]
        made = self.ask(operator.func, types, few, kwargs)
        if made is None:
            return lambda tensors: None
        tensors = [one for arg, yes in zip(few, listed, strict=True) if yes for one in arg if isinstance(one, FakeTensor)]
        if type(made) is not list or rule_of(made, tensors, self.mode) is None or not apart(made, tensors):
            return None
        self.by_places += 1
        parts = [maker(one, None, self.mode) for one in made]
        return several(list, [parts[kind] for kind in kinds])


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
