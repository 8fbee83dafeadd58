"""Autograd on values without data: nodes, what they save, and the engine that runs them backward.

The engine's order, its buffers of gradients and the moments at which it lets go of them are PyTorch's
(pytorch torch/csrc/autograd/engine.cpp: evaluate_function, call_function, validate_outputs; input_buffer.cpp: accumulate;
functions/accumulate_grad.h: accumulateGrad).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.values import Shape, Storage, Value, alike

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

Gradients = Sequence[Value | None]
Backward = Callable[["Machine", "Node", Any, Any], Gradients]
"""(machine, node, what it saved, the gradient of its result or the list of them) -> a gradient for each input."""


class Node:
    """One operator's backward.

    Attributes:
        backward: makes the gradients of its inputs.
        saved: what it kept: values, or what stands for them while they are to be recomputed.
        edges: for each input (the node its gradient goes to, which of that node's results it is); None for no gradient.
        inputs: for each input its shape and dtype, which its gradient is brought to.
        results: how many results it has.
        sequence: when it was made; the youngest that is ready runs first.
        meta: what backward needs to know besides.
        module: the module that made it.
    """

    __slots__ = ("backward", "edges", "inputs", "meta", "module", "packed", "results", "saved", "sequence")

    def __init__(
        self,
        backward: Backward,
        edges: tuple[tuple[Node, int] | None, ...],
        inputs: tuple[tuple[Shape, str], ...],
        saved: list[Any],
        sequence: int,
        module: str,
        meta: Any = None,
        results: int = 1,
    ) -> None:
        self.backward, self.edges, self.inputs, self.saved = backward, edges, inputs, saved
        self.sequence, self.module, self.meta, self.results = sequence, module, meta, results
        self.packed = False

    def release(self) -> None:
        """What it saved goes, in the order it was saved (Node::release_variables)."""
        saved = self.saved
        for place in range(len(saved)):
            saved[place] = None

    def needs(self, position: int) -> bool:
        """Whether the input at this position wants a gradient."""
        return position < len(self.edges) and self.edges[position] is not None


LEAF = 1 << 62
"""The sequence number of what stores a leaf's gradient: it runs as soon as it is ready (engine.h: UINT64_MAX)."""


class Leaf(Node):
    """Where a parameter's gradient ends: stolen where nobody else holds it, else copied or added in place.

    Attributes:
        name: the parameter's dotted name.
        shape: its dimensions.
        dtype: its dtype.
        gradient: what is there; None after ``zero_grad``.
    """

    __slots__ = ("dtype", "gradient", "name", "shape")

    def __init__(self, name: str, shape: Shape, dtype: str) -> None:
        super().__init__(_never, (), (), [], LEAF, name.rpartition(".")[0])
        self.name, self.shape, self.dtype = name, shape, dtype
        self.gradient: Storage | None = None


def _never(machine: Machine, node: Node, saved: Any, grad: Any) -> Gradients:
    raise AssertionError("a leaf has no backward")


class Engine:
    """One backward pass."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.waiting: dict[Node, list[Value | None]] = {}
        self.missing: dict[Node, int] = {}
        self.ready: list[tuple[int, int, Node]] = []
        self.made = 0

    def run(self, root: Value) -> None:
        """From a loss to every leaf that it depends on."""
        machine = self.machine
        assert root.node is not None
        self._count(root.node)
        first = machine.new(root.shape, root.dtype, "ones_like")
        self.waiting[root.node] = [first]  # and the caller's list of gradients holds it to the end (torch/autograd/__init__.py)
        self._push(root.node)
        before, machine.recording = machine.recording, False
        machine.in_backward = True
        path, cast = machine.path, machine.autocast
        machine.autocast = None
        while self.ready:
            node = heappop(self.ready)[2]
            grads = self.waiting.pop(node)
            machine.reached(node, grads, self.waiting)
            self._evaluate(node, grads)
        machine.reached(None, (), self.waiting)
        if machine.policy.hooks is not None:
            machine.policy.hooks.end_of_backward(machine)
        machine.recording, machine.path, machine.autocast = before, path, cast
        machine.in_backward = False

    def run_inner(self, root: Value, grad: Value) -> None:
        """A backward of its own inside a node's, from a value and its gradient (``torch.autograd.backward`` called there)."""
        node = root.node
        assert node is not None
        self._count(node)
        grads: list[Value | None] = [None] * node.results
        grads[root.index] = grad
        self.waiting[node] = grads
        self._push(node)
        del grads, node
        while self.ready:
            node = heappop(self.ready)[2]
            self._evaluate(node, self.waiting.pop(node))

    def _count(self, root: Node) -> None:
        """How many gradients each node waits for (engine.cpp:compute_dependencies)."""
        seen, open_ = {root}, [root]
        while open_:
            for edge in open_.pop().edges:
                if edge is None:
                    continue
                self.missing[edge[0]] = self.missing.get(edge[0], 0) + 1
                if edge[0] not in seen:
                    seen.add(edge[0])
                    open_.append(edge[0])

    def _push(self, node: Node) -> None:
        self.made += 1
        heappush(self.ready, (-node.sequence, self.made, node))

    def _evaluate(self, node: Node, grads: list[Value | None]) -> None:
        """One node; ``grads`` is emptied as soon as PyTorch lets go of it."""
        machine = self.machine
        machine.path = node.module
        if isinstance(node, Leaf):
            accumulate_leaf(machine, node, grads)
            return
        outputs = self._called(node, grads)
        grads.clear()
        node.release()
        for position, edge in enumerate(node.edges):
            value, outputs[position] = outputs[position], None
            if edge is None:
                continue
            self._deliver(edge, value)
            del value

    def _called(self, node: Node, grads: list[Value | None]) -> list[Value | None]:
        """Backward, and its results in the shape and dtype that is due; what it was given dies on return."""
        machine = self.machine
        saved = machine.unpacked(node.saved) if node.packed else node.saved
        given: Any = grads[0] if node.results == 1 else grads
        if node.results == 1 and given is None:
            return [None] * len(node.edges)
        outputs = list(node.backward(machine, node, saved, given))
        del saved, given  # what was recomputed dies with its node's call, what was kept when the node lets go of it
        for position, value in enumerate(outputs):
            if value is not None:
                shape, dtype = node.inputs[position]
                if value.dtype != dtype or not alike(value.shape, shape):
                    outputs[position] = machine.as_due(value, shape, dtype)
                del value
        return outputs

    def _deliver(self, edge: tuple[Node, int], value: Value | None) -> None:
        target, index = edge
        buffer = self.waiting.get(target)
        if buffer is None:
            buffer = self.waiting[target] = [None] * target.results
        if value is not None:
            if buffer[index] is None:
                buffer[index] = value
            else:
                buffer[index] = self._added(buffer, index, value)
        del value
        self.missing[target] -= 1
        if not self.missing[target]:
            self._push(target)

    def _added(self, buffer: list[Value | None], index: int, value: Value) -> Value:
        """Two gradients of one result: in place where nobody else sees the first (input_buffer.cpp:can_accumulate_inplace)."""
        old = buffer[index]
        assert old is not None
        # references to the value: the buffer's, this function's and the count's own; to its memory: the value's
        alone = sys.getrefcount(old) == 3 and sys.getrefcount(old.storage) == 2
        if alone and old.dense and not old.view:
            return old
        return self.machine.new(old.shape, old.dtype, "add.Tensor", old.order)


def accumulate_leaf(machine: Machine, leaf: Leaf, grads: list[Value | None]) -> None:
    """Into ``.grad``: the new gradient itself, a copy of it where others hold it, or an addition in place."""
    value, grads[0] = grads[0], None
    if value is None:
        return
    if machine.policy.updates is not None and leaf.name:
        machine.policy.updates.arrives(machine)
    if leaf.gradient is not None or machine.policy.gradients_kept:
        if machine.policy.hooks is not None and leaf.name:
            del value  # variable_grad += new_grad
            machine.policy.hooks.on_gradient(machine, leaf)
        return
    # references: this function's and the count's own; it must lie in memory as the parameter does
    if sys.getrefcount(value) <= 2 and _lies_closely(machine, value):
        storage = value.storage
    else:
        storage = machine.new(leaf.shape, leaf.dtype, "clone").storage
    leaf.gradient = storage
    if leaf.name:  # a parameter's
        storage.life.role, storage.life.name = "gradient", f"{leaf.name}.grad"
    del value, storage
    if leaf.name:
        machine.stored(leaf)


def _lies_closely(machine: Machine, value: Value) -> bool:
    """Whether a gradient lies as its leaf would: also a slice within which no other dimension moves, whose memory it keeps.

    source: pytorch torch/csrc/autograd/utils/grad_layout_contract.h:obeys_layout_contract
    """
    if value.contiguous or value.order is not None:
        return value.contiguous
    outer = range(max(value.gaps))
    if not all(machine.same(value.shape[dim], 1) for dim in outer):
        return False
    return machine.decide(value.nbytes <= value.storage.life.size)  # else it is stretched


def count_of(shape: Shape) -> Count:
    """Elements of a shape."""
    total: Count = 1
    for size in shape:
        total = total * size
    return total
