"""How BART runs.

source: transformers 5.23.0 models/bart/modeling_bart.py
"""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.families import _paired_heads as heads
from memcalc.families._forward import Batch, given_states
from memcalc.families._seq2seq_forward import Sides, run
from memcalc.layers.base import Module
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, scaled, shifted
from memcalc.play.reshape import expand, unsqueeze
from memcalc.play.values import Value


def _words(machine: Machine, layer: Any, ids: Value) -> Value:
    """source: modeling_bart.py:BartScaledWordEmbedding.forward"""
    return scaled(machine, layer.play(machine, ids))


def _places(machine: Machine, layer: Any, rows: Count, tokens: Count) -> Value:
    """source: modeling_bart.py:BartLearnedPositionalEmbedding.forward, without positions"""
    place = expand(machine, machine.new((tokens,), "int64", "arange.start"), (rows, tokens))
    return layer.play(machine, _offset(machine, place))  # type: ignore[no-any-return]


def _offset(machine: Machine, place: Value) -> Value:
    return machine.new(place.shape, place.dtype, "add.Tensor")


def encoder(machine: Machine, root: Module, ids: Value) -> Value:
    """source: modeling_bart.py:BartEncoder.forward"""
    embeds = machine.call("embed_tokens", _words, machine, root.part("embed_tokens"), ids)
    places = machine.call("embed_positions", _places, machine, root.part("embed_positions"), *ids.shape)
    hidden = add(machine, embeds, places)
    hidden = machine.call("layernorm_embedding", root.part("layernorm_embedding").play, machine, hidden)
    given = [root.part("dropout").play(machine, hidden)]
    del hidden
    return run(machine, root, given, Sides(guarded="looked"))


def decoder(machine: Machine, root: Module, ids: Value, batch: Batch, encoded: Value | None) -> Value:
    """source: modeling_bart.py:BartDecoder.forward"""
    embeds = machine.call("embed_tokens", _words, machine, root.part("embed_tokens"), ids)
    place = shifted(machine, machine.new((ids.shape[1],), "int64", "arange"))
    mask = _mask(machine, ids, embeds, batch)
    places = machine.call("embed_positions", _given_places, machine, root.part("embed_positions"), place)
    hidden = add(machine, embeds, places)
    hidden = machine.call("layernorm_embedding", root.part("layernorm_embedding").play, machine, hidden)
    given = [root.part("dropout").play(machine, hidden)]
    del hidden
    return run(machine, root, given, Sides(mask, encoded))


def _given_places(machine: Machine, layer: Any, place: Value) -> Value:
    return layer.play(machine, _offset(machine, unsqueeze(machine, place, 0)))  # type: ignore[no-any-return]


def _mask(machine: Machine, ids: Value, embeds: Value, batch: Batch) -> Value | None:
    """A mask of ones is made and looked at (modeling_bart.py:BartDecoder.forward; masking_utils.py:create_causal_mask)."""
    seen = ids.shape[1] if machine.cache is None else machine.cache.reach(machine, ids.shape[1])
    ones = machine.new((ids.shape[0], seen), "float32", "ones")
    padding = machine.like(ones, "_to_copy", "bool")
    if machine.policy.attention == "eager":
        return heads.padded_mask(machine, ids, embeds.dtype, batch)
    total = machine.new((), "int64", "sum")
    every = machine.new((), "bool", "eq.Scalar")
    del total, every, padding, ones
    return None


def both(machine: Machine, root: Module, source: Value, target: Value | None, batch: Batch) -> tuple[Value, Value]:
    """What the decoder gives, and what the output holds of the encoder's.

    source: modeling_bart.py:BartModel.forward
    """
    if target is None:
        target = heads.shifted_right(machine, source)
    encoded = given_states(machine, batch, root.part("encoder").part("embed_tokens").width)
    if encoded is None:
        encoded = machine.call("encoder", encoder, machine, root.part("encoder"), source)
    return machine.call("decoder", decoder, machine, root.part("decoder"), target, batch, encoded), encoded


def play(machine: Machine, kind: str, config: Any, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward; ``kind`` is a class name without its family."""
    ids = batch["input_ids"]
    if kind == "Model":
        hidden, encoded = both(machine, root, ids, batch["decoder_input_ids"], batch)
        return heads.bare(machine, hidden, encoded)
    if kind == "ForCausalLM":
        hidden = machine.call("model.decoder", decoder, machine, root.part("model.decoder"), ids, batch, None)
        logits = machine.call("lm_head", root.part("lm_head").play, machine, hidden)
        return heads.scores_loss(machine, logits, batch["labels"]), logits
    if kind == "ForConditionalGeneration":
        target = heads.shifted_right(machine, batch["labels"]) if machine.cache is None else batch["decoder_input_ids"]
        hidden, encoded = machine.call("model", both, machine, root.part("model"), ids, target, batch)
        bias = machine.constant((1, config.vocab_size), "float32")  # a buffer, which no precision casts
        logits = add(machine, machine.call("lm_head", root.part("lm_head").play, machine, hidden), bias)
        if machine.cache is not None:
            return logits, (encoded, hidden)
        return heads.scores_loss(machine, logits, batch["labels"]), (logits, encoded, hidden)
    hidden, encoded = machine.call("model", both, machine, root.part("model"), ids, None, batch)
    if kind == "ForQuestionAnswering":
        logits = machine.call("qa_outputs", root.part("qa_outputs").play, machine, hidden)
        loss, kept = heads.answers_loss(machine, logits, batch)
        return loss, (kept, encoded)
    assert kind == "ForSequenceClassification", kind
    loss, scores = heads.last_token_classes(machine, root.part("classification_head"), hidden, ids, batch)
    return loss, (scores, encoded)
