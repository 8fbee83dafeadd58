"""What encoders after BERT share: config, embeddings, post-norm layers, pooler, and the heads transformers hangs on them."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import Count
from memcalc.families.base import Architecture, FamilyConfig, Flag, MaybeZero, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer, Dropout, Embedding, Linear, Parameter, TiedLinear, layer_norm
from memcalc.layers.encoder import SummedEmbeddings, Transform
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Attention, Block

Part = tuple[str, Layer]


class EncoderConfig(FamilyConfig):
    """The keys of BERT that its descendants keep.

    source: transformers 5.23.0 models/bert/configuration_bert.py
    """

    vocab_size: Size = 30522
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Size = 512
    type_vocab_size: MaybeZero = 2
    tie_word_embeddings: Flag = True


class BertLikeConfig(EncoderConfig):
    """The same, for those that can stand as decoders too: BERT, RoBERTa, XLM-RoBERTa, ELECTRA."""

    classifier_dropout: Probability | None = None
    is_decoder: Flag = False
    add_cross_attention: Flag = False

    def check(self) -> tuple[str, str, str] | None:
        """Cross-attention is a decoder's."""
        if self.add_cross_attention and not self.is_decoder:
            return "add_cross_attention", "needs is_decoder = true", "set is_decoder, or leave it out"
        return super().check()

    @property
    def head_dropout(self) -> float:
        """The dropout before a classifier: its own, or the one of hidden states."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


def embeddings(config: EncoderConfig, width: Count, words: Layer | None = None) -> SummedEmbeddings:
    """Words, positions and token types, ``width`` features each, with the two int64 buffers of one row per position.

    ``words`` stands in for a table of their own.

    source: transformers 5.23.0 models/bert/modeling_bert.py BertEmbeddings.__init__
    """
    row = Buffer((1, config.max_position_embeddings), "int64")
    return SummedEmbeddings(
        tables=(
            ("word_embeddings", Embedding(config.vocab_size, width) if words is None else words),
            ("position_embeddings", Embedding(config.max_position_embeddings, width)),
            ("token_type_embeddings", Embedding(config.type_vocab_size, width)),
        ),
        norm=(("LayerNorm", layer_norm(width)),),
        buffers=(("position_ids", row), ("token_type_ids", row)),
        dropout=config.hidden_dropout_prob,
    )


def attention(config: BertLikeConfig, *, cross: bool = False) -> Attention:
    """BERT's attention, to itself or to an encoder."""
    heads = config.num_attention_heads
    return Attention(
        config.hidden_size, heads, heads, config.hidden_size // heads, bias=True, output_bias=True,
        names={"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"},
        dropout=config.attention_probs_dropout_prob, causal=config.is_decoder and not cross, cross=cross, upcast=False,
    )  # fmt: skip


def block(config: BertLikeConfig, mixer: Layer | None = None) -> Block:
    """One layer: attention, perhaps to an encoder as well, and the feed-forward, each normalised after its residual.

    source: transformers 5.23.0 models/bert/modeling_bert.py BertLayer.__init__
    """
    norm, dropout = layer_norm(config.hidden_size), Dropout(config.hidden_dropout_prob)
    mixers: list[Part] = [("attention", attention(config) if mixer is None else mixer)]
    if config.add_cross_attention:
        mixers.append(("crossattention", attention(config, cross=True)))
    parts: list[Part] = []
    for name, each in mixers:
        parts += [(name, each), (f"{name}.output.dropout", dropout), (f"{name}.output.LayerNorm", norm)]
    feed_forward = MLP(
        config.hidden_size, config.intermediate_size, names=("intermediate.dense", "output.dense"), activation=config.hidden_act
    )
    return Block((*parts, ("", feed_forward), ("output.dropout", dropout), ("output.LayerNorm", norm)), norms="post")


def encoder_body(config: BertLikeConfig, embedded: SummedEmbeddings, *, pooler: bool) -> Module:
    """Embeddings, layers and perhaps the pooler, as BertModel and RobertaModel have them."""
    parts: list[Part] = [
        ("embeddings", embedded),
        ("encoder.layer", Stack(block(config), config.num_hidden_layers)),
    ]
    if pooler:
        parts += [("pooler.dense", Linear(config.hidden_size, config.hidden_size)), ("pooler.activation", Activation("tanh"))]
    return Module(parts)


def vocabulary_head(
    config: EncoderConfig, transform: Part, *, at: str, words: str, width: Count | None = None
) -> tuple[Module, dict[str, str]]:
    """A masked language model's head, and what it ties: its matrix to the words, that matrix's bias to the one beside it.

    Args:
        config: gives the sizes, and whether the head is tied.
        transform: what stands before the matrix.
        at: the head's own name, for the names of what is tied.
        words: the name of the word embeddings' weight.
        width: features of a word where they are not ``hidden_size``.
    """
    sizes = config.hidden_size if width is None else width, config.vocab_size
    decoder: Layer = TiedLinear(*sizes, tied_bias=True) if config.tie_word_embeddings else Linear(*sizes)
    shared = {f"{at}.decoder.weight": words, f"{at}.decoder.bias": f"{at}.bias"}
    parts = [("bias", Parameter((config.vocab_size,), kind="linear")), transform, ("decoder", decoder)]
    return Module(parts), shared if config.tie_word_embeddings else {}


def classification_head(config: BertLikeConfig, activation: str) -> Module:
    """RoBERTa's and ELECTRA's head over a whole sequence: dropout, a matrix, an activation, dropout, the classes."""
    hidden, dropout = config.hidden_size, Dropout(config.head_dropout)
    return Module(
        [
            ("dropout", dropout),
            ("", Transform(("dense", Linear(hidden, hidden)), activation)),
            ("dropout", dropout),
            ("out_proj", Linear(hidden, config.num_labels)),
        ]
    )


def task_head(kind: str, hidden: Count, labels: Count, dropout: float) -> tuple[Part, ...]:
    """What the plain classifiers hang on a body: one score a choice, one a label, or one a label for each answer's bound."""
    if kind == "ForQuestionAnswering":
        return (("qa_outputs", Linear(hidden, labels)),)
    assert kind in ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"), kind
    rows = 1 if kind == "ForMultipleChoice" else labels
    return (("dropout", Dropout(dropout)), ("classifier", Linear(hidden, rows)))


def on_body(name: str, body: Layer, head: Iterable[Part], tied: dict[str, str] | None = None) -> Architecture:
    """A head beside a body of that name."""
    return Architecture(Module([(name, body), *head]), tied or {})
