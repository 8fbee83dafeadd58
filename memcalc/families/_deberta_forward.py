"""How DeBERTa v2 runs in transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.families import _encoder_heads as heads
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch, run_layers
from memcalc.layers.base import Maybe, Module
from memcalc.layers.disentangled import Distances, relative_positions
from memcalc.layers.encoder import SummedEmbeddings
from memcalc.layers.post_norm import bert_layer
from memcalc.play import matmul as products
from memcalc.play.indexing import gather
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, compare, mul, to
from memcalc.play.reshape import expand, select, unsqueeze
from memcalc.play.values import Value

WORDS = "deberta.embeddings.word_embeddings.weight"


def embeddings(machine: Machine, layer: SummedEmbeddings, ids: Value, types: Value, mask: Value) -> Value:
    """source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py:DebertaV2Embeddings.forward"""
    words = embedded = _rows(machine, layer, "word_embeddings", ids)
    if any(name == "position_embeddings" for name, _ in layer.tables):
        positions = _rows(machine, layer, "position_embeddings", machine.constant((1, ids.shape[1]), "int64"))
        embedded = add(machine, embedded, positions)
    else:
        positions = machine.like(words, "zeros_like")
    token_types: Maybe = layer.part("token_type_embeddings")
    if machine.decide(token_types.condition):
        kinds = machine.call("token_type_embeddings", _layer(token_types).play, machine, types)
        embedded = add(machine, embedded, kinds)
    wider: Maybe = layer.part("embed_proj")
    if machine.decide(wider.condition):
        embedded = machine.call("embed_proj", _layer(wider).play, machine, embedded)
    embedded = machine.call("LayerNorm", layer.part("LayerNorm").play, machine, embedded)
    mask = to(machine, unsqueeze(machine, mask, 2), embedded.dtype)
    embedded = mul(machine, embedded, mask)
    return layer.dropped(machine, embedded)


def _layer(maybe: Maybe) -> Any:
    return maybe.layer


def _rows(machine: Machine, layer: SummedEmbeddings, table: str, ids: Value) -> Value:
    return machine.call(table, layer.part(table).play, machine, ids)  # type: ignore[no-any-return]


def encoder(machine: Machine, root: Module, ids: Value, *, config: Any) -> tuple[Value, None]:
    """Embeddings and layers; what each layer gave is held until the body is done.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py: DebertaV2Model.forward, DebertaV2Encoder.forward

    Raises:
        NotModelledError: a convolution beside the first layer.
    """
    if machine.decide(config.conv_kernel_size > 0):
        raise NotModelledError(
            "model.conv_kernel_size", config.conv_kernel_size, "is a convolution beside the first layer, which is not played",
            "use engine trace",
        )  # fmt: skip
    ends = machine.new((ids.shape[0], 2), "int64", "index.Tensor")  # asked for padding (warn_if_padding_and_no_attention_mask)
    padding = compare(machine, ends)
    found = machine.new((), "bool", "any")
    del ends, padding, found
    mask = machine.new(ids.shape, "float32", "ones")
    types = machine.new(ids.shape, "int64", "zeros")
    embedded = machine.call("embeddings", embeddings, machine, root.part("embeddings"), ids, types, mask)
    hidden = machine.call("encoder", _layers, machine, root, embedded, mask, config)
    del mask, types
    return hidden, None


def _layers(machine: Machine, root: Module, embedded: Value, mask: Value, config: Any) -> Value:
    rows, tokens = mask.shape
    context = Distances(mask=machine.new((rows, 1, tokens, tokens), "float32", "mul.Tensor"))
    if config.relative_attention:
        context.relative = relative_positions(machine, tokens, buckets=machine.decide(config.position_buckets > 0))
        context.table = machine.call("", _table, machine, root)
    kept = [embedded]
    return run_layers(machine, "layer", root.part("encoder.layer"), bert_layer, embedded, context, kept=kept)


def _table(machine: Machine, root: Module) -> Value:
    """The table of distances itself, normalised where that is asked for (DebertaV2Encoder.get_rel_embedding)."""
    table = root.part("encoder.rel_embeddings")
    weight = machine.call("rel_embeddings", machine.parameter, "weight", (table.rows, table.width), "embedding")
    if not root.has("encoder.LayerNorm"):
        return weight  # type: ignore[no-any-return]
    return machine.call("LayerNorm", root.part("encoder.LayerNorm").play, machine, weight)  # type: ignore[no-any-return]


def on_words(machine: Machine, head: Module, hidden: Value) -> Value:
    """Scores by the words' own table (DebertaV2LMPredictionHead.forward)."""
    transform, words = (layer for name, layer in head.parts if not name)
    hidden = transform.play(machine, hidden)  # type: ignore[attr-defined]
    scores = products.linear(machine, hidden, machine.parameters[WORDS])
    bias = machine.parameter("bias", (words.out_features,), "linear")  # type: ignore[attr-defined]
    return add(machine, scores, bias)


def pooled(machine: Machine, root: Module, hidden: Value) -> Value:
    """The first token through a matrix of its own (ContextPooler.forward)."""
    token = select(machine, hidden, 1)
    token = root.part("dropout").play(machine, token)
    token = machine.call("dense", root.part("dense").play, machine, token)
    return root.part("activation").play(machine, token)  # type: ignore[no-any-return]


def by_context(machine: Machine, root: Module, hidden: Value, others: Any) -> Value:
    """Scores by the pooled first token (DebertaV2ForSequenceClassification.forward)."""
    return heads.classified(machine, root, machine.call("pooler", pooled, machine, root.part("pooler"), hidden))


def labelled(machine: Machine, root: Module, ids: Value, labels: Value, body: Any) -> Output:
    """A class of each sequence that has one (DebertaV2ForSequenceClassification.forward)."""
    hidden, _ = machine.call("deberta", body, machine, root.part("deberta"), ids)
    logits = by_context(machine, root, hidden, None)
    rows: Count = labels.shape[0]
    there = compare(machine, labels, operator="ge.Scalar")
    label_index = machine.new((rows, 1), "int64", "nonzero")
    del there
    labelled_logits = gather(machine, logits, expand(machine, label_index, (rows, logits.shape[1])))
    labels = machine.new((rows,), "int64", "gather")
    return cross_entropy(machine, to(machine, labelled_logits, "float32"), labels), logits


def play(machine: Machine, architecture: str, config: Any, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/deberta_v2/modeling_deberta_v2.py, each class's forward

    Raises:
        InputError: a kernel is asked for.
    """
    asked = machine.policy.attention
    if asked not in ("auto", "eager"):
        raise InputError("training.attention", asked, "cannot serve this model (its attention is written out)", "use auto")
    kind, body = architecture.removeprefix("DebertaV2"), partial(encoder, config=config)
    if kind == "Model":
        return heads.bare(machine, *body(machine, root, batch["input_ids"]))
    if kind == "ForSequenceClassification":
        heads.check_labels(machine, kind, config.num_labels)
        return labelled(machine, root, batch["input_ids"], batch["labels"], body)
    if kind in heads.TASKS:
        return heads.task(machine, root, "deberta", body, kind, config.num_labels, batch, by_context)
    hidden, _ = machine.call("deberta", body, machine, root.part("deberta"), batch["input_ids"])
    if config.legacy:
        scores = machine.call("cls.predictions", heads.vocabulary, machine, root.part("cls.predictions"), "transform", hidden)
    else:
        at = "lm_predictions.lm_head"
        scores = machine.call(at, on_words, machine, root.part(at), hidden)
    return heads.scored(machine, scores, batch["labels"])
