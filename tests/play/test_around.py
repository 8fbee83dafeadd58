"""What the machine tells an engine of parallelism: when it comes to a module and leaves it, forward, backward and again."""

from __future__ import annotations

from typing import Any

import pytest

from memcalc.engines.analytic.step import family_of, play_step
from memcalc.job import read_job
from memcalc.kernels.behaviour import Behaviour
from memcalc.plan import make_plan
from memcalc.play.around import Hooks
from memcalc.prepared import prepared
from memcalc.readers.source import read_model
from memcalc.tape.events import Alloc, Free
from memcalc.tape.unroll import unroll
from tests.play.test_step import job


class Told(Hooks):
    """Writes down what it is told of decoder layers and of the whole, and gathers for each as an engine would."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.gathered: Any = None
        self.ahead: dict[str, Any] = {}

    def known(self, machine, path, layer):
        """The layers of the stack, and the root."""
        parts = path.split(".")
        return path or "root" if path == "" or parts[-2:-1] == ["layers"] else None

    def begin(self, machine, *, first, last):
        self.said.append(f"begin {first} {last}")

    def before_forward(self, machine, call):
        self.said.append(f"{'again' if call.again else 'to'} {call.known}")
        if call.known != "root" and not call.again:
            self.hold(machine, f"for {call.known}")

    def after_forward(self, machine, call):
        self.said.append(f"from {call.known}")

    def before_backward(self, machine, call):
        self.said.append(f"back to {call.known}")
        if call.known != "root":
            self.hold(machine, f"back for {call.known}")

    def after_backward(self, machine, call):
        self.said.append(f"back from {call.known}")

    def end_of_backward(self, machine):
        self.said.append("end")
        self.ahead.clear()

    def carried(self):
        return {key: storage.life for key, storage in self.ahead.items()}

    def hold(self, machine, name):
        """A buffer that the next module's takes the place of."""
        self.ahead["gather"] = machine.held_by_engine(1000, "communication", name)


def told(hooks: Told, asked: dict[str, Any], *, unrolled: bool = False) -> Any:
    """A job played under these hooks."""
    read = read_job(asked)
    model = prepared(read_model(read.model), read)
    return play_step(read, make_plan(read), model, family_of(model), Behaviour(), unrolled=unrolled, hooks=lambda: hooks)


def layer(name: str) -> list[str]:
    """A layer's forward."""
    return [f"to model.layers.{name}", f"from model.layers.{name}"]


def back(name: str, *, again: bool = False) -> list[str]:
    """A layer's backward."""
    between = [f"again model.layers.{name}"] if again else []
    return [f"back to model.layers.{name}", *between, f"back from model.layers.{name}"]


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_an_engine_is_told_of_modules_in_the_order_of_pytorchs_hooks(checkpointing):
    """Forward first to last, backward last to first, a checkpoint's second forward between a layer's backward's two ends."""
    hooks = Told()
    told(hooks, job(2, activation_checkpointing=checkpointing))
    again = checkpointing == "full"
    assert hooks.said == [
        "begin True True", "to root", *layer("0"), *layer("1"), "from root",
        "back to root", *back("1", again=again), *back("0", again=again), "end",
    ]  # fmt: skip


def test_every_micro_batch_is_told_of():
    """Of four micro-batches the first, one that stands for those between, and the last, which an engine may treat apart."""
    hooks = Told()
    told(hooks, job(1, gradient_accumulation_steps=4))
    assert [line for line in hooks.said if line.startswith("begin")] == [
        "begin True False",
        "begin False False",
        "begin False True",
    ]


@pytest.mark.parametrize("layers", [4, 7])
def test_what_is_held_across_layers_is_counted_once_where_layers_are(layers):
    """A buffer handed from layer to layer: as many live and die in a stack played once as in one played layer by layer."""
    folded, whole = (told(Told(), job(layers), unrolled=unrolled) for unrolled in (False, True))
    assert heights(folded) == heights(whole)


def heights(played: Any) -> list[int]:
    """How many such buffers there are after each birth and death of one; a death before a birth in a row is no matter."""
    live, found = 0, []
    for event in unroll(played.events):
        if isinstance(event, Alloc | Free) and event.buffer.role == "communication":
            live += 1 if isinstance(event, Alloc) else -1
            found.append(live)
    assert live == 0
    return found
