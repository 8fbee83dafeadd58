"""BART: post-norm encoder and decoder, each with positions of its own and the words' table in common."""

from __future__ import annotations

from typing import Any

from memcalc.families._bart_forward import play as bart_forward
from memcalc.families._forward import Batch
from memcalc.families._idle import CROSS, under
from memcalc.families._places import both_sides
from memcalc.families._seq2seq import Seq2SeqConfig, block
from memcalc.families.base import PAIRS, Architecture, Family, MaybeZero, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer, Dropout, Embedding, Linear, TiedEmbedding, TiedLinear, layer_norm
from memcalc.layers.encoder import Transform
from memcalc.play.machine import Machine
from memcalc.play.values import Value


class BartConfig(Seq2SeqConfig):
    """source: transformers 5.23.0 models/bart/configuration_bart.py"""

    vocab_size: Size = 50265
    hidden_size: Size = 1024
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 16
    encoder_ffn_dim: Size = 4096
    decoder_layers: Size = 12
    decoder_attention_heads: Size = 16
    decoder_ffn_dim: Size = 4096
    dropout: Probability = 0.1
    classifier_dropout: Probability = 0.0
    max_position_embeddings: Size = 1024
    num_labels: MaybeZero = 3


RESERVED = 2
"""Rows before the first position (modeling_bart.py: BartLearnedPositionalEmbedding.offset)."""


def side(config: BartConfig, *, decoder: bool, words: Layer) -> Module:
    """The encoder or the decoder over ``words``.

    source: transformers 5.23.0 models/bart/modeling_bart.py BartEncoder.__init__, BartDecoder.__init__
    """
    hidden = config.hidden_size
    depth = config.decoder_layers if decoder else config.num_hidden_layers
    return Module(
        [
            ("embed_tokens", words),
            ("embed_positions", Embedding(config.max_position_embeddings + RESERVED, hidden)),
            ("layernorm_embedding", layer_norm(hidden)),
            ("dropout", Dropout(config.dropout)),
            ("layers", Stack(block(config, decoder=decoder, norms="post"), depth)),
        ],
        # built before the normalisation of the embeddings, which runs before them
        registered=("embed_tokens", "embed_positions", "layers"),
    )


def body(config: BartConfig, at: str) -> tuple[Module, dict[str, str]]:
    """The words' table, encoder and decoder, and what they share; untied, each side has a table as well.

    source: transformers 5.23.0 models/bart/modeling_bart.py BartModel.__init__
    """
    table = Embedding(config.vocab_size, config.hidden_size)
    tied = config.tie_word_embeddings
    words: Layer = TiedEmbedding(config.vocab_size, config.hidden_size) if tied else table
    both = Module(
        [
            ("shared", table),
            ("encoder", side(config, decoder=False, words=words)),
            ("decoder", side(config, decoder=True, words=words)),
        ]
    )
    shared = {f"{at}{name}.embed_tokens.weight": f"{at}shared.weight" for name in ("encoder", "decoder")}
    return both, shared if tied else {}


def language_head(config: BartConfig) -> Layer:
    """The matrix over the vocabulary, tied or not."""
    sizes = config.hidden_size, config.vocab_size
    return TiedLinear(*sizes) if config.tie_word_embeddings else Linear(*sizes, bias=False)


def causal(config: BartConfig) -> Architecture:
    """The decoder alone under a head.

    source: transformers 5.23.0 models/bart/modeling_bart.py BartForCausalLM.__init__
    """
    words = Embedding(config.vocab_size, config.hidden_size)
    tied = {"lm_head.weight": "model.decoder.embed_tokens.weight"} if config.tie_word_embeddings else {}
    decoder = side(config, decoder=True, words=words)
    return Architecture(Module([("model.decoder", decoder), ("lm_head", language_head(config))]), tied)


def build(config: BartConfig, architecture: str) -> Architecture:
    """The body under its head."""
    kind, hidden = architecture.removeprefix("Bart"), config.hidden_size
    if kind == "ForCausalLM":
        return causal(config)
    both, tied = body(config, "" if kind == "Model" else "model.")
    if kind == "Model":
        return Architecture(both, tied)
    if kind == "ForQuestionAnswering":
        # two answers whatever the config says (modeling_bart.py: BartForQuestionAnswering.__init__)
        return Architecture(Module([("model", both), ("qa_outputs", Linear(hidden, 2))]), tied)
    if kind == "ForSequenceClassification":
        transform, dropout = Transform(("dense", Linear(hidden, hidden)), "tanh"), Dropout(config.classifier_dropout)
        classes = Linear(hidden, config.num_labels)
        head = Module([("dropout", dropout), ("", transform), ("dropout", dropout), ("out_proj", classes)])
        return Architecture(Module([("model", both), ("classification_head", head)]), tied)
    assert kind == "ForConditionalGeneration", kind
    if config.tie_word_embeddings:
        tied = {**tied, "lm_head.weight": "model.shared.weight"}
    bias = Buffer((1, config.vocab_size))
    return Architecture(Module([("model", both), ("lm_head", language_head(config)), ("final_logits_bias", bias)]), tied)


def play(machine: Machine, architecture: str, config: BartConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    return bart_forward(machine, architecture.removeprefix("Bart"), config, root, batch)


FAMILY = Family(
    model_type="bart",
    config=BartConfig,
    architectures=(
        "BartForConditionalGeneration",
        "BartModel",
        "BartForCausalLM",
        "BartForSequenceClassification",
        "BartForQuestionAnswering",
    ),
    usual="BartForConditionalGeneration",
    build=build,
    source="transformers 5.23.0 models/bart/modeling_bart.py",
    inputs=PAIRS,
    play=play,
    places=both_sides,
    idle=under(BartForCausalLM=CROSS),
    caches=True,
)
