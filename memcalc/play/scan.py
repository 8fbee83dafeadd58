"""The selective scan as plain PyTorch runs it, one token after another; tokens between the first and the last are one turn.

source: transformers 5.23.0 models/mamba/modeling_mamba.py:mamba_selective_scan, the recurrent iteration
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def sequential_scan(machine: Machine, decay: Value, drive: Value, read: Value) -> tuple[Value, list[Value]]:
    """``state = decay[:, :, i] * state + drive[:, :, i]``, read out by ``read[:, i]``, for each token.

    Shapes: decay and drive ``(rows, channels, tokens, state)``, read ``(rows, tokens, state)``; the result ``(rows, channels,
    tokens)`` in the dtype of ``read``, and what the loop's locals hold beside it until their function returns.
    """
    rows, channels, tokens, width = decay.shape
    step = (rows, channels, width)
    held: list[Value] = []
    saved: list[Any] = []
    state = [machine.new(step, read.dtype, "zeros")]

    def turn() -> None:
        saved.extend(_turn(machine, state, decay.dtype, read.dtype, held))

    between = _between(machine, tokens)
    for place in range(between[0]):
        turn()
        if place == 0 and between[1] is not None:
            machine.turns(between[1], turn, state)
    out = machine.new((rows, channels, tokens), read.dtype, "stack")
    if machine.wants(decay, drive, read):
        inputs = (decay, drive, read)
        edges = tuple([(v.node, v.index) if v.node is not None else None for v in inputs])
        # the last state is a second result, which nobody reads
        machine.attach([out, out.detached()], inputs, edges, (), _backward, (decay.dtype, read.dtype, between[1]))
        assert out.node is not None
        out.node.saved += [*saved, *machine.packed(decay, read)]
        out.index = 0
    return out, [*held, *state]


def _between(machine: Machine, tokens: Count) -> tuple[int, Count | None]:
    """(tokens that are played, how many stand between the first and the last; None where every one is played)."""
    if machine.decide(tokens <= 3) or machine.unrolled:
        count = 1
        while machine.decide(tokens > count):
            count += 1
        return count, None
    return 2, tokens - 2


def _turn(machine: Machine, state: list[Value], wide: str, low: str, held: list[Value]) -> list[Any]:
    """One token forward; what multiplication saves of the state before, and the product of the state after."""
    before = state[0]
    product = machine.new(before.shape, wide, "mul.Tensor")
    saved = machine.packed(before)
    after = machine.new(before.shape, wide, "add.Tensor")
    del product, before
    state[0] = after
    cast = after if wide == low else machine.new(after.shape, low, "_to_copy")
    machine.blas("bmm")
    saved += machine.packed(cast)
    held.append(machine.kept((*after.shape[:2], 1), low, "bmm"))
    return saved


class _Grads:
    """Gradients on their way through the loop: that of the state, and those of whole operands, added to in place."""

    def __init__(self) -> None:
        self.state: list[Value | None] = [None]
        self.whole: dict[str, Value] = {}

    def add(self, name: str, value: Value) -> None:
        """What is given first stays; what comes later is added to it, and dies."""
        self.whole.setdefault(name, value)


def _backward(machine: Machine, node: Node, saved: Any, grads: Any) -> Gradients:
    """The youngest token first; every selection's gradient is zeros of the whole, into which one token's is written."""
    decay, read = node.inputs[0], node.inputs[2]
    between, sums = node.meta[2], _Grads()
    stacked, grads[0] = [grads[0]], None

    def turn(place: int) -> None:
        _turned(machine, saved, place, sums, decay, read, stacked if place == 0 else None)

    last = (len(saved) - 2) // 2 - 1
    for place in range(last, -1, -1):
        if between is not None and place == 1:
            machine.turns(between, lambda: turn(1), sums.state)
        else:
            turn(place)
    return sums.whole["decay"], sums.whole["drive"], sums.whole["read"]


def _turned(
    machine: Machine,
    saved: list[Any],
    place: int,
    sums: _Grads,
    decay: tuple[Any, str],
    read: tuple[Any, str],
    stacked: list[Value | None] | None,
) -> None:
    """One token backward, as its nodes run: the product, the reading, the sum, the multiplication, each selection."""
    (rows, channels, _, width), wide = decay
    step, low = (rows, channels, width), read[1]
    of_out = machine.new((rows, channels, 1), low, "select_backward")
    if stacked is not None:  # the first token's is the last to look at it
        stacked[0] = None
    machine.blas("bmm")
    of_read = machine.new((rows, width, 1), low, "bmm")
    of_state = machine.new(step, low, "bmm")
    del of_out
    saved[2 * place + 1] = None
    sums.add("read", machine.new(read[0], low, "select_backward"))
    del of_read
    if wide != low:
        of_state = machine.new(step, wide, "_to_copy")
    grad = sums.state[0] = sums.state[0] or of_state
    del of_state
    sums.add("drive", machine.new(decay[0], wide, "select_backward"))
    sums.state[0] = machine.new(step, wide, "mul.Tensor") if place else None
    of_decay = machine.new(step, wide, "mul.Tensor")
    del grad
    saved[2 * place] = None
    sums.add("decay", machine.new(decay[0], wide, "select_backward"))
    del of_decay
