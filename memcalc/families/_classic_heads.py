"""The heads that the decoders before llama have of their own, and the losses they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memcalc.families._decoder import Names
from memcalc.families._encoder_heads import Output, answers, bare, check_labels, scores_loss
from memcalc.families._forward import Batch, causal_loss, last_position
from memcalc.families._head_losses import in_stead
from memcalc.layers.base import Module
from memcalc.play.machine import Machine
from memcalc.play.picking import picked
from memcalc.play.pointwise import to
from memcalc.play.values import Value

Body = Callable[[Machine, Module, Batch], Value]
"""(machine, the body's layers, batch) -> hidden states."""


def causal(machine: Machine, root: Module, batch: Batch, names: Names, body: Body) -> Output:
    """The language model: (loss, what its output holds besides).

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2LMHeadModel.forward
    """
    hidden = machine.call(names.body, body, machine, root.part(names.body), batch)
    if machine.cache is None and (fused := in_stead(machine, names.head, root, hidden, batch["labels"])) is not None:
        return fused, None
    given = hidden if machine.cache is None else last_position(machine, hidden)
    logits = machine.call(names.head, root.part(names.head).play, machine, given)
    if machine.cache is not None:
        return logits, None
    loss = causal_loss(machine, logits, batch["labels"])
    return loss, logits


def sequences(machine: Machine, root: Module, batch: Batch, names: Names, body: Body) -> Output:
    """Every token scored, and the last that is no padding picked.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2ForSequenceClassification.forward
    """
    hidden = machine.call(names.body, body, machine, root.part(names.body), batch)
    logits = machine.call("score", root.part("score").play, machine, hidden)
    unpadded, counted, last = _last_tokens(machine, batch)
    pooled = _pooled(machine, logits, batch, last)
    loss = scores_loss(machine, pooled, batch["labels"])
    del unpadded, counted
    return loss, pooled


def _last_tokens(machine: Machine, batch: Batch) -> tuple[Value, Value, Value]:
    """The mask of tokens that are no padding, the positions, and the last of each row."""
    shape = (batch.rows, batch.tokens)
    unpadded = machine.like(machine.new(shape, "bool", "ne.Scalar"), "_to_copy", "int32")
    counted = machine.new((batch.tokens,), "int32", "arange")
    numbered = machine.new(shape, "int32", "mul.Tensor")
    last = machine.new((batch.rows,), "int64", "argmax")
    del numbered
    return unpadded, counted, last


def _pooled(machine: Machine, logits: Value, batch: Batch, last: Value) -> Value:
    return picked(machine, logits, 0, machine.new((batch.rows,), "int64", "arange"), last)


def tokens(machine: Machine, root: Module, batch: Batch, names: Names, body: Body, *, upcast: bool) -> Output:
    """Every token held against its class; ``upcast`` says that the loss takes scores in FP32.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2ForTokenClassification.forward; upcast it is
    loss/loss_utils.py:ForTokenClassification
    """
    outputs = machine.call(names.body, body, machine, root.part(names.body), batch)
    hidden = machine.call("dropout", root.part("dropout").play, machine, outputs)
    logits = machine.call(names.token_head, root.part(names.token_head).play, machine, hidden)
    scores = to(machine, logits, "float32") if upcast else logits
    loss = scores_loss(machine, scores, batch["labels"])
    del outputs  # the body's output object holds its hidden states until now
    return loss, logits


def questions(machine: Machine, root: Module, batch: Batch, names: Names, body: Body) -> Output:
    """Where an answer starts and ends.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2ForQuestionAnswering.forward
    """
    name = names.question_body
    hidden = machine.call(name, body, machine, root.part(name), batch)
    return answers(machine, root, hidden, batch)


UPCAST_TOKENS = ("GPTNeoX",)
"""Families, by the beginning of their architectures, whose token classifier takes the library's loss."""


def classic_forward(
    machine: Machine, architecture: str, config: Any, root: Any, batch: Batch, names: Names, body: Body
) -> Output:
    """A decoder under the head its architecture names."""
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return causal(machine, root, batch, names, body)
    if architecture.endswith("ForSequenceClassification"):
        check_labels(machine, "ForSequenceClassification", config.num_labels)
        return sequences(machine, root, batch, names, body)
    if architecture.endswith("ForTokenClassification"):
        check_labels(machine, "ForTokenClassification", config.num_labels)
        return tokens(machine, root, batch, names, body, upcast=architecture.startswith(UPCAST_TOKENS))
    if architecture.endswith("ForQuestionAnswering"):
        return questions(machine, root, batch, names, body)
    assert architecture.endswith("Model"), architecture
    return bare(machine, body(machine, root, batch))
