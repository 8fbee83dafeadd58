"""An optimizer's step inside backward: each parameter is updated as its gradient comes, and the gradient goes.

Two ways are known. An instance of the optimizer for every parameter, stepped by a hook that runs once the gradient is stored
(pytorch ``Tensor.register_post_accumulate_grad_hook``; torchtune bd2a0fc7 torchtune/training/memory.py:
register_optim_in_bwd_hooks). And LOMO's hook on the arrival of a gradient, which updates the parameter before it, whose
gradient is stored by then, so that two gradients are alive for a moment (``Optimizer.on_arrival``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from memcalc.kernels.reduction import Chip
from memcalc.models import Model
from memcalc.optimizers.base import Param
from memcalc.optimizers.player import Player
from memcalc.optimizers.step import sections
from memcalc.parallelism.base import handed
from memcalc.plan import Plan
from memcalc.play.adapting import counted
from memcalc.play.graph import Leaf
from memcalc.play.stretch import Told
from memcalc.play.values import Life
from memcalc.tape.events import Alloc, Buffer, Event, Free, Role, allocs

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

GRADIENT = "gradient"
"""The name under which a script finds the gradient it is given, so that it may let go of it early."""


class InBackward:
    """What the hooks of every parameter do while backward is played.

    Attributes:
        last: the gradient that waits for the next one's arrival; None where none does.
    """

    def __init__(self, plan: Plan, model: Model, chip: Chip) -> None:
        self.plan, self.chip = plan, chip
        setting = plan.setting(model)
        self.known: Mapping[str, Param] = {counted(each.name): handed(setting, each) for each in setting.trainable}
        self.waiting: Leaf | None = None
        self.on_arrival = plan.optimizer.on_arrival

    @property
    def last(self) -> Life | None:
        """The memory of the gradient that waits."""
        return None if self.waiting is None or self.waiting.gradient is None else self.waiting.gradient.life

    def arrives(self, machine: Machine) -> None:
        """A gradient has come to a parameter, and is not stored yet."""
        if self.on_arrival:
            self.ends(machine)

    def stored(self, machine: Machine, leaf: Leaf) -> None:
        """It is stored."""
        if self.on_arrival:
            self.waiting = leaf
        else:
            self._step(machine, leaf)

    def ends(self, machine: Machine) -> None:
        """Backward is through, or the next gradient has come: what waits is updated."""
        leaf, self.waiting = self.waiting, None
        if leaf is not None:
            self._step(machine, leaf)

    def _step(self, machine: Machine, leaf: Leaf) -> None:
        """One parameter's own step, on the tape; a script may let go of the gradient before its end."""
        known = self.known[counted(leaf.name)]
        param = replace(known, shape=leaf.shape, dtype=leaf.dtype, grad_dtype=leaf.dtype, name=counted(leaf.name), count=1)
        births = births_of(self.plan, param)
        if births:
            machine.tape.append((Told(births, first=True), None))
        events, gone = self._events(param)
        place = next((index for index, event in enumerate(events) if event is gone), len(events))
        if before := events[:place]:
            machine.tape.append((Told(before), None))
        leaf.gradient = None
        if after := events[place + 1 :]:
            machine.tape.append((Told(after), None))

    def _events(self, param: Param) -> tuple[list[Event], Event]:
        """What the step makes and lets go, and the one among them that is the gradient's end."""
        entry, options, form = self.plan.optimizer, self.plan.options, self.plan.implementation
        player, nodes = Player(self.chip), ((1, param),)
        buffer = Buffer(f"{param.name}.grad", 0, "gradient")
        gone = Free(buffer)
        player.left[GRADIENT] = (Alloc(buffer), gone)
        events = player.run(sections(entry, [param], options, form), nodes)
        return [*events, *player.end()], gone


def births_of(plan: Plan, param: Param) -> list[Event]:
    """States that an instance for this parameter alone makes at its first step; nothing where its constructor made them."""
    entry, options = plan.optimizer, plan.options
    if entry.born == "init":
        return []
    shared = entry.shared([param], options) if entry.shared is not None else ()
    born: list[Event] = []
    for state in (*entry.states(param, options), *shared):
        role: Role = "master_parameter" if state.part == "master" else "optimizer_state"
        born.append(allocs(Buffer(f"{param.name} {state.name}", state.nbytes, role, state.place), state.count))
    return born
