"""The heads transformers hangs on any decoder beside the language model's.

source: transformers 5.23.0 modeling_layers.py, GenericFor{SequenceClassification,TokenClassification,QuestionAnswering}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.arrays import Count
from memcalc.families._decoder import Names
from memcalc.families._forward import Batch
from memcalc.layers.base import Module
from memcalc.play import losses
from memcalc.play.picking import picked
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, scaled, to
from memcalc.play.reshape import contiguous, merge_dims, pieces
from memcalc.play.values import Value

Run = Callable[[Any, str], tuple[Value, Any]]
"""The body: (its layers, its name) -> (what it gives, the cache)."""
Answer = tuple[Value, Any]


def sequence_classifier(machine: Machine, config: Any, root: Module, batch: Batch, names: Names, run: Run) -> Answer:
    """One row of scores a sample: that of the last token that is no padding."""
    hidden, cache = run(root.part(names.body), names.body)
    logits = machine.call("score", root.part("score").play, machine, hidden)
    rows, tokens = batch.rows, batch.tokens
    unpadded = machine.new((rows, tokens), "bool", "ne.Scalar")
    unpadded = machine.new((rows, tokens), "int32", "_to_copy")
    counted = machine.new((tokens,), "int32", "arange")
    last = _last(machine, rows, tokens)
    pooled = picked(machine, logits, 0, machine.new((rows,), "int64", "arange"), last)
    loss = classified(machine, pooled, batch, config.num_labels)
    del unpadded, counted
    return loss, (pooled, cache)


def _last(machine: Machine, rows: Count, tokens: Count) -> Value:
    numbered = machine.new((rows, tokens), "int32", "mul.Tensor")
    last = machine.new((rows,), "int64", "argmax")
    del numbered
    return last


def classified(machine: Machine, scores: Value, batch: Batch, classes: Count) -> Value:
    """source: transformers 5.23.0 loss/loss_utils.py:ForSequenceClassificationLoss"""
    if "labels" not in batch.values:  # no classes, no loss
        return scores
    if machine.decide(classes == 1):
        return losses.mse(machine, merge_dims(machine, scores, 0, 1), batch["labels"])
    return losses.cross_entropy(machine, scores, batch["labels"])


def token_classifier(machine: Machine, config: Any, root: Module, batch: Batch, names: Names, run: Run) -> Answer:
    """A row of scores for each token (loss/loss_utils.py:ForTokenClassification)."""
    hidden, cache = run(root.part(names.body), names.body)
    hidden = machine.call("dropout", root.part("dropout").play, machine, hidden)
    logits = machine.call(names.token_head, root.part(names.token_head).play, machine, hidden)
    del cache
    if "labels" not in batch.values:
        return logits, None
    return _by_token(machine, logits, batch["labels"]), logits


def _by_token(machine: Machine, logits: Value, labels: Value) -> Value:
    logits = merge_dims(machine, logits, 0, 1)
    labels = merge_dims(machine, labels, 0, 1)
    logits = to(machine, logits, "float32")
    return losses.cross_entropy(machine, logits, labels)


def question_answerer(machine: Machine, config: Any, root: Module, batch: Batch, names: Names, run: Run) -> Answer:
    """Scores of where an answer begins and ends (loss/loss_utils.py:ForQuestionAnsweringLoss)."""
    name = names.question_body
    hidden, cache = run(root.part(name), name)
    logits = machine.call("qa_outputs", root.part("qa_outputs").play, machine, hidden)
    start, end = pieces(machine, logits, -1, (1, 1))
    start = contiguous(machine, merge_dims(machine, start, 1, 2))
    end = contiguous(machine, merge_dims(machine, end, 1, 2))
    del cache
    return _of_ends(machine, start, end, batch), (start, end)


def _of_ends(machine: Machine, start: Value, end: Value, batch: Batch) -> Value:
    starts = machine.new((batch.rows,), "int64", "clamp")
    ends = machine.new((batch.rows,), "int64", "clamp")
    first = losses.cross_entropy(machine, start, starts)
    second = losses.cross_entropy(machine, end, ends)
    return scaled(machine, add(machine, first, second), "div.Tensor")


HEADS: dict[str, Callable[[Machine, Any, Module, Batch, Names, Run], Answer]] = {
    "ForSequenceClassification": sequence_classifier,
    "ForTokenClassification": token_classifier,
    "ForQuestionAnswering": question_answerer,
}
"""By how an architecture's name ends."""
