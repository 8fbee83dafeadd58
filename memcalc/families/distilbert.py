"""DistilBERT: BERT's layers without token types or a pooler."""

from __future__ import annotations

from typing import Any, ClassVar

from memcalc.families import _encoder_heads as heads
from memcalc.families._encoder import Part, on_body, task_head
from memcalc.families._encoder_forward import context_of
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch, Context, run_layers
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer, Dropout, Embedding, Linear, TiedLinear, layer_norm
from memcalc.layers.encoder import SummedEmbeddings, Transform
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.reshape import select
from memcalc.play.values import Value
from memcalc.records import replace


class DistilBertConfig(FamilyConfig):
    """source: transformers 5.23.0 models/distilbert/configuration_distilbert.py"""

    aliases: ClassVar = {
        "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "intermediate_size": "hidden_dim",
    }  # fmt: skip

    vocab_size: Size = 30522
    hidden_size: Size = 768
    num_hidden_layers: Size = 6
    num_attention_heads: Size = 12
    hidden_dim: Size = 4 * 768
    activation: str = "gelu"
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    qa_dropout: Probability = 0.1
    seq_classif_dropout: Probability = 0.2
    max_position_embeddings: Size = 512
    tie_word_embeddings: Flag = True


def block(config: DistilBertConfig) -> Block:
    """One layer; every norm comes after its residual.

    source: transformers 5.23.0 models/distilbert/modeling_distilbert.py TransformerBlock.__init__
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    attention = Attention(
        hidden, heads, heads, hidden // heads, bias=True, output_bias=True, dropout=config.attention_dropout, causal=False,
        upcast=False, names={"q": "q_lin", "k": "k_lin", "v": "v_lin", "o": "out_lin"},
    )  # fmt: skip
    return Block(
        (
            ("attention", attention),
            ("sa_layer_norm", layer_norm(hidden)),
            ("ffn", MLP(hidden, config.hidden_dim, names=("lin1", "lin2"), activation=config.activation)),
            ("ffn.dropout", Dropout(config.dropout)),
            ("output_layer_norm", layer_norm(hidden)),
        ),
        norms="post",
    )


def body(config: DistilBertConfig) -> Module:
    """Words and positions, then the layers.

    A sinusoidal position table is an ordinary parameter: the flag that freezes it is set on the tensor it is copied from
    (modeling_distilbert.py: DistilBertPreTrainedModel._init_weights).
    """
    hidden, positions = config.hidden_size, config.max_position_embeddings
    embeddings = SummedEmbeddings(
        tables=(
            ("word_embeddings", Embedding(config.vocab_size, hidden)),
            ("position_embeddings", Embedding(positions, hidden)),
        ),
        norm=(("LayerNorm", layer_norm(hidden)),),
        buffers=(("position_ids", Buffer((1, positions), "int64")),),
        dropout=config.dropout,
    )
    return Module([("embeddings", embeddings), ("transformer.layer", Stack(block(config), config.num_hidden_layers))])


def masked_head(config: DistilBertConfig) -> tuple[tuple[Part, ...], dict[str, str]]:
    """The head over the vocabulary, and what it ties.

    source: transformers 5.23.0 models/distilbert/modeling_distilbert.py DistilBertForMaskedLM.__init__
    """
    hidden, tied = config.hidden_size, config.tie_word_embeddings
    transform = Transform(
        ("vocab_transform", Linear(hidden, hidden)), config.activation, ("vocab_layer_norm", layer_norm(hidden))
    )
    projector: Layer = TiedLinear(hidden, config.vocab_size, bias=True) if tied else Linear(hidden, config.vocab_size)
    shared = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"} if tied else {}
    return (("", transform), ("vocab_projector", projector)), shared


def build(config: DistilBertConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    kind = architecture.removeprefix("DistilBert")
    if kind == "Model":
        return Architecture(body(config))
    if kind == "ForMaskedLM":
        return on_body("distilbert", body(config), *masked_head(config))
    pooled = kind in ("ForSequenceClassification", "ForMultipleChoice")
    dropout = config.seq_classif_dropout if pooled else config.dropout
    head = task_head(kind, config.hidden_size, config.num_labels, dropout)
    if pooled:
        head = (("pre_classifier", Linear(config.hidden_size, config.hidden_size)), ("activation", Activation("relu")), *head)
    if kind == "ForQuestionAnswering":
        head = (("dropout", Dropout(config.qa_dropout)), *head)
    return on_body("distilbert", body(config), head)


def embeddings(machine: Machine, layer: SummedEmbeddings, ids: Value) -> Value:
    """source: transformers 5.23.0 models/distilbert/modeling_distilbert.py:Embeddings.forward"""
    words = machine.call("word_embeddings", layer.part("word_embeddings").play, machine, ids)
    position_ids = machine.constant((1, ids.shape[1]), "int64")
    positions = machine.call("position_embeddings", layer.part("position_embeddings").play, machine, position_ids)
    embedded = add(machine, words, positions)
    embedded = machine.call("LayerNorm", layer.part("LayerNorm").play, machine, embedded)
    return layer.dropped(machine, embedded)


def layer(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/distilbert/modeling_distilbert.py:TransformerBlock.forward"""
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    attention_output = machine.call("attention", block.part("attention").play, machine, hidden, context)
    normed = add(machine, attention_output, hidden)
    attention_output = machine.call("sa_layer_norm", block.part("sa_layer_norm").play, machine, normed)
    del normed
    ffn_output = machine.call("ffn", _fed, machine, block, attention_output)
    normed = add(machine, ffn_output, attention_output)
    return machine.call("output_layer_norm", block.part("output_layer_norm").play, machine, normed)  # type: ignore[no-any-return]


def _fed(machine: Machine, block: Block, hidden: Value) -> Value:
    hidden = block.part("ffn").play(machine, hidden)
    return block.part("ffn.dropout").play(machine, hidden)  # type: ignore[no-any-return]


def encoder(machine: Machine, root: Module, ids: Value) -> tuple[Value, None]:
    """source: transformers 5.23.0 models/distilbert/modeling_distilbert.py:DistilBertModel.forward"""
    embedded = machine.call("embeddings", embeddings, machine, root.part("embeddings"), ids)
    context = context_of(machine, ids, embedded, decoder=False)
    return run_layers(machine, "transformer.layer", root.part("transformer.layer"), layer, embedded, context), None


def by_first_token(machine: Machine, root: Module, hidden: Value, pooled: Any) -> Value:
    """Scores by the first token (DistilBertForSequenceClassification.forward)."""
    token = select(machine, hidden, 1)
    token = machine.call("pre_classifier", root.part("pre_classifier").play, machine, token)
    token = root.part("activation").play(machine, token)
    return heads.classified(machine, root, token)


def play(machine: Machine, architecture: str, config: DistilBertConfig, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/distilbert/modeling_distilbert.py, each class's forward
    """
    kind = architecture.removeprefix("DistilBert")
    if kind == "Model":
        return heads.bare(machine, *encoder(machine, root, batch["input_ids"]))
    if kind in heads.TASKS:
        return heads.task(machine, root, "distilbert", encoder, kind, config.num_labels, batch, by_first_token)
    hidden, _ = machine.call("distilbert", encoder, machine, root.part("distilbert"), batch["input_ids"])
    logits = root.part("").play(machine, hidden)
    logits = machine.call("vocab_projector", root.part("vocab_projector").play, machine, logits)
    return heads.scored(machine, logits, batch["labels"])


FAMILY = Family(
    model_type="distilbert",
    config=DistilBertConfig,
    architectures=(
        "DistilBertForMaskedLM",
        "DistilBertModel",
        "DistilBertForSequenceClassification",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
        "DistilBertForMultipleChoice",
    ),
    usual="DistilBertForMaskedLM",
    build=build,
    source="transformers 5.23.0 models/distilbert/modeling_distilbert.py",
    play=play,
    places=learned,
)
