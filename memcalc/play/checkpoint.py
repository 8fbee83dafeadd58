"""Activation checkpointing: what a stretch of forward saves is dropped, and made again when backward asks for it.

As ``torch.utils.checkpoint`` does it without reentrance (pytorch 2.13 torch/utils/checkpoint.py: _checkpoint_without_reentrant_
generator, _checkpoint_hook, _recomputation_hook): the whole stretch runs again at the first tensor asked for, up to the last
tensor that is missing; each recomputed tensor goes when the node that saved it has run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from memcalc.play.around import Hooks, called
from memcalc.play.values import Shape, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

KEPT = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm")
"""Operators whose results ``selective`` keeps, besides every ``_scaled_dot_product`` kernel's (runtime/checkpointing.py)."""

Keeps = Callable[[str], bool]
"""Whether the results of an operator are kept; asked once for every call, in the order of the calls."""


def every_product(operator: str) -> bool:
    """The policy of ``selective``: products and attention.

    >>> every_product("mm"), every_product("_scaled_dot_product_flash_attention"), every_product("silu")
    (True, True, False)
    """
    return operator in KEPT or "scaled_dot_product" in operator


class Way(NamedTuple):
    """How a stretch is checkpointed.

    Attributes:
        policy: makes what says of each operator whether it is kept, for forward and anew for the recomputation
            (create_selective_checkpoint_contexts); None where nothing is.
        early_stop: whether recomputing ends with the last tensor that is missing (``early_stop``, torch's default).
    """

    policy: Callable[[], Keeps] | None = None
    early_stop: bool = True


WAYS: dict[str, Way] = {"full": Way(), "selective": Way(lambda: every_product)}
"""By ``activation_checkpointing``."""


class _StopError(Exception):
    """Everything that was missing is there (checkpoint.py:_StopRecomputationError)."""


class _Holder:
    """What a node keeps in place of a tensor."""

    __slots__ = ("__weakref__", "frame", "place")

    def __init__(self, frame: Frame, place: int) -> None:
        self.frame, self.place = frame, place

    def unpack(self, machine: Machine) -> Value:
        """The tensor, recomputed."""
        return self.frame.give(machine, self.place)


class Frame:
    """One checkpointed stretch.

    Attributes:
        run: the stretch again, on what it was given.
        state: path and autocast of the machine at its start.
        way: what is kept of it, and how far it is recomputed.
        found: whether the last operator asked about was not run again, its results being there.
    """

    def __init__(self, machine: Machine, run: Callable[[], Any], way: Way) -> None:
        self.run = run
        self.state = (machine.path, machine.autocast)
        self.way = way
        self.keeps = None if way.policy is None else way.policy()
        self.keeping = self.found = False
        self.count = 0
        self.again: int | None = None
        self.made: dict[int, Value] = {}
        self.holders: list[ref[_Holder]] = []
        self.cached: list[Value] = []
        self.at = 0

    def pack(self, value: Value) -> Any:
        """A tensor is saved: forgotten at first, kept when it is made again."""
        if self.again is None:
            holder = _Holder(self, self.count)
            self.holders.append(ref(holder))
            self.count += 1
            return holder
        if self.holders[self.again]() is not None:  # its node is still part of the graph (_recomputation_hook: weak_holders)
            self.made[self.again] = value.detached()
            value.storage.life.saved = True
        self.again += 1
        if self.again == self.count and self.way.early_stop:
            raise _StopError
        return None

    def foresee(self, values: Any) -> None:
        """Operands that an operator saves before it runs: where they are the last that are missing, it does not run."""
        if self.again is not None and self.way.early_stop and self.again + len(values) >= self.count:
            for value in values:
                self.pack(value)

    def kept(self, machine: Machine, shape: Shape, dtype: str, operator: str, *, beside: bool = False) -> Value:
        """The result of an operator that a policy may keep; ``beside``: one more of the same call's.

        All results of a call are kept (torch/utils/checkpoint.py:_CachingTorchDispatchMode).
        """
        if self.keeps is None:
            return machine.new(shape, dtype, operator)
        if not beside:
            self.keeping = self.keeps(operator)
            self.found = self.keeping and self.again is not None
        if not self.keeping:
            return machine.new(shape, dtype, operator)
        if self.again is None:
            value = machine.new(shape, dtype, operator)
            value.storage.life.saved = True
            self.cached.append(value.detached())
            return value
        held = self.cached[self.at]
        self.cached[self.at] = None  # type: ignore[call-overload]
        self.at += 1
        return Value(held.storage, shape, dtype)

    def give(self, machine: Machine, place: int) -> Value:
        """A recomputed tensor, which is the asker's from now on."""
        if self.again is None:
            self._recompute(machine)
        return self.made.pop(place)

    def _recompute(self, machine: Machine) -> None:
        before = machine.path, machine.autocast, machine.recording, machine.frame, machine.again
        casts, machine.casts = machine.casts, {}
        machine.path, machine.autocast = self.state
        machine.recording, machine.frame, self.again = True, self, 0
        machine.again = True
        self.keeps = None if self.way.policy is None else self.way.policy()
        try:
            self.run()
        except _StopError as stop:
            stop.__traceback__ = None
        finally:
            machine.path, machine.autocast, machine.recording, machine.frame, machine.again = before
            machine.casts = casts


def checkpointed(machine: Machine, function: Callable[..., Any], *args: Any) -> Any:
    """A stretch of forward whose activations are dropped, if the job asks for it; ``args`` are kept."""
    if (hooks := machine.policy.hooks) is not None:  # they stand on the module, which the checkpoint is around
        function = partial(_hooked, machine, hooks, function)  # (transformers modeling_layers.py)
    way = WAYS.get(machine.policy.checkpointing)
    if machine.policy.every:  # pytorch/torchtitan torchtitan/distributed/activation_checkpoint.py:_apply_layer_sac
        machine.layers += 1
        way = None if machine.layers % machine.policy.every else WAYS["full"]
    return checkpointed_in(way, machine, function, *args)


def checkpointed_in(way: Way | None, machine: Machine, function: Callable[..., Any], *args: Any) -> Any:
    """The same in a way of one's own; None keeps everything."""
    if way is None or not machine.recording:
        return function(*args)
    for value in args:
        if isinstance(value, Value):
            value.storage.life.saved = True
    frame = Frame(machine, lambda: function(*args), way)
    outer, machine.frame = machine.frame, frame
    try:
        return function(*args)
    finally:
        machine.frame = outer


def _hooked(machine: Machine, hooks: Hooks, function: Callable[..., Any], *args: Any) -> Any:
    return called(machine, hooks, function, args, {})
