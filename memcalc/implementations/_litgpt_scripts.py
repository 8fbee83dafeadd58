"""What litgpt's scripts do around the model: logits in chunks, Fabric's cast to FP32, and the loss in chunks.

source: Lightning-AI/litgpt finetune/lora.py, finetune/full.py: fit; pretrain.py: fit; utils.py: chunked_cross_entropy;
lightning 2.1.0 fabric/wrappers.py:_FabricModule.forward (convert_output)
"""

from __future__ import annotations

from collections.abc import Callable

from memcalc.arrays import Count
from memcalc.play.losses import cross_entropies, cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import div, to
from memcalc.play.reduce import mean_all, sum_all
from memcalc.play.reshape import cat, merge_dims, narrow, pieces
from memcalc.play.values import Value

CHUNK = 128
"""Tokens to a call of lm_head, and to one of cross_entropy (finetune/lora.py: lm_head_chunk_size; utils.py: chunk_size)."""
Head = Callable[[Machine, Value], Value]


def chunks(machine: Machine, total: Count, size: Count = CHUNK) -> list[Count]:
    """A length in pieces of ``size`` and a rest."""
    found: list[Count] = []
    while machine.decide(total > size):
        found.append(size)
        total = total - size
    return [*found, total]


def lora(machine: Machine, forward: Callable[[], list[Value]], labels: Value, *, counts: bool) -> Value:
    """finetune/lora.py: lm_head by chunks; the logits live until the next are there."""
    logits = _converted(machine, forward)
    logits[-1] = narrow(machine, logits[-1], 1, logits[-1].shape[1] - 1)
    machine.held = logits
    return _by_chunks(machine, logits, labels, counts=counts)


def full(machine: Machine, forward: Callable[[], list[Value]], labels: Value, *, counts: bool) -> Value:
    """finetune/full.py: lm_head whole, the loss by chunks; the logits live until the next are there."""
    logits = _converted(machine, forward)[0]
    machine.held = logits
    return _flat_by_chunks(machine, narrow(machine, logits, 1, logits.shape[1] - 1), labels, counts=counts)


def pretrain(machine: Machine, forward: Callable[[], list[Value]], labels: Value, *, counts: bool) -> Value:
    """pretrain.py: one cross-entropy over all tokens; the logits end with the function that made the loss."""
    logits = merge_dims(machine, _converted(machine, forward)[0], 0, 1)
    return cross_entropy(machine, logits, merge_dims(machine, labels, 0, 1))


def _converted(machine: Machine, forward: Callable[[], list[Value]]) -> list[Value]:
    output = forward()
    return [to(machine, chunk, "float32") for chunk in output]


def head(machine: Machine, play: Head, x: Value, *, chunked: bool) -> list[Value]:
    """The logits, in chunks of the sequence or whole."""
    if not chunked:
        return [machine.call("lm_head", play, machine, x)]
    parts = pieces(machine, x, 1, chunks(machine, x.shape[1]))
    return [machine.call("lm_head", play, machine, part) for part in parts]


def _by_chunks(machine: Machine, logits: list[Value], labels: Value, *, counts: bool) -> Value:
    scores = [merge_dims(machine, chunk, 0, 1) for chunk in logits]
    targets = narrow(machine, labels, 1, labels.shape[1] - 1)
    parts = [narrow(machine, targets, 1, chunk.shape[1]) for chunk in logits]
    flat = [merge_dims(machine, part, 0, 1) for part in parts]
    losses = [cross_entropies(machine, a, b) for a, b in zip(scores, flat, strict=True)]
    return _averaged(machine, losses, targets, counts=counts)


def _flat_by_chunks(machine: Machine, logits: Value, labels: Value, *, counts: bool) -> Value:
    logits = merge_dims(machine, logits, 0, 1)
    targets = merge_dims(machine, narrow(machine, labels, 1, labels.shape[1] - 1), 0, 1)
    lengths = chunks(machine, logits.shape[0])
    scores = pieces(machine, logits, 0, lengths)
    parts = [narrow(machine, targets, 0, length) for length in lengths]
    losses = [cross_entropies(machine, a, b) for a, b in zip(scores, parts, strict=True)]
    return _averaged(machine, losses, targets, counts=counts)


def _averaged(machine: Machine, losses: list[Value], targets: Value, *, counts: bool) -> Value:
    """The mean of the losses; since March 2024 their sum over the tokens that are no padding."""
    if not counts:
        return mean_all(machine, cat(machine, losses, 0))
    machine.new(targets.shape, "bool", "ne.Scalar")
    counted = machine.new((), "int64", "sum")
    return div(machine, sum_all(machine, cat(machine, losses, 0)), counted)


SCRIPTS = {"lora": lora, "full": full, "pretrain": pretrain}
