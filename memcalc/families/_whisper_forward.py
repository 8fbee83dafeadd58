"""How Whisper runs.

source: transformers 5.23.0 models/whisper/modeling_whisper.py
"""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.families import _paired_heads as heads
from memcalc.families._forward import Batch, causal_mask, given_states, positions
from memcalc.families._seq2seq_forward import Sides, run
from memcalc.layers.base import Frozen, Module
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.norms import embedding
from memcalc.play.picking import picked
from memcalc.play.pointwise import add
from memcalc.play.reduce import mean_over
from memcalc.play.reshape import permute
from memcalc.play.values import Value


def encoder(machine: Machine, root: Module, features: Value) -> Value:
    """source: modeling_whisper.py:WhisperEncoder.forward"""
    embeds = activated(machine, "gelu", machine.call("conv1", root.part("conv1").play, machine, features))
    embeds = activated(machine, "gelu", machine.call("conv2", root.part("conv2").play, machine, embeds))
    embeds = permute(machine, embeds, (0, 2, 1))
    table = root.part("embed_positions")
    assert isinstance(table, Frozen)
    place = machine.new((table.layer.rows,), "int64", "arange")  # type: ignore[attr-defined]
    hidden = add(machine, embeds, machine.call("embed_positions", _frozen, machine, table.layer, place))
    given = [root.part("dropout").play(machine, hidden)]
    del hidden
    hidden = run(machine, root, given, Sides(whisper=True, guarded="always"))
    return machine.call("layer_norm", root.part("layer_norm").play, machine, hidden)  # type: ignore[no-any-return]


def _frozen(machine: Machine, layer: Any, place: Value) -> Value:
    weight = machine.parameter("weight", (layer.rows, layer.width), "embedding", trainable=False)
    return embedding(machine, place, weight)


def decoder(machine: Machine, root: Module, ids: Value, batch: Batch, encoded: Value | None) -> Value:
    """source: modeling_whisper.py:WhisperDecoder.forward"""
    embeds = machine.call("embed_tokens", root.part("embed_tokens").play, machine, ids)
    place = _places(machine, *ids.shape)
    found = machine.call("embed_positions", _looked_up, machine, root.part("embed_positions"), place)
    hidden = add(machine, embeds, found)
    given = [root.part("dropout").play(machine, hidden)]
    del hidden
    mask = causal_mask(machine, place, batch, embeds.dtype, eager=machine.policy.attention == "eager")
    hidden = run(machine, root, given, Sides(mask, encoded, whisper=True))
    return machine.call("layer_norm", root.part("layer_norm").play, machine, hidden)  # type: ignore[no-any-return]


def _places(machine: Machine, rows: Count, tokens: Count) -> Value:
    one = positions(machine, tokens)
    out = machine.new((rows, tokens), "int64", "repeat")
    del one
    return out


def _looked_up(machine: Machine, layer: Any, place: Value) -> Value:
    """``weight[positions]``, an index and no lookup (modeling_whisper.py:WhisperPositionalEmbedding.forward)."""
    weight = machine.parameter("weight", (layer.rows, layer.width), "embedding")
    return picked(machine, weight, 0, place)


def both(machine: Machine, root: Module, features: Value, target: Value, batch: Batch) -> tuple[Value, Value]:
    """What the decoder gives, and what the output holds of the encoder's.

    source: modeling_whisper.py:WhisperModel.forward
    """
    encoded = given_states(machine, batch, root.part("decoder").part("embed_tokens").width)
    if encoded is None:
        encoded = machine.call("encoder", encoder, machine, root.part("encoder"), features)
    return machine.call("decoder", decoder, machine, root.part("decoder"), target, batch, encoded), encoded


def play(machine: Machine, kind: str, config: Any, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward; ``kind`` is a class name without its family."""
    if kind == "ForAudioClassification":
        return _classified(machine, config, root, batch)
    if kind == "Model":
        hidden, encoded = both(machine, root, batch["input_features"], batch["decoder_input_ids"], batch)
        return heads.bare(machine, hidden, encoded)
    body, labels = root.part("model"), batch.values.get("labels")
    if kind == "ForCausalLM":
        labels = batch["labels"]
        hidden = machine.call("model.decoder", decoder, machine, body.part("decoder"), batch["input_ids"], batch, None)
        logits = machine.call("proj_out", root.part("proj_out").play, machine, hidden)
        return heads.scores_loss(machine, logits, labels), logits
    assert kind == "ForConditionalGeneration", kind
    target = batch["decoder_input_ids"] if labels is None else heads.shifted_right(machine, labels)
    hidden, encoded = machine.call("model", both, machine, body, batch["input_features"], target, batch)
    logits = machine.call("proj_out", root.part("proj_out").play, machine, hidden)
    if labels is None:
        return logits, encoded
    return heads.scores_loss(machine, logits, labels), (logits, encoded)


def _classified(machine: Machine, config: Any, root: Any, batch: Batch) -> tuple[Value, Any]:
    """source: modeling_whisper.py:WhisperForAudioClassification.forward"""
    if config.use_weighted_layer_sum:
        raise NotModelledError(
            "model.use_weighted_layer_sum", True, "makes a mean over all layers that is not played yet", "use engine trace"
        )
    encoded = machine.call("encoder", encoder, machine, root.part("encoder"), batch["input_features"])
    hidden = machine.call("projector", root.part("projector").play, machine, encoded)
    pooled = mean_over(machine, hidden, (1,))
    logits = machine.call("classifier", root.part("classifier").play, machine, pooled)
    return heads.scores_loss(machine, logits, batch["labels"]), logits
