"""GPT-2: learned positions, matrices stored ``(in, out)``, query, key and value in one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memcalc.errors import NotModelledError
from memcalc.families._classic_forward import learned_body, one_after_another
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._encoder_heads import scores_loss
from memcalc.families._forward import Batch, Context
from memcalc.families._idle import under
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Dropout, Embedding, Linear, layer_norm
from memcalc.layers.cross_attention import FusedCrossAttention
from memcalc.layers.fused import attended, cached, merged, plain, projected, thirds
from memcalc.layers.transformer import MLP, Block, FusedAttention
from memcalc.play.indexing import gather
from memcalc.play.losses import cross_entropy
from memcalc.play.machine import Machine
from memcalc.play.reshape import contiguous, expand, merge_dims, narrow, select, split_dim, unsqueeze
from memcalc.play.values import Value

NAMES = Names("transformer", "wte", "h", "ln_f", token_head="classifier")


class GPT2Config(FamilyConfig):
    """source: transformers 5.23.0 models/gpt2/configuration_gpt2.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "n_ctx": "max_position_embeddings",
    }

    vocab_size: Size = 50257
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size | None = None
    max_position_embeddings: Size = 1024
    activation_function: str = "gelu_new"
    resid_pdrop: Probability = 0.1
    embd_pdrop: Probability = 0.1
    attn_pdrop: Probability = 0.1
    classifier_dropout: Probability | None = None
    hidden_dropout: Probability | None = None
    add_cross_attention: Flag = False
    reorder_and_upcast_attn: Flag = False
    summary_use_proj: Flag = True
    summary_proj_to_labels: Flag = True
    summary_first_dropout: Probability = 0.1
    tie_word_embeddings: Flag = True


def block(config: GPT2Config) -> Block:
    """One decoder layer, with attention to an encoder where the config asks for it."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    intermediate = 4 * hidden if config.intermediate_size is None else config.intermediate_size
    dropout, resid = config.attn_pdrop, Dropout(config.resid_pdrop)
    cross: tuple[tuple[str, Layer], ...] = (
        ("crossattention", FusedCrossAttention(hidden, heads, hidden // heads, transposed=True, dropout=dropout)),
        ("crossattention.resid_dropout", resid),
        ("ln_cross_attn", layer_norm(hidden)),
    )
    return Block(
        (
            ("ln_1", layer_norm(hidden)),
            ("attn", FusedAttention(hidden, heads, heads, hidden // heads, transposed=True, dropout=dropout)),
            ("attn.resid_dropout", resid),
            ("ln_2", layer_norm(hidden)),
            *(cross if config.add_cross_attention else ()),
            ("mlp", MLP(hidden, intermediate, transposed=True, activation=config.activation_function)),
            ("mlp.dropout", resid),
        )
    )


def build(config: GPT2Config, architecture: str) -> Architecture:
    """The decoder under its head."""
    hidden = config.hidden_size
    double = architecture == "GPT2DoubleHeadsModel"
    built = decoder_architecture(
        config, "GPT2LMHeadModel" if double else architecture, block(config), layer_norm(hidden), names=NAMES,
        before_layers=(
            ("wpe", Embedding(config.max_position_embeddings, hidden)),
            ("drop", Dropout(config.embd_pdrop)),
        ),
    )  # fmt: skip
    if not double:
        return built
    return Architecture(Module([("", built.root), ("multiple_choice_head", choice_head(config))]), built.tied)


def choice_head(config: GPT2Config) -> Layer:
    """The second head of GPT2DoubleHeadsModel, which sets ``num_labels`` to 1 whatever the config says.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py GPT2SequenceSummary.__init__
    """
    parts: list[tuple[str, Layer]] = [("first_dropout", Dropout(config.summary_first_dropout))]
    if config.summary_use_proj:
        classes = 1 if config.summary_proj_to_labels else config.hidden_size
        parts.insert(0, ("summary", Linear(config.hidden_size, classes)))
    return Module(parts)


def attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value | None]:
    """source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2Attention.forward"""
    layer = block.part("attn")
    query, key, value = thirds(machine, layer, projected(machine, layer, "qkv", hidden))
    key, value = cached(machine, key, value)
    out, weights = attended(machine, layer, query, key, value, context, plain)
    out = merged(machine, out)
    out = projected(machine, layer, "o", out)
    out = machine.call("resid_dropout", block.part("attn.resid_dropout").play, machine, out)
    return out, weights


def play(machine: Machine, architecture: str, config: GPT2Config, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    Raises:
        NotModelledError: written-out attention in another order, whose product is in FP32.
    """
    eager = machine.policy.attention == "eager"
    if eager and config.reorder_and_upcast_attn:
        key = "model.reorder_and_upcast_attn"
        raise NotModelledError(key, True, "is an order of attention that is not played", "use engine trace")

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        layer = one_after_another(attention)
        return learned_body(machine, root, batch, NAMES, layer, eager=eager, mask_first=False)

    if architecture == "GPT2DoubleHeadsModel":
        return double_heads(machine, root, batch, body)
    return classic_forward(machine, architecture, config, root, batch, NAMES, body)


def double_heads(machine: Machine, root: Module, batch: Batch, body: Any) -> tuple[Value, Any]:
    """The language model's loss, which is minimised, and the choice's, which the output holds.

    source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2DoubleHeadsModel.forward
    """
    whole, (rows, choices, tokens) = root.part(""), batch["input_ids"].shape
    ids = merge_dims(machine, batch["input_ids"], 0, 1)
    flat = Batch(rows * choices, tokens, {**batch.values, "input_ids": ids})
    hidden = machine.call("transformer", body, machine, whole.part("transformer"), flat)
    hidden = split_dim(machine, hidden, 0, (rows, choices))
    logits = machine.call("lm_head", whole.part("lm_head").play, machine, hidden)
    scores = machine.call("multiple_choice_head", _summary, machine, root.part("multiple_choice_head"), hidden, batch)
    choice_loss = cross_entropy(machine, scores, batch["mc_labels"])
    shifted = contiguous(machine, narrow(machine, logits, 2, tokens - 1))
    labels = contiguous(machine, narrow(machine, batch["labels"], 2, tokens - 1))
    return scores_loss(machine, shifted, labels), (choice_loss, logits, scores)


def _summary(machine: Machine, head: Module, hidden: Value, batch: Batch) -> Value:
    """source: transformers 5.23.0 models/gpt2/modeling_gpt2.py:GPT2SequenceSummary.forward"""
    rows, choices, _, width = hidden.shape
    index = unsqueeze(machine, unsqueeze(machine, batch["mc_token_ids"], 2), 3)
    out = select(machine, gather(machine, hidden, expand(machine, index, (rows, choices, 1, width))), 2)
    out = machine.call("first_dropout", head.part("first_dropout").play, machine, out)
    return select(machine, machine.call("summary", head.part("summary").play, machine, out), 2)


FAMILY = Family(
    model_type="gpt2",
    config=GPT2Config,
    architectures=(
        "GPT2LMHeadModel",
        "GPT2Model",
        "GPT2DoubleHeadsModel",
        "GPT2ForSequenceClassification",
        "GPT2ForTokenClassification",
        "GPT2ForQuestionAnswering",
    ),
    usual="GPT2LMHeadModel",
    build=build,
    source="transformers 5.23.0 models/gpt2/modeling_gpt2.py",
    play=play,
    places=learned,
    # its loss is the language model's alone: that of the choices is returned beside it
    idle=under(GPT2DoubleHeadsModel=("multiple_choice_head",)),
    caches=True,
)
