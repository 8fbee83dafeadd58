"""What decoder families share: embeddings, a list of layers, a final norm, and the heads transformers hangs on them."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.families.base import Architecture
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Dropout, Embedding, Linear, TiedLinear
from memcalc.records import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """How a family names the parts of its body."""

    body: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"
    token_head: str = "score"
    question_body: str = "transformer"


def decoder_architecture(
    config: Any,
    architecture: str,
    layer: Layer,
    norm: Layer,
    *,
    rotary: Layer | None = None,
    names: Names | None = None,
    before_layers: tuple[tuple[str, Layer], ...] = (),
    head_bias: bool = False,
    embedding: Layer | None = None,
    after_head: tuple[Layer, ...] = (),
    answers: Count = 2,
) -> Architecture:
    """A decoder body with the head that ``architecture`` names.

    ``layer`` is one layer, or a layer that already is a whole list (several kinds of :class:`Stack` in one); ``embedding``
    stands in for a plain table; ``after_head`` is what happens to the logits.
    """
    names = names or Names()
    layers = layer if isinstance(layer, Stack | Module) else Stack(layer, config.num_hidden_layers)
    body: list[tuple[str, Layer]] = [
        (names.embedding, Embedding(config.vocab_size, config.hidden_size) if embedding is None else embedding),
        *before_layers,
        (names.layers, layers),
        (names.norm, norm),
    ]
    if rotary is not None:
        body.append(("rotary_emb", rotary))
    return headed(config, architecture, Module(body), names, head_bias=head_bias, answers=answers, after_head=after_head)


def headed(
    config: Any,
    architecture: str,
    body: Layer,
    names: Names,
    *,
    head_bias: bool = False,
    width: Count | None = None,
    answers: Count = 2,
    after_head: tuple[Layer, ...] = (),
) -> Architecture:
    """The body alone, or under a language-model, classification or question-answering head.

    ``width`` is that of what the head reads where it is not ``hidden_size``; ``answers`` what a question-answering head says;
    ``after_head`` what happens to a language model's logits.
    """
    hidden = config.hidden_size if width is None else width
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        tied = {}
        head: Layer = Linear(hidden, config.vocab_size, head_bias)
        if config.tie_word_embeddings:
            tied = {f"{names.head}.weight": f"{names.body}.{names.embedding}.weight"}
            head = TiedLinear(hidden, config.vocab_size, head_bias)
        return Architecture(Module([(names.body, body), (names.head, head), *(("", layer) for layer in after_head)]), tied)
    if architecture.endswith("Model"):
        return Architecture(body)
    # source: transformers 5.23.0 modeling_layers.py, GenericFor{SequenceClassification,TokenClassification,QuestionAnswering}
    if architecture.endswith("ForSequenceClassification"):
        return Architecture(Module([(names.body, body), ("score", Linear(hidden, config.num_labels, bias=False))]))
    if architecture.endswith("ForTokenClassification"):
        head = Linear(hidden, config.num_labels, getattr(config, "token_classification_bias", True))
        dropout = Dropout(_classifier_dropout(config))
        return Architecture(Module([(names.body, body), ("dropout", dropout), (names.token_head, head)]))
    assert architecture.endswith("ForQuestionAnswering"), architecture
    return Architecture(Module([(names.question_body, body), ("qa_outputs", Linear(hidden, answers))]))


def _classifier_dropout(config: Any) -> float:
    """The dropout before a token classifier: its own key, the residual one where the config has that, or a tenth.

    source: transformers 5.23.0 modeling_layers.py GenericForTokenClassification.__init__
    """
    for key in ("classifier_dropout", "hidden_dropout"):
        if getattr(config, key, None) is not None:
            return float(getattr(config, key))
    return 0.1
