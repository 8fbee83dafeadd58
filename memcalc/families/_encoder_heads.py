"""The heads that transformers hangs on encoders, and their losses.

A function's locals stand for those of the head's forward; what is given back with the loss is what the output object holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.families._forward import Batch, causal_loss
from memcalc.layers.base import Module
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, scaled, to
from memcalc.play.reduce import mean_all
from memcalc.play.reshape import contiguous, merge_dims, pieces, select, split_dim
from memcalc.play.values import Value

Output = tuple[Value, Any]
"""(loss, what the output object holds besides)."""
Body = Callable[[Machine, Any, Value], tuple[Value, Any]]
"""(machine, its layers, token ids) -> (hidden states of every token, what it gives besides, as a pooled token)."""
Score = Callable[[Machine, Any, Value, Any], Value]
"""(machine, the head's layers, hidden states, what the body gives besides) -> scores of each sequence."""

TASKS = ("ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering")
"""Heads that every encoder has."""


def bare(machine: Machine, hidden: Value, pooled: Value | None = None) -> Output:
    """A body without a head: the mean of what it gives, in FP32 (runtime/losses.py:_own)."""
    return mean_all(machine, to(machine, hidden, "float32")), (hidden, pooled)


def scores_loss(machine: Machine, scores: Value, labels: Value) -> Value:
    """Cross-entropy of the scores as they are, all but the last dimension flattened (torch.nn.CrossEntropyLoss)."""
    flat = merge_dims(machine, scores, 0, len(scores.shape) - 2) if len(scores.shape) > 2 else scores
    target = merge_dims(machine, labels, 0, len(labels.shape) - 1) if len(labels.shape) > 1 else labels
    return cross_entropy(machine, flat, target)


def vocabulary(machine: Machine, head: Module, transform: str, hidden: Value) -> Value:
    """Scores of every word (BertLMPredictionHead.forward)."""
    hidden = machine.call(transform, head.part(transform).play, machine, hidden)
    return machine.call("decoder", head.part("decoder").play, machine, hidden)  # type: ignore[no-any-return]


def scored(machine: Machine, scores: Value, labels: Value) -> Output:
    """Held against classes: of words or of sequences (BertForMaskedLM.forward)."""
    return scores_loss(machine, scores, labels), scores


def causal(machine: Machine, scores: Value, labels: Value) -> Output:
    """A language model's, each token held against its successor (BertLMHeadModel.forward)."""
    return causal_loss(machine, scores, labels), scores


def two(machine: Machine, scores: Value, labels: Value, pair: Value, pair_labels: Value) -> Output:
    """A masked language model's loss and that of a pair of sentences together (BertForPreTraining.forward)."""
    masked_lm_loss = scores_loss(machine, scores, labels)
    pair_loss = scores_loss(machine, pair, pair_labels)
    return add(machine, masked_lm_loss, pair_loss), (scores, pair)


def task(
    machine: Machine, root: Module, name: str, body: Body, kind: str, labels: Count, batch: Batch, score: Score | None = None
) -> Output:
    """One of ``TASKS`` on the body of that name; ``score`` where sequences are scored otherwise than by a pooled token.

    Raises:
        NotModelledError: a number of labels whose loss is another.
    """
    check_labels(machine, kind, labels)
    ids = batch["input_ids"]
    if kind == "ForMultipleChoice":
        number = ids.shape[1]
        ids = merge_dims(machine, ids, 0, 1)
    hidden, pooled = machine.call(name, body, machine, root.part(name), ids)
    if kind == "ForQuestionAnswering":
        return answers(machine, root, hidden, batch)
    if kind == "ForTokenClassification":
        return scored(machine, classified(machine, root, hidden), batch["labels"])
    logits = (score or by_pooled)(machine, root, hidden, pooled)
    if kind == "ForSequenceClassification":
        return scored(machine, logits, batch["labels"])
    rows = batch["labels"].shape[0]
    reshaped_logits = merge_dims(machine, split_dim(machine, logits, 0, (rows, number)), 1, 2)
    return cross_entropy(machine, reshaped_logits, batch["labels"]), reshaped_logits


def check_labels(machine: Machine, kind: str, labels: Count) -> None:
    """Refuse the numbers of labels that have no loss, or another than cross-entropy.

    Raises:
        NotModelledError: no class, a regression, or answers without two ends and pairs that are not in one order of two.
    """
    if kind == "ForMultipleChoice":
        return
    if kind in ("ForQuestionAnswering", "ForPreTraining"):
        fits = machine.decide(labels == 2)
    else:
        fits = machine.decide(labels > (0 if kind == "ForTokenClassification" else 1))
    if not fits:
        raise NotModelledError("model.num_labels", labels, f"has no loss that is played for {kind}", "use engine trace")


def by_pooled(machine: Machine, root: Module, hidden: Value, pooled: Any) -> Value:
    """Scores by a pooled token (BertForSequenceClassification.forward)."""
    return classified(machine, root, pooled)


def classified(machine: Machine, root: Module, hidden: Value) -> Value:
    """Dropout, if any, and the classes."""
    if root.has("dropout"):
        hidden = root.part("dropout").play(machine, hidden)
    return machine.call("classifier", root.part("classifier").play, machine, hidden)  # type: ignore[no-any-return]


def answers(machine: Machine, root: Module, hidden: Value, batch: Batch) -> Output:
    """Where an answer starts and ends (BertForQuestionAnswering.forward)."""
    if root.has("dropout"):
        hidden = root.part("dropout").play(machine, hidden)
    logits = machine.call("qa_outputs", root.part("qa_outputs").play, machine, hidden)
    start_logits, end_logits = pieces(machine, logits, 2, (1, 1))
    start_logits = contiguous(machine, select(machine, start_logits, 2))
    end_logits = contiguous(machine, select(machine, end_logits, 2))
    start_positions = machine.like(batch["start_positions"], "clamp")
    end_positions = machine.like(batch["end_positions"], "clamp")
    start_loss = cross_entropy(machine, start_logits, start_positions)
    end_loss = cross_entropy(machine, end_logits, end_positions)
    loss = scaled(machine, add(machine, start_loss, end_loss), "div.Tensor")
    return loss, (start_logits, end_logits)
