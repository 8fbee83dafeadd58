"""ALBERT: a few groups of layers, each run many times, behind embeddings narrower than the hidden states."""

from __future__ import annotations

from functools import partial
from typing import Any

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError
from memcalc.families import _encoder_heads as heads
from memcalc.families._encoder import EncoderConfig, Part, embeddings, on_body, task_head, vocabulary_head
from memcalc.families._encoder_forward import bert_embeddings, context_of
from memcalc.families._encoder_heads import Output
from memcalc.families._forward import Batch, Context
from memcalc.families._idle import under
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family, Flag, Probability, Size
from memcalc.layers.base import Module, Stack
from memcalc.layers.basic import Dropout, Linear, layer_norm
from memcalc.layers.encoder import Reused, Transform
from memcalc.layers.pointwise import Activation
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.reshape import select
from memcalc.play.values import Value
from memcalc.records import replace


class AlbertConfig(EncoderConfig):
    """source: transformers 5.23.0 models/albert/configuration_albert.py"""

    vocab_size: Size = 30000
    embedding_size: Size = 128
    hidden_size: Size = 4096
    num_hidden_layers: Size = 12
    num_hidden_groups: Size = 1
    inner_group_num: Size = 1
    num_attention_heads: Size = 64
    intermediate_size: Size = 16384
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: Probability = 0.0
    attention_probs_dropout_prob: Probability = 0.0
    classifier_dropout_prob: Probability = 0.1
    tie_word_embeddings: Flag = True


def block(config: AlbertConfig) -> Block:
    """One layer; every norm comes after its residual.

    source: transformers 5.23.0 models/albert/modeling_albert.py AlbertLayer.__init__, AlbertAttention.__init__
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    attention = Attention(
        hidden, heads, heads, hidden // heads, bias=True, output_bias=True, dropout=config.attention_probs_dropout_prob,
        names={"q": "query", "k": "key", "v": "value", "o": "dense"}, causal=False, upcast=False,
    )  # fmt: skip
    norm, dropout = layer_norm(hidden), Dropout(config.hidden_dropout_prob)
    return Block(
        (
            ("attention", attention),
            ("attention.output_dropout", dropout),
            ("attention.LayerNorm", norm),
            ("", MLP(hidden, config.intermediate_size, names=("ffn", "ffn_output"), activation=config.hidden_act)),
            ("dropout", dropout),
            ("full_layer_layer_norm", norm),
        ),
        norms="post",
        registered=("full_layer_layer_norm",),
    )


def body(config: AlbertConfig, *, pooler: bool) -> Module:
    """Embeddings, the matrix that widens them, the groups, and perhaps a pooler.

    source: transformers 5.23.0 models/albert/modeling_albert.py AlbertTransformer.forward, AlbertModel.__init__
    """
    group = Stack(block(config), config.inner_group_num)
    groups = Stack(Module([("albert_layers", group)]), config.num_hidden_groups)
    parts: list[Part] = [
        ("embeddings", embeddings(config, config.embedding_size)),
        ("encoder.embedding_hidden_mapping_in", Linear(config.embedding_size, config.hidden_size)),
        # every pass is a whole group, inner layers and all
        ("encoder.albert_layer_groups", Reused(groups, config.num_hidden_layers)),
    ]
    if pooler:
        parts += [("pooler", Linear(config.hidden_size, config.hidden_size)), ("pooler_activation", Activation("tanh"))]
    return Module(parts)


def predictions(config: AlbertConfig) -> tuple[Module, dict[str, str]]:
    """The head over the vocabulary, which narrows first, and what it ties.

    source: transformers 5.23.0 models/albert/modeling_albert.py AlbertMLMHead.__init__
    """
    width = config.embedding_size
    norm = ("LayerNorm", layer_norm(width))
    transform = Transform(("dense", Linear(config.hidden_size, width)), config.hidden_act, norm, norm_first=True)
    words = "albert.embeddings.word_embeddings.weight"
    return vocabulary_head(config, ("", transform), at="predictions", words=words, width=width)


POOLED = ("Model", "ForPreTraining", "ForSequenceClassification", "ForMultipleChoice")
"""The heads whose body keeps its pooler (modeling_albert.py: add_pooling_layer)."""


def build(config: AlbertConfig, architecture: str) -> Architecture:
    """The encoder under its head."""
    kind = architecture.removeprefix("Albert")
    encoder = body(config, pooler=kind in POOLED)
    dropout = config.classifier_dropout_prob
    if kind == "Model":
        return Architecture(encoder)
    if kind in ("ForMaskedLM", "ForPreTraining"):
        head, tied = predictions(config)
        parts: list[Part] = [("predictions", head)]
        if kind == "ForPreTraining":
            order = Module([("dropout", Dropout(dropout)), ("classifier", Linear(config.hidden_size, config.num_labels))])
            parts.append(("sop_classifier", order))
        return on_body("albert", encoder, parts, tied)
    return on_body("albert", encoder, task_head(kind, config.hidden_size, config.num_labels, dropout))


def layer(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/albert/modeling_albert.py:AlbertLayer.forward"""
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    attention_output = machine.call("attention", attended, machine, block, hidden, context)
    ffn_output = block.part("").play(machine, attention_output)
    normed = add(machine, ffn_output, attention_output)
    return machine.call("full_layer_layer_norm", block.part("full_layer_layer_norm").play, machine, normed)  # type: ignore[no-any-return]


def attended(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/albert/modeling_albert.py:AlbertAttention.forward"""
    out = block.part("attention").play(machine, hidden, context)
    out = block.part("attention.output_dropout").play(machine, out)
    return machine.call("LayerNorm", block.part("attention.LayerNorm").play, machine, add(machine, hidden, out))  # type: ignore[no-any-return]


def passes(machine: Machine, config: AlbertConfig, groups: Stack, hidden: Value, context: Context) -> Value:
    """The groups, one of them at each pass; those of a single group are alike between the first and the last two.

    Backward begins with the last, which leaves a bias's gradient as a view, and the one before it, which adds to that out of
    place; from then on gradients are added in place.

    source: transformers 5.23.0 models/albert/modeling_albert.py:AlbertTransformer.forward
    """
    box, count = [hidden], config.num_hidden_layers
    del hidden

    def step(group: int) -> None:
        box[0] = machine.call(f"encoder.albert_layer_groups.{group}", inner, machine, groups.layer, box[0], context)

    if machine.decide(config.num_hidden_groups == 1) and not machine.unrolled and machine.decide(count > 4):
        step(0)
        machine.repeated(count - 3, lambda: step(0), box)
        step(0)
        step(0)
        return box.pop()
    place = 0
    while machine.decide(place < count):
        step(_group_of(machine, place, count, config.num_hidden_groups))
        place += 1
    return box.pop()


def _group_of(machine: Machine, place: int, count: Count, groups: Count) -> int:
    """The group that runs at a pass, by the very division of floats that the module makes."""
    index = machine.each(lambda passes, number: int(place / (passes / number)), count, groups)
    group = 0
    while machine.decide(index > group):
        group += 1
    return group


def inner(machine: Machine, group: Any, hidden: Value, context: Context) -> Value:
    """The layers of one group (AlbertLayerGroup.forward)."""
    stack, place = group.part("albert_layers"), 0
    while machine.decide(place < stack.count):
        hidden = machine.call(f"albert_layers.{place}", layer, machine, stack.layer, hidden, context)
        place += 1
    return hidden


def encoder(machine: Machine, root: Module, ids: Value, *, config: AlbertConfig) -> tuple[Value, Value | None]:
    """source: transformers 5.23.0 models/albert/modeling_albert.py:AlbertModel.forward"""
    embedded = machine.call("embeddings", bert_embeddings, machine, root.part("embeddings"), ids)
    context = context_of(machine, ids, embedded, decoder=False)
    name = "encoder.embedding_hidden_mapping_in"
    hidden = machine.call(name, root.part(name).play, machine, embedded)
    given = [hidden]
    del hidden  # the only name for them, which the first layer's result takes
    hidden = passes(machine, config, root.part("encoder.albert_layer_groups").layer, given.pop(), context)
    if not root.has("pooler"):
        return hidden, None
    pooled = machine.call("pooler", root.part("pooler").play, machine, select(machine, hidden, 1))
    return hidden, root.part("pooler_activation").play(machine, pooled)


def play(machine: Machine, architecture: str, config: AlbertConfig, root: Any, batch: Batch) -> Output:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/albert/modeling_albert.py, each class's forward

    Raises:
        InputError: activation checkpointing, which this family's modules do not have.
        NotModelledError: layers that are wrapped from outside, of which one runs many times here.
    """
    mode = machine.policy.checkpointing
    if machine.policy.every:
        rule = "is not modelled where one layer runs many times, as ALBERT's do"
        raise NotModelledError("training.activation_checkpointing", f"every-{machine.policy.every}", rule, "use none")
    if mode != "none":
        rule = f"is refused ({architecture} does not support gradient checkpointing)"
        raise InputError("training.activation_checkpointing", mode, rule, "use none")
    kind, body = architecture.removeprefix("Albert"), partial(encoder, config=config)
    if kind == "Model":
        return heads.bare(machine, *body(machine, root, batch["input_ids"]))
    if kind in heads.TASKS:
        return heads.task(machine, root, "albert", body, kind, config.num_labels, batch)
    hidden, pooled = machine.call("albert", body, machine, root.part("albert"), batch["input_ids"])
    scores = machine.call("predictions", heads.vocabulary, machine, root.part("predictions"), "", hidden)
    if kind == "ForMaskedLM":
        return heads.scored(machine, scores, batch["labels"])
    heads.check_labels(machine, kind, config.num_labels)  # sop_scores.view(-1, 2)
    pair = machine.call("sop_classifier", heads.classified, machine, root.part("sop_classifier"), pooled)
    return heads.two(machine, scores, batch["labels"], pair, batch["sentence_order_label"])


FAMILY = Family(
    model_type="albert",
    config=AlbertConfig,
    architectures=(
        "AlbertForMaskedLM",
        "AlbertModel",
        "AlbertForPreTraining",
        "AlbertForSequenceClassification",
        "AlbertForTokenClassification",
        "AlbertForQuestionAnswering",
        "AlbertForMultipleChoice",
    ),
    usual="AlbertForMaskedLM",
    build=build,
    source="transformers 5.23.0 models/albert/modeling_albert.py",
    play=play,
    places=learned,
    idle=under(AlbertModel=("pooler",)),  # the loss is of the last states
)
