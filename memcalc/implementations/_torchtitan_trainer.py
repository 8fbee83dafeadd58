"""What torchtitan's trainer does around its models: which blocks are checkpointed and how, and the loss.

source: pytorch/torchtitan 9dec370 parallelisms/parallelize_llama.py, v0.2.0 distributed/activation_checkpoint.py,
components/loss.py
"""

from __future__ import annotations

from collections.abc import Callable

from memcalc.errors import NotModelledError
from memcalc.implementations._torchtitan_versions import Version
from memcalc.play.checkpoint import Keeps, Way
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, scaled, to
from memcalc.play.reshape import merge_dims, pieces
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
