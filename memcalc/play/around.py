"""What an engine of parallelism does around modules: gathers before, lets go after, reduces as gradients come.

An engine subclasses ``Hooks`` and hands itself to the machine (``Policy.hooks``); the machine tells it of every module that is
called by name, in the order PyTorch's own hooks fire. What it makes and lets go of are storages of the machine's, so that their
births and deaths stand on the tape where they happen.

Layers that are alike are played once and counted. What an engine holds from one module to the next (a gather under way) is made
in one turn and let go of in the next: it says so in ``carried``, and the tape then has one, not one for each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memcalc.play.values import Life, Storage, Value
from memcalc.records import dataclass, names_of

if TYPE_CHECKING:
    from memcalc.play.graph import Gradients, Leaf, Node
    from memcalc.play.machine import Machine


@dataclass
class Call:
    """One call of a module, from its forward to its backward.

    Attributes:
        path: dotted path of the module; layers of a stack that is played once are ``first``, ``*`` and ``last``.
        layer: the description of it, which yields its tensors; None for a function that is called under a name.
        again: whether it is forward run again in backward (activation checkpointing).
        begun: whether its backward has begun.
        known: what the engine knows of it.
    """

    path: str
    layer: Any
    again: bool
    begun: bool = False
    known: Any = None


class Hooks:
    """An engine that does nothing; others override what they do.

    Attributes:
        one_by_one: whether layers alike have to be played one after the other, none of them for many.
    """

    one_by_one = False

    def known(self, machine: Machine, path: str, layer: Any) -> Any:
        """What the engine knows of the module at a path; None for one that nothing happens around."""

    def begin(self, machine: Machine, *, first: bool, last: bool) -> None:
        """A micro-batch begins: the first of its step, the last, or both."""

    def inputs(self, machine: Machine, values: Mapping[str, Value]) -> dict[str, Value]:
        """What the model is given for what a batch holds."""
        return dict(values)

    def before_forward(self, machine: Machine, call: Call) -> None:
        """Forward comes to a module, in backward too where it is run again (``call.again``)."""

    def after_forward(self, machine: Machine, call: Call) -> None:
        """Forward leaves it; nothing is told of one that is run again no further than the last tensor asked for."""

    def begin_backward(self, machine: Machine) -> None:
        """Forward is through, and the loss is about to be scaled and run backward from."""

    def before_backward(self, machine: Machine, call: Call) -> None:
        """The first gradient of what it gave is there."""

    def after_backward(self, machine: Machine, call: Call) -> None:
        """All gradients of what it was given are there; never told of a module whose inputs have none."""

    def on_gradient(self, machine: Machine, leaf: Leaf) -> None:
        """A gradient was stored in, or added to, a parameter's."""

    def end_of_backward(self, machine: Machine) -> None:
        """Every gradient is there, and backward has not returned yet (Variable._execution_engine.queue_callback)."""

    def left_backward(self, machine: Machine) -> None:
        """Backward has returned, and the loss is still there."""

    def carried(self) -> Mapping[str, Life]:
        """What is held from one module to the next and let go of there, by what it is held as."""
        return {}

    def kept(self) -> Iterable[Storage]:
        """What is there when backward is through and goes at ``zero_grad``, beside the parameters' own gradients."""
        return ()


def called(machine: Machine, hooks: Hooks, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A module's forward with what an engine does around it, at the machine's path."""
    path = machine.path
    layer = getattr(function, "__self__", None)
    if not hasattr(layer, "tensors"):
        layer = next((arg for arg in args if hasattr(arg, "tensors")), None)
    known = hooks.known(machine, path, layer)
    if known is None:
        return function(*args, **kwargs)
    call = Call(path, layer, machine.again, known=known)
    hooks.before_forward(machine, call)
    if not machine.recording or call.again:  # the graph of what is run again is never run backward
        out = function(*args, **kwargs)
        hooks.after_forward(machine, call)
        return out
    given = _Given(args, kwargs)
    del args, kwargs
    given.replaced(machine, call)
    try:
        out = function(*given.args, **given.kwargs)
    finally:
        given.restored()
    del given
    hooks.after_forward(machine, call)
    _watch(machine, call, out)
    return out


class _Given:
    """What a module is given, the values among it also in records that are handed to every layer."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.args, self.kwargs = list(args), dict(kwargs)
        self.fields: list[tuple[Any, str, Value, Value]] = []

    def replaced(self, machine: Machine, call: Call) -> None:
        """Values with a gradient go through one node, whose backward is the end of the module's."""
        places = list(self._values())
        if not places:
            return
        values = [value for _, _, value in places]
        inner = [value.detached() for value in values]
        edges = tuple([(value.node, value.index) for value in values])
        machine.attach(inner, values, edges, (), _leaves, call)
        for (holder, key, value), new in zip(places, inner, strict=True):
            if isinstance(holder, list | dict):
                holder[key] = new
            else:
                setattr(holder, key, new)
                self.fields.append((holder, key, value, new))

    def _values(self) -> Iterator[tuple[Any, Any, Value]]:
        places = [(self.args, place, arg) for place, arg in enumerate(self.args)]
        for holder, key, arg in [*places, *((self.kwargs, key, arg) for key, arg in self.kwargs.items())]:
            if isinstance(arg, Value):
                if arg.node is not None:
                    yield holder, key, arg
            elif not hasattr(arg, "tensors"):
                for name in names_of(arg):
                    value = getattr(arg, name)
                    if isinstance(value, Value) and value.node is not None:
                        yield arg, name, value

    def restored(self) -> None:
        """Records have what they had, unless the module put something else there."""
        for holder, key, value, new in self.fields:
            if getattr(holder, key) is new:
                setattr(holder, key, value)
        self.fields.clear()


def _watch(machine: Machine, call: Call, out: Any) -> None:
    """The first gradient of anything a module gave is the beginning of its backward."""
    if isinstance(out, Value):
        if out.node is not None:
            edges = ((out.node, out.index),)
            machine.attach([out], [out], edges, (), _enters, call)
    elif isinstance(out, list | tuple):
        for each in out:
            _watch(machine, call, each)


def _enters(machine: Machine, node: Node, saved: Any, grad: Any) -> Gradients:
    call: Call = node.meta
    hooks = machine.policy.hooks
    assert hooks is not None
    if not call.begun:
        call.begun = True
        hooks.before_backward(machine, call)
    return [grad]


def _leaves(machine: Machine, node: Node, saved: Any, grad: Any) -> Gradients:
    hooks = machine.policy.hooks
    assert hooks is not None
    hooks.after_backward(machine, node.meta)
    return [grad] if node.results == 1 else list(grad)


def carried_pairs(before: Mapping[str, Life], after: Mapping[str, Life]) -> tuple[tuple[Life, Life], ...]:
    """(what the first turn of a stretch is given, what each turn gives to the next) of what an engine holds throughout."""
    return tuple((life, after[key]) for key, life in before.items() if key in after and after[key] is not life)
