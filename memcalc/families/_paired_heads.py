"""Losses and shifted labels of the encoder-decoders and the image models, as their modules write them."""

from __future__ import annotations

from typing import Any

from memcalc.families._encoder_heads import bare as bare
from memcalc.families._encoder_heads import scores_loss as scores_loss
from memcalc.families._forward import Batch
from memcalc.layers.base import Module
from memcalc.play import losses
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.picking import picked
from memcalc.play.pointwise import add, compare, scaled
from memcalc.play.reshape import contiguous, merge_dims, pieces, select, split_dim
from memcalc.play.values import Value


def shifted_right(machine: Machine, ids: Value) -> Value:
    """Labels as the decoder's tokens.

    source: transformers 5.23.0 models/t5/modeling_t5.py:T5PreTrainedModel._shift_right; bart's and whisper's shift_tokens_right
    """
    rows, tokens = ids.shape
    out = machine.like(ids, "zeros")
    copied = machine.new((rows, tokens - 1), ids.dtype, "clone")
    del copied
    first = machine.new((), ids.dtype, "scalar_tensor")
    del first
    ignored = compare(machine, out, operator="eq.Scalar")
    del ignored
    return out


def answers_loss(machine: Machine, logits: Value, batch: Batch) -> tuple[Value, Any]:
    """Where an answer starts and ends: the mean of two cross-entropies.

    source: transformers 5.23.0 models/t5/modeling_t5.py:T5ForQuestionAnswering.forward; bart's likewise
    """
    start, end = pieces(machine, logits, -1, (1, 1))
    start = contiguous(machine, merge_dims(machine, start, 1, 2))
    end = contiguous(machine, merge_dims(machine, end, 1, 2))
    first = machine.like(batch["start_positions"], "clamp")
    last = machine.like(batch["end_positions"], "clamp")
    start_loss = losses.cross_entropy(machine, start, first)
    end_loss = losses.cross_entropy(machine, end, last)
    return scaled(machine, add(machine, start_loss, end_loss), "div.Tensor"), (start, end)


def last_token_classes(machine: Machine, head: Module, hidden: Value, ids: Value, batch: Batch) -> tuple[Value, Value]:
    """(loss, scores) of the classes, told by the state at the last ``<eos>`` of each row.

    source: transformers 5.23.0 models/t5/modeling_t5.py:T5ForSequenceClassification.forward; bart's likewise
    """
    mask = compare(machine, ids, operator="eq.Scalar")
    places = [machine.new((ids.shape[0],), "int64", "nonzero") for _ in range(2)]  # one token of each row holds
    chosen = picked(machine, hidden, 0, *places)
    del places
    del mask
    each = split_dim(machine, chosen, 0, (ids.shape[0], 1))
    logits = machine.call("classification_head", _classified, machine, head, select(machine, each, 1))
    return scores_loss(machine, logits, batch["labels"]), logits


def _classified(machine: Machine, head: Module, hidden: Value) -> Value:
    transform = head.part("")
    name, dense = transform.dense
    hidden = machine.call("dropout", head.part("dropout").play, machine, hidden)
    hidden = machine.call(name, dense.play, machine, hidden)
    hidden = activated(machine, transform.activation, hidden)
    hidden = machine.call("dropout", head.part("dropout").play, machine, hidden)
    return machine.call("out_proj", head.part("out_proj").play, machine, hidden)  # type: ignore[no-any-return]


def padded_mask(machine: Machine, ids: Value, dtype: str, batch: Batch) -> Value:
    """A causal mask under one of the padding, written out.

    source: transformers 5.23.0 masking_utils.py: sdpa_mask, and_masks, eager_mask
    """
    rows, tokens = batch.rows, ids.shape[1]
    seen = tokens if machine.cache is None else machine.cache.reach(machine, tokens)
    samples, heads = machine.new((rows,), "int64", "arange"), machine.new((1,), "int64", "arange")
    counted = machine.new((tokens,), "int64", "arange")
    queries = machine.like(counted, "add.Tensor")
    counted = machine.new((seen,), "int64", "arange")
    reached = machine.like(counted, "add.Tensor")
    del counted
    one = machine.new((), "bool", "new_ones")
    lower = machine.new((1, 1, tokens, seen), "bool", "le.Tensor")
    allowed = machine.like(lower, "bitwise_and.Tensor")
    del one, lower
    padding = machine.new((rows, 1, 1, seen), "bool", "index.Tensor")
    both = machine.new((rows, 1, tokens, seen), "bool", "bitwise_and.Tensor")
    del padding, allowed, samples, heads, queries, reached
    zero, least = machine.new((), dtype, "zeros"), machine.new((), dtype, "scalar_tensor")
    mask = machine.like(both, "where.self", dtype)
    del zero, least, both
    return mask


def image_classes(machine: Machine, root: Module, pooled: Value, config: Any, batch: Batch) -> tuple[Value, Any]:
    """The classes of an image: a cross-entropy, or for one class a squared error; without classes no loss.

    source: transformers 5.23.0 loss/loss_utils.py:ForSequenceClassificationLoss
    """
    if machine.decide(config.num_labels == 0):
        return bare(machine, pooled)
    name = next(name for name, _ in root.parts if name.startswith("classifier"))
    classifier = root.part(name)
    logits = machine.call(name, getattr(classifier, "layer", classifier).play, machine, pooled)
    if machine.decide(config.num_labels == 1):
        return losses.mse(machine, merge_dims(machine, logits, 0, 1), batch["labels"]), logits
    return scores_loss(machine, logits, batch["labels"]), logits
