"""Whisper: a pre-norm encoder over two convolutions of a spectrogram, and a decoder of text."""

from __future__ import annotations

from typing import Any

from memcalc.families._forward import Batch
from memcalc.families._idle import CROSS, under
from memcalc.families._places import of_decoder
from memcalc.families._seq2seq import Seq2SeqConfig, block
from memcalc.families._whisper_forward import play as whisper_forward
from memcalc.families.base import PAIRS, Architecture, Family, Flag, Probability, Size
from memcalc.layers.base import Frozen, Layer, Module, Stack
from memcalc.layers.basic import Conv, Dropout, Embedding, Linear, Parameter, TiedLinear, layer_norm
from memcalc.layers.pointwise import Activation
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class WhisperConfig(Seq2SeqConfig):
    """source: transformers 5.23.0 models/whisper/configuration_whisper.py"""

    vocab_size: Size = 51865
    hidden_size: Size = 384
    num_hidden_layers: Size = 4
    num_attention_heads: Size = 6
    encoder_ffn_dim: Size = 1536
    decoder_layers: Size = 4
    decoder_attention_heads: Size = 6
    decoder_ffn_dim: Size = 1536
    dropout: Probability = 0.0
    num_mel_bins: Size = 80
    max_source_positions: Size = 1500
    max_target_positions: Size = 448
    classifier_proj_size: Size = 256
    use_weighted_layer_sum: Flag = False


def encoder(config: WhisperConfig) -> Module:
    """Two convolutions along time, the second of half the frames, sinusoidal positions that do not learn, the layers.

    source: transformers 5.23.0 models/whisper/modeling_whisper.py WhisperEncoder.__init__
    """
    hidden = config.hidden_size
    return Module(
        [
            ("conv1", Conv(config.num_mel_bins, hidden, (3,), padding=(1,))),
            ("", Activation("gelu")),
            ("conv2", Conv(hidden, hidden, (3,), stride=(2,), padding=(1,))),
            ("", Activation("gelu")),
            ("embed_positions", Frozen(Embedding(config.max_source_positions, hidden))),
            ("dropout", Dropout(config.dropout)),
            ("layers", Stack(block(config, decoder=False, norms="pre", key_bias=False), config.num_hidden_layers)),
            ("layer_norm", layer_norm(hidden)),
        ]
    )


def decoder(config: WhisperConfig) -> Module:
    """Words, learned positions, the layers.

    source: transformers 5.23.0 models/whisper/modeling_whisper.py WhisperDecoder.__init__
    """
    hidden = config.hidden_size
    return Module(
        [
            ("embed_tokens", Embedding(config.vocab_size, hidden)),
            ("embed_positions", Embedding(config.max_target_positions, hidden)),
            ("dropout", Dropout(config.dropout)),
            ("layers", Stack(block(config, decoder=True, norms="pre", key_bias=False), config.decoder_layers)),
            ("layer_norm", layer_norm(hidden)),
        ]
    )


def audio_classifier(config: WhisperConfig) -> Architecture:
    """The encoder, perhaps a learned mean over its layers, a projection and the classes.

    source: transformers 5.23.0 models/whisper/modeling_whisper.py WhisperForAudioClassification.__init__
    """
    projected = config.classifier_proj_size
    parts: list[tuple[str, Layer]] = [("encoder", encoder(config))]
    if config.use_weighted_layer_sum:
        # one weight for the embeddings too
        parts.append(("layer_weights", Parameter((config.num_hidden_layers + 1,))))
    parts += [("projector", Linear(config.hidden_size, projected)), ("classifier", Linear(projected, config.num_labels))]
    return Architecture(Module(parts, registered=("layer_weights",)))


def build(config: WhisperConfig, architecture: str) -> Architecture:
    """The body under its head."""
    kind = architecture.removeprefix("Whisper")
    if kind == "ForAudioClassification":
        return audio_classifier(config)
    sides: list[tuple[str, Layer]] = [("encoder", encoder(config)), ("decoder", decoder(config))]
    if kind == "Model":
        return Architecture(Module(sides))
    sizes, tied = (config.hidden_size, config.vocab_size), config.tie_word_embeddings
    head: Layer = TiedLinear(*sizes) if tied else Linear(*sizes, bias=False)
    body = Module(sides[1:] if kind == "ForCausalLM" else sides)
    shared = {"proj_out.weight": "model.decoder.embed_tokens.weight"} if tied else {}
    return Architecture(Module([("model", body), ("proj_out", head)]), shared)


def play(machine: Machine, architecture: str, config: WhisperConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    return whisper_forward(machine, architecture.removeprefix("Whisper"), config, root, batch)


FAMILY = Family(
    model_type="whisper",
    config=WhisperConfig,
    architectures=("WhisperForConditionalGeneration", "WhisperModel", "WhisperForCausalLM", "WhisperForAudioClassification"),
    usual="WhisperForConditionalGeneration",
    build=build,
    source="transformers 5.23.0 models/whisper/modeling_whisper.py",
    inputs=PAIRS,
    play=play,
    places=of_decoder,
    idle=under(WhisperForCausalLM=CROSS),
    caches=True,
)
