"""What torchtitan's trainer does around its models: which blocks are checkpointed and how, and the loss.

source: pytorch/torchtitan 9dec370 parallelisms/parallelize_llama.py, v0.2.0 distributed/activation_checkpoint.py,
components/loss.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.errors import NotModelledError
from memcalc.implementations._torchtitan_versions import Version
from memcalc.play.checkpoint import Keeps, Way
from memcalc.play.graph import Engine, Gradients, Leaf, Node
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, div, scaled, to
from memcalc.play.reshape import contiguous, merge_dims, pieces
from memcalc.play.values import Value

CHUNKS = 8
"""source: e23bb707 components/loss.py:chunked_cross_entropy_loss, num_output_chunks"""


def operator_policy(kept: tuple[str, ...]) -> Callable[[], Keeps]:
    """Per-operator checkpointing: those of the list, but every second product (_apply_op_sac: ``meta[mm_count_key] % 2``).

    >>> keeps = operator_policy(("mm",))()
    >>> [keeps("mm"), keeps("silu"), keeps("mm"), keeps("mm")]
    [True, False, False, True]
    """

    def policy() -> Keeps:
        products = 0

        def keeps(operator: str) -> bool:
            nonlocal products
            products += operator == "mm"
            return operator in kept and not (operator == "mm" and products % 2 == 0)

        return keeps

    return policy


def ways(version: Version, every: int, mode: str) -> tuple[Way | None, ...]:
    """How blocks are checkpointed, one after another, over and over; ``every`` so many-th under ``selective``, or by operator.

    source: 9dec370 parallelize_llama.py:_apply_ac_to_transformer_block; v0.2.0 distributed/activation_checkpoint.py
    """
    early = version.early_stop
    if mode == "none":
        return (None,)
    if mode == "full":
        return (Way(None, early),)
    if every:
        return (*(None,) * (every - 1), Way(None, early))
    return (Way(operator_policy(version.keeps), early),)


def cross_entropy_loss(machine: Machine, pred: Value, labels: Value) -> Value:
    """The mean over every token, of FP32 logits (components/loss.py)."""
    rows = merge_dims(machine, pred, 0, 1)
    return cross_entropy(machine, to(machine, rows, "float32"), merge_dims(machine, labels, 0, 1))


def chunked_cross_entropy_loss(machine: Machine, pred: Value, labels: Value) -> Value:
    """The same in chunks of the sequence, one after another (e23bb707 components/loss.py)."""
    length = pred.shape[1]
    if not machine.decide(length % CHUNKS == 0):
        raise NotModelledError("training.sequence_length", length, "does not part into equal chunks",
                               f"use a multiple of {CHUNKS}")  # fmt: skip
    targets = pieces(machine, labels, 1, [length // CHUNKS] * CHUNKS)
    chunks = pieces(machine, pred, 1, [length // CHUNKS] * CHUNKS)
    total: Value | None = None
    for chunk, target in zip(chunks, targets, strict=True):
        one = cross_entropy_loss(machine, chunk, target)
        total = scaled(machine, one, "add.Tensor") if total is None else add(machine, total, one)
    assert total is not None
    return scaled(machine, total, "div.Tensor")


def backward_in_chunks(machine: Machine, hidden: Value, labels: Value, head: Callable[..., Value], version: Version) -> Value:
    """The loss of hidden states whose chunks go through the head and backward one by one; its own backward has their gradient.

    source: 786e26f8 components/loss.py:ChunkedCELoss.__call__, GradAccumulator, _DecoderOutputGradientBackProp
    """
    length, whole = hidden.shape[1], hidden.detached()
    if not machine.decide(length % version.chunks == 0):
        raise NotModelledError("training.sequence_length", length, "does not part into equal chunks",
                               f"use a multiple of {version.chunks}")  # fmt: skip
    parts = [contiguous(machine, each) for each in pieces(machine, whole, 1, [length // version.chunks] * version.chunks)]
    targets = pieces(machine, labels, 1, [length // version.chunks] * version.chunks)
    buffer = machine.like(whole, "zeros_like", "float32")
    total = machine.new((), "float32", "new_zeros")
    for part, target in zip(parts, targets, strict=True):
        part.node = leaf = Leaf("", part.shape, part.dtype)
        logits = machine.call(version.head, head, machine, part)  # held while the next are made
        loss = cross_entropy_loss(machine, logits, target)
        loss = div(machine, loss, machine.constant((), "float32"))
        total = machine.new((), "float32", "add.Tensor")
        Engine(machine).run(loss)
        assert leaf.gradient is not None
        to(machine, Value(leaf.gradient, part.shape, part.dtype), "float32")
        leaf.gradient = None
    given = to(machine, buffer, hidden.dtype)
    del total
    return machine.record(machine.new((), "float32", "clone"), (hidden,), (given,), _given_back)


def _given_back(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    return (saved[0],)
