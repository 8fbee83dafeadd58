"""How attention runs: projections, rotation, the kernel, and what it is given by the model around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.play import attention as kernels
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, clamped_in_place, mul, neg
from memcalc.play.reshape import cat, contiguous, expand, merge_dims, narrow, split_dim, transpose, unsqueeze
from memcalc.play.values import Value
from memcalc.play.written_out import eager
from memcalc.records import dataclass

if TYPE_CHECKING:
    from memcalc.layers.transformer import Attention


@dataclass
class Context:
    """What a model hands to each of its layers.

    Attributes:
        mask: the attention mask; None where none is made.
        cos: of the rotary positions, ``(1, length, rotated)``; None without them.
        sin: likewise.
        window: the window of a layer that slides, as a cache of keys and values has it; None of any other.
        eager: whether attention is written out.
        flash: whether flash-attn's own kernels run, by ``place``.
        encoder: what an encoder gave, for attention to it.
        place: the positions, which layers are handed and a checkpoint keeps.
        bias: what is added to the scores for how far apart two positions are.
        weights: where written-out attention leaves its weights, for a layer that holds them to its end; None where none does.
    """

    mask: Value | None = None
    cos: Value | None = None
    sin: Value | None = None
    window: Count | None = None
    eager: bool = False
    flash: bool = False
    encoder: Value | None = None
    place: Value | None = None
    bias: Value | None = None
    weights: list[Value] | None = None


def separate(machine: Machine, layer: Attention, hidden: Value, context: Context) -> Value:
    """Queries, keys and values of three matrices.

    source: transformers 5.23.0 models/llama/modeling_llama.py:LlamaAttention.forward
    """
    from memcalc.layers.rotations import TURNS

    matrices, names = layer.matrices(), layer.names
    query, key, value = PROJECTIONS[layer.normed](machine, layer, hidden)
    held = None  # what locals hold beside the result
    if layer.rotary is not None:
        query, key, held = TURNS[layer.turn](machine, layer, query, key, context)
    if machine.cache is not None:
        key, value = machine.cache.update(machine, key, value, context.window)
    out = core(machine, layer, query, key, value, context)
    out = contiguous(machine, merge_dims(machine, out, 2, 3))
    made: Value = machine.call(names["o"], matrices["o"].play, machine, out)
    del held
    return made


Projected = tuple[Value, Value, Value]
"""Queries, keys and values, (batch, heads, length, head dimension)."""


def by_head(machine: Machine, layer: Attention, hidden: Value) -> Projected:
    """One after the other, each head normalised at once.

    source: transformers 5.23.0 models/qwen3/modeling_qwen3.py:Qwen3Attention.forward
    """

    def one(key: str) -> Value:
        made = _viewed(machine, layer, _through(machine, layer, key, hidden))
        made = _normed(machine, layer, key, made)
        return transpose(machine, made, 1, 2)

    return one("q"), one("k"), one("v")


def by_width(machine: Machine, layer: Attention, hidden: Value) -> Projected:
    """Whole projections normalised or clipped, then all seen by heads.

    source: transformers 5.23.0 models/olmo2/modeling_olmo2.py:Olmo2Attention.forward; models/olmo: clip_qkv
    """
    query = _normed(machine, layer, "q", _through(machine, layer, "q", hidden))
    key = _normed(machine, layer, "k", _through(machine, layer, "k", hidden))
    value = _through(machine, layer, "v", hidden)
    if layer.clip is not None:
        query, key, value = (clamped_in_place(machine, each) for each in (query, key, value))
    query, key, value = (transpose(machine, _viewed(machine, layer, each), 1, 2) for each in (query, key, value))
    return query, key, value


def in_view(machine: Machine, layer: Attention, hidden: Value) -> Projected:
    """All seen by heads, then normalised, then moved.

    source: transformers 5.23.0 models/cohere/modeling_cohere.py:CohereAttention.forward
    """
    query, key, value = (_viewed(machine, layer, _through(machine, layer, each, hidden)) for each in "qkv")
    query = _normed(machine, layer, "q", query)
    key = _normed(machine, layer, "k", key)
    query, key, value = (transpose(machine, each, 1, 2) for each in (query, key, value))
    return query, key, value


def moved(machine: Machine, layer: Attention, hidden: Value) -> Projected:
    """All moved, then normalised.

    source: transformers 5.23.0 models/gemma3/modeling_gemma3.py:Gemma3Attention.forward
    """
    query, key, value = (
        transpose(machine, _viewed(machine, layer, _through(machine, layer, each, hidden)), 1, 2) for each in "qkv"
    )
    query = _normed(machine, layer, "q", query)
    return query, _normed(machine, layer, "k", key), value


PROJECTIONS = {"head": by_head, "width": by_width, "view": in_view, "moved": moved}
"""By an attention's ``normed``."""


def _through(machine: Machine, layer: Attention, key: str, hidden: Value) -> Value:
    made: Value = machine.call(layer.names[key], layer.matrices()[key].play, machine, hidden)
    return made


def _viewed(machine: Machine, layer: Attention, value: Value) -> Value:
    return split_dim(machine, value, 2, (value.shape[2] // layer.head_dim, layer.head_dim))


def _normed(machine: Machine, layer: Attention, key: str, value: Value) -> Value:
    norm = layer.norm_of(key) if key in ("q", "k") else None
    if norm is None:
        return value
    made: Value = machine.call(layer.names.get(f"{key}_norm", f"{key}_norm"), norm.play, machine, value)
    return made


def rotated(machine: Machine, query: Value, key: Value, context: Context) -> tuple[Value, Value]:
    """Queries and keys turned by their positions (modeling_llama.py:apply_rotary_pos_emb)."""
    assert context.cos is not None
    assert context.sin is not None
    cos, sin = unsqueeze(machine, context.cos, 1), unsqueeze(machine, context.sin, 1)
    turned = add(machine, mul(machine, query, cos), mul(machine, rotate_half(machine, query), sin))
    return turned, add(machine, mul(machine, key, cos), mul(machine, rotate_half(machine, key), sin))


def rotate_half(machine: Machine, value: Value) -> Value:
    """The halves of the last dimension exchanged, the second negated (modeling_llama.py:rotate_half)."""
    half = value.shape[-1] // 2
    first = narrow(machine, value, -1, half)
    second = narrow(machine, value, -1, value.shape[-1] - half)
    return cat(machine, (neg(machine, second), first), -1)


def core(machine: Machine, layer: Any, query: Value, key: Value, value: Value, context: Context) -> Value:
    """The kernel, or attention written out: (batch, length, heads, head dimension)."""
    shared = not machine.same(layer.heads, layer.kv_heads)
    if context.eager:
        if shared:
            key, value = repeated(machine, key, layer.heads), repeated(machine, value, layer.heads)
        if any(name == "sinks" for name, _ in getattr(layer, "extra", ())):
            from memcalc.play.sinks import sink_attention

            sinks = machine.parameter("sinks", (layer.heads,), "other")
            return sink_attention(
                machine, query, key, value, context.mask, sinks, probability=layer.dropout, held=context.weights
            )
        upcast, cap = getattr(layer, "upcast", True), getattr(layer, "softcap", None)
        return eager(
            machine, query, key, value, context.mask, probability=layer.dropout, upcast=upcast, softcap=cap,
            held=context.weights,
        )  # fmt: skip
    if context.flash:
        from memcalc.play.flash_attn import flash_attention

        capped = getattr(layer, "softcap", None) is not None
        return flash_attention(machine, query, key, value, context.place, layer.dropout, capped=capped)
    # transformers 5.23.0 integrations/sdpa_attention.py:use_gqa_in_sdpa: no mask, and heads of at most 256
    grouped = shared and context.mask is None and machine.decide(key.shape[-1] <= 256)
    one = machine.decide(query.shape[2] == 1)
    packed = shared and not grouped and one
    if packed:  # the query heads that share a key beside each other, as if they were queries of its head (pack_gqa)
        query = split_dim(machine, merge_dims(machine, query, 1, 2), 1, (key.shape[1], layer.heads // layer.kv_heads))
    elif shared and not grouped:
        key, value = repeated(machine, key, layer.heads), repeated(machine, value, layer.heads)
    causal = layer.causal and context.mask is None and not one
    if causal and machine.cache is not None and machine.decide(key.shape[2] > query.shape[2]):  # an empty static cache
        key, value = narrow(machine, key, 2, query.shape[2]), narrow(machine, value, 2, query.shape[2])
    out = kernels.attend(machine, query, key, value, context.mask, probability=layer.dropout, causal=causal, grouped=grouped)
    if packed:
        out = unsqueeze(machine, merge_dims(machine, out, 1, 2), 2)
    return contiguous(machine, transpose(machine, out, 1, 2))


def repeated(machine: Machine, value: Value, heads: Any) -> Value:
    """Key or value heads repeated for each query head (modeling_llama.py:repeat_kv)."""
    batch, held, length, dim = value.shape
    wide = expand(machine, unsqueeze(machine, value, 2), (batch, held, heads // held, length, dim))
    return merge_dims(machine, wide, 1, 2)
