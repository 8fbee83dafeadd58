"""Activation checkpointing: what a stretch of forward saves is dropped, and made again when backward asks for it.

As ``torch.utils.checkpoint`` does it without reentrance (pytorch 2.13 torch/utils/checkpoint.py: _checkpoint_without_reentrant_
generator, _checkpoint_hook, _recomputation_hook): the whole stretch runs again at the first tensor asked for, up to the last
tensor that is missing; each recomputed tensor goes when the node that saved it has run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from memcalc.play.values import Shape, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

KEPT = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm")
"""Operators whose results ``selective`` keeps, besides every ``_scaled_dot_product`` kernel's (runtime/checkpointing.py)."""


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
        selective: whether products and attention are kept.
    """

    def __init__(self, machine: Machine, run: Callable[[], Any], *, selective: bool) -> None:
        self.run = run
        self.state = (machine.path, machine.autocast)
        self.selective = selective
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
        if self.again == self.count:
            raise _StopError
        return None

    def foresee(self, values: Any) -> None:
        """Operands that an operator saves before it runs: where they are the last that are missing, it does not run."""
        if self.again is not None and self.again + len(values) >= self.count:
            for value in values:
                self.pack(value)

    def kept(self, machine: Machine, shape: Shape, dtype: str, operator: str) -> Value:
        """The result of an operator that ``selective`` may keep."""
        if not self.selective or not (operator in KEPT or "scaled_dot_product" in operator):
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
        try:
            self.run()
        except _StopError as stop:
            stop.__traceback__ = None
        finally:
            machine.path, machine.autocast, machine.recording, machine.frame, machine.again = before
            machine.casts = casts


def checkpointed(machine: Machine, function: Callable[..., Any], *args: Any) -> Any:
    """A stretch of forward whose activations are dropped, if the job asks for it; ``args`` are kept."""
    mode = machine.policy.checkpointing
    if machine.policy.every:  # pytorch/torchtitan torchtitan/distributed/activation_checkpoint.py:_apply_layer_sac
        machine.layers += 1
        mode = "none" if machine.layers % machine.policy.every else "full"
    if mode == "none" or not machine.recording:
        return function(*args)
    for value in args:
        if isinstance(value, Value):
            value.storage.life.saved = True
    frame = Frame(machine, lambda: function(*args), selective=mode == "selective")
    outer, machine.frame = machine.frame, frame
    try:
        return function(*args)
    finally:
        machine.frame = outer
