"""A played step as apex's amp runs it at O2: FP32 gradients for the masters, made of the parameters' once backward is through.

source: apex at cb65b8ed^ apex/amp/handle.py:scale_loss and apex/amp/_process_optimizer.py. Before every backward
(prepare_backward_with_master_weights) the FP16 gradients are dropped, and those of parameters that stay in FP32 are put aside.
After it (post_backward_with_master_weights) each master that has no gradient yet is given an empty one of its own size, all
before the first is filled; the kernel unscales from the one into the other, or adds to what is there, with nothing in between;
then what was put aside goes. The step drops the masters' gradients at its end (new_step); the FP16 ones wait for the model's
``zero_grad``. Where that only fills them with zeros (new_zero_grad), they live until the next backward is about to begin.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.engines.analytic.moments import END, is_moment, mark, written
from memcalc.engines.analytic.static import keeps_gradients
from memcalc.engines.analytic.tapes import Around, Played
from memcalc.models import Model
from memcalc.parallelism.base import Layout, Setting
from memcalc.parallelism.plain import main_gradients
from memcalc.plan import Plan
from memcalc.play.adapting import counted
from memcalc.play.around import Hooks
from memcalc.play.machine import Machine
from memcalc.play.values import Storage
from memcalc.records import replace
from memcalc.tape.events import Event, Mark, allocs, frees

GRAD = ".grad"


class MasterGradients(Hooks):
    """Drops what a former micro-batch has left as backward begins, and marks that it has returned.

    Args:
        setting: which parameters have a master.
    """

    def __init__(self, setting: Setting) -> None:
        self.single = _single(setting)
        self.aside: list[Storage] = []

    def begin_backward(self, machine: Machine) -> None:
        """Every ``.grad`` is None from here on; those that are in FP32 as they are stay in a list."""
        for leaf in machine.leaves.values():
            if leaf.gradient is not None and counted(leaf.name) in self.single:
                self.aside.append(leaf.gradient)
            leaf.gradient = None

    def left_backward(self, machine: Machine) -> None:
        """The moment, after which what was put aside has been added to the new ones."""
        mark(machine, END, END)
        self.aside.clear()


def under_apex(plan: Plan, model: Model, layout: Layout, around: Around, played: Played) -> tuple[Around, Played]:
    """What stands around forward and backward, and both with the masters' gradients at the end of the first backward."""
    setting = plan.setting(model)
    main = [(held.buffer, held.times) for held in main_gradients(setting, setting.reached)]
    kept = played.gradients if keeps_gradients(plan) else ()
    single = _single(setting)
    aside = [pair for pair in kept if counted(pair[0].site.removesuffix(GRAD)) in single]
    dropped = [pair for pair in kept if pair not in aside]
    waiting = {"backward", END}

    def told(event: Event) -> Sequence[Event]:
        if is_moment(event, END):
            first = END in waiting
            waiting.discard(END)
            return [*(allocs(*one) for one in main), *(frees(*one) for one in aside)] if first else ()
        if isinstance(event, Mark) and event.phase in waiting:
            waiting.discard(event.phase)
            return [event, *(frees(*one) for one in dropped)]
        return (event,)

    events = tuple(written(played.events, frozenset({END}), told))
    before = (*played.before, *(allocs(*one) for one in kept))
    gradients = () if kept else played.gradients
    update = [*around.update, *(frees(*one) for one in main)]
    return (
        replace(around, resident=layout.resident, update=update),
        replace(played, before=before, events=events, gradients=gradients),
    )


def _single(setting: Setting) -> frozenset[str]:
    """Names of the parameters that have no master, places in lists as ``*``."""
    return frozenset(counted(tensor.name) for tensor in setting.trainable if not setting.master(tensor))
