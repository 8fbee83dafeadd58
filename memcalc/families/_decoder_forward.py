"""How decoders run in transformers: the body, and the language model on it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.families._decoder import Names
from memcalc.families._forward import Batch, Context, causal_loss, causal_mask, last_position, positions, run_layers
from memcalc.families._head_losses import in_stead
from memcalc.families._rotary_forward import Rotary, turn_tables
from memcalc.layers.base import Module
from memcalc.layers.transformer import Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.policy import FLASH_ATTN
from memcalc.play.values import Value
from memcalc.records import dataclass, replace

if TYPE_CHECKING:
    from memcalc.families._alternating import Order

Masks = tuple[Value | None, Value | None]
"""Those of layers that attend to everything and of layers that slide."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a family's body runs.

    Attributes:
        layer: the order of a block's parts.
        rotary: its positions; by kind of layer where the kinds have frequencies of their own.
        window: the positions a layer looks back on; of the sliding layers, where kinds alternate.
        order: the kinds of the layers from first to last; None where all are alike.
        kinds: a layer of each kind.
        dropout: the name of the part that drops embeddings; ``""`` for one without a name, None for none.
        both_masks: whether the masks of both kinds are made whatever kinds there are (gemma2).
        one_mask: whether all kinds share one mask, as those that differ in their feed-forward alone do.
        placed_masks: whether masks of layers of several kinds are given the positions, to look for packed rows (not gpt_oss).
        masks: makes the masks of both kinds where they are other ones: (machine, positions, batch, dtype, eager).
    """

    layer: Callable[..., Value]
    rotary: Rotary | Mapping[str, Rotary] | None = None
    window: Count | None = None
    order: Callable[[Machine], Order] | None = None
    kinds: Mapping[str, Block] | None = None
    dropout: str | None = None
    both_masks: bool = True
    one_mask: bool = False
    placed_masks: bool = True
    masks: Callable[..., Masks] | None = None


def pre_norm(
    machine: Machine,
    block: Block,
    hidden: Value,
    context: Context,
    names: tuple[str, str, str, str] = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp"),
) -> Value:
    """source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaDecoderLayer.forward"""
    before_attention, attention, before_mlp, mlp = names
    context = replace(context, weights=[])  # "_", which holds the weights to the layer's end
    residual = hidden
    hidden = machine.call(before_attention, block.part(before_attention).play, machine, hidden)
    hidden = machine.call(attention, block.part(attention).play, machine, hidden, context)
    hidden = add(machine, residual, hidden)
    residual = hidden
    hidden = machine.call(before_mlp, block.part(before_mlp).play, machine, hidden)
    hidden = machine.call(mlp, block.part(mlp).play, machine, hidden)
    return add(machine, residual, hidden)


def body(machine: Machine, root: Module, batch: Batch, names: Names, style: Style, *, eager: bool) -> tuple[Value, Any]:
    """Embeddings, layers and the last normalisation; also the cache, which the output carries.

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaModel.forward
    """
    embeds = machine.call(names.embedding, root.part(names.embedding).play, machine, batch["input_ids"])
    return decoded(machine, root, batch, names, style, embeds, eager=eager)


def decoded(
    machine: Machine,
    root: Module,
    batch: Batch,
    names: Names,
    style: Style,
    embeds: Value,
    *,
    eager: bool,
    masks: Masks | None = None,
) -> tuple[Value, Any]:
    """The same from the embeddings on, under the masks that are given or made here."""
    flash = machine.policy.attention == FLASH_ATTN
    if flash and (eager or masks is not None or style.masks is not None or machine.cache is not None):
        raise NotModelledError("training.attention", FLASH_ATTN, "is not modelled of this model, or with a cache", "use auto")
    machine.flashed |= flash
    context = Context(eager=eager, flash=flash, window=style.window)
    given = batch.values.get("position_ids")
    context.place = place = positions(machine, batch.tokens) if given is None else given
    machine.heeded = style.masks is None and masks is None and (style.placed_masks or given is None)
    if style.order is not None and not style.one_mask:
        return _alternating(machine, root, batch, names, style, embeds, context, style.order(machine), masks)
    if style.window is None:
        context.mask = causal_mask(machine, place, batch, embeds.dtype, eager=eager)
    else:
        from memcalc.families._masks import window_mask

        context.mask = window_mask(machine, place, batch, embeds.dtype, style.window, eager=eager)
    if style.dropout:
        embeds = machine.call(style.dropout, root.part(style.dropout).play, machine, embeds)
    hidden = embeds
    if style.dropout == "":
        hidden = root.part("").play(machine, hidden)
    if isinstance(style.rotary, Rotary):
        turn_tables(machine, style.rotary, hidden.dtype, place, context)
    if style.order is None:
        hidden = run_layers(machine, names.layers, root.part(names.layers), style.layer, hidden, context)
    else:
        from memcalc.families._kinds_forward import run_kinds

        assert style.kinds is not None
        contexts = dict.fromkeys(style.kinds, context)
        hidden = run_kinds(machine, names.layers, style.kinds, style.order(machine), style.layer, hidden, contexts)
    hidden = machine.call(names.norm, root.part(names.norm).play, machine, hidden)
    return hidden, machine.cache


def _alternating(
    machine: Machine,
    root: Module,
    batch: Batch,
    names: Names,
    style: Style,
    hidden: Value,
    context: Context,
    order: Order,
    masks: Masks | None,
) -> tuple[Value, Any]:
    """Layers of several kinds, each under its own mask.

    source: transformers 5.23.0 models/gemma2/modeling_gemma2.py:Gemma2Model.forward
    """
    assert context.place is not None
    assert style.kinds is not None
    from memcalc.families._kinds_forward import kinds_in, run_kinds

    embeds, there = hidden, kinds_in(machine, order)
    full, slide = replace(context, window=None), context
    place = context.place if style.placed_masks else None
    make = style.masks or partial(_both_masks, style, there)
    full.mask, slide.mask = masks or make(machine, place, batch, embeds.dtype, eager=context.eager)
    contexts = {kind: slide if kind.endswith("sliding_attention") else full for kind in style.kinds}
    if isinstance(style.rotary, Rotary):
        turn_tables(machine, style.rotary, hidden.dtype, context.place, full)
        slide.cos, slide.sin = full.cos, full.sin
    elif style.rotary is not None:
        for kind in sorted(there):
            turn_tables(machine, style.rotary[kind], hidden.dtype, context.place, contexts[kind])
    hidden = run_kinds(machine, names.layers, style.kinds, order, style.layer, hidden, contexts)
    hidden = machine.call(names.norm, root.part(names.norm).play, machine, hidden)
    return hidden, machine.cache


def _both_masks(
    style: Style, there: Container[str], machine: Machine, place: Value, batch: Batch, dtype: str, *, eager: bool
) -> Masks:
    full = causal_mask(machine, place, batch, dtype, eager=eager)
    if not style.both_masks and "sliding_attention" not in there:
        return full, None
    from memcalc.families._masks import window_mask

    assert style.window is not None
    return full, window_mask(machine, place, batch, dtype, style.window, eager=eager)


def causal(machine: Machine, root: Module, batch: Batch, names: Names, style: Style, *, eager: bool) -> tuple[Value, Any]:
    """The language model: (loss, what its output holds besides).

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaForCausalLM.forward
    """
    hidden, cache = machine.call(names.body, body, machine, root.part(names.body), batch, names, style, eager=eager)
    if machine.cache is None and (fused := in_stead(machine, names.head, root, hidden, batch["labels"])) is not None:
        return fused, cache
    given = hidden if machine.cache is None else last_position(machine, hidden)
    logits = machine.call(names.head, root.part(names.head).play, machine, given)
    if root.has(""):  # what happens to the logits (gemma2, cohere)
        logits = root.part("").play(machine, logits)
    if machine.cache is not None:
        return logits, cache
    loss = causal_loss(machine, logits, batch["labels"])
    return loss, (logits, cache)


def headed_forward(
    machine: Machine,
    architecture: str,
    config: Any,
    root: Module,
    batch: Batch,
    names: Names,
    layer: Style | Callable[..., Value],
    *,
    width: Any = None,
    eager: bool = False,
) -> tuple[Value, Any]:
    """A decoder under the head its architecture names; the loss of the bare body is its output's mean.

    ``layer`` is how its body runs, or the order of its blocks where it is llama's with ``width`` dimensions of a head rotated;
    ``eager`` says that attention is written out whatever the job asks for.
    """
    style = layer if isinstance(layer, Style) else Style(layer, None if width is None else Rotary(width))
    eager = eager or machine.policy.attention == "eager"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return causal(machine, root, batch, names, style, eager=eager)

    def run(machine: Machine, part: Module, batch: Batch) -> Value:
        return body(machine, part, batch, names, style, eager=eager)[0]

    return other_heads(machine, architecture, config, root, batch, names, run)


def other_heads(
    machine: Machine,
    architecture: str,
    config: Any,
    root: Module,
    batch: Batch,
    names: Names,
    run: Callable[[Machine, Module, Batch], Value],
) -> tuple[Value, Any]:
    """The heads any decoder may carry beside the language model's, or the bare body.

    source: transformers 5.23.0 modeling_layers.py, GenericFor{SequenceClassification,TokenClassification,QuestionAnswering}
    """
    from memcalc.families._classic_heads import questions, sequences, tokens
    from memcalc.families._encoder_heads import bare, check_labels

    if architecture.endswith("ForSequenceClassification"):
        check_labels(machine, "ForSequenceClassification", config.num_labels)
        return sequences(machine, root, batch, names, run)
    if architecture.endswith("ForTokenClassification"):
        check_labels(machine, "ForTokenClassification", config.num_labels)
        return tokens(machine, root, batch, names, run, upcast=True)
    if architecture.endswith("ForQuestionAnswering"):
        return questions(machine, root, batch, names, run)
    return bare(machine, run(machine, root, batch))
