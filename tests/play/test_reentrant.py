"""Checkpointing with reentrance, held against a trace of torch's own."""

from __future__ import annotations

from memcalc.layers.basic import Linear
from memcalc.play.graph import Engine
from memcalc.play.machine import Machine
from memcalc.play.pointwise import gelu, to
from memcalc.play.policy import Policy
from memcalc.play.reduce import sum_all
from memcalc.play.reentrant import reentrant

ROWS, WIDTH, WIDE, BLOCKS = 24, 32, 80, 3
TRACED = (41736, 32768, 4612)
"""python -m benchmarks.played.reentrant, torch 2.13.0: the highest point, what is left, what is alive where backward begins."""


def mine():
    """The same, played: the highest point, what is left, and what is alive where backward begins."""
    machine = Machine(Policy("bfloat16"))

    def block(x, index):
        up, down = Linear(WIDTH, WIDE, bias=False), Linear(WIDE, WIDTH, bias=False)
        x = gelu(machine, machine.call(f"ups.{index}", up.play, machine, x))
        return machine.call(f"downs.{index}", down.play, machine, x)

    def forward():
        x = machine.call("first", Linear(WIDTH, WIDTH, bias=False).play, machine, machine.constant((ROWS, WIDTH), "bfloat16"))
        for index in range(BLOCKS):
            x = reentrant(machine, lambda x, index=index: block(x, index), x)
        return sum_all(machine, to(machine, x, "float32"))

    loss = forward()
    machine.mark("backward")
    Engine(machine).run(loss)
    del loss
    live = top = saved = 0
    for sign, life in machine.tape:
        if life is None:
            saved = live
        elif life.role != "workspace":
            live += sign * life.size
            top = max(top, live)
    return top, live, saved


def test_recomputing_with_reentrance_is_torchs():
    """A backward inside a node's leaves the gradients, keeps the inputs, and rises as high as torch's does."""
    assert mine() == TRACED
