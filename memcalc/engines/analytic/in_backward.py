"""An optimizer's step inside backward: each parameter is updated as its gradient comes, and the gradient goes.

Two ways are known. An instance of the optimizer for every parameter, stepped by a hook that runs once the gradient is stored
(pytorch ``Tensor.register_post_accumulate_grad_hook``; torchtune bd2a0fc7 torchtune/training/memory.py:
register_optim_in_bwd_hooks). And LOMO's hook on the arrival of a gradient, which updates the parameter before it, whose
gradient is stored by then, so that two gradients are alive for a moment (``Optimizer.on_arrival``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from memcalc.engines.analytic.static import state_holdings
from memcalc.engines.analytic.update import step_alone
from memcalc.kernels.reduction import Chip
from memcalc.models import Model
from memcalc.optimizers.base import Param
from memcalc.parallelism.base import handed
from memcalc.plan import Plan
from memcalc.play.adapting import counted
from memcalc.play.graph import Leaf
from memcalc.play.stretch import Told
from memcalc.play.values import Life
from memcalc.records import replace
from memcalc.tape.events import allocs

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


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
        births = [allocs(held.buffer, held.times) for _, held in state_holdings(self.plan, [param])]
        if births and self.plan.optimizer.born != "init":
            machine.tape.append((Told(births, first=True), None))
        _, events, gone = step_alone(self.plan, param, self.chip)
        place = next((index for index, event in enumerate(events) if event is gone), len(events))
        if before := events[:place]:
            machine.tape.append((Told(before), None))
        leaf.gradient = None
        if after := events[place + 1 :]:
            machine.tape.append((Told(after), None))
