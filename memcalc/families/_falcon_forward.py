"""How Falcon runs in transformers: three layouts of fused projections, rotary positions or position biases, always a mask."""

from __future__ import annotations

from typing import Any

from memcalc.errors import InputError
from memcalc.families._classic_forward import through_layers
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names
from memcalc.families._forward import Batch, Context, allowed_mask, held_count, keys_of, positions, rotary, written_mask
from memcalc.layers.attending import rotated
from memcalc.layers.base import Maybe, Module
from memcalc.layers.basic import Linear
from memcalc.layers.fused import cached, selected
from memcalc.layers.transformer import MLP, Block, FusedAttention
from memcalc.play.activations import activated
from memcalc.play.attention import attend
from memcalc.play.inplace import added_in_place, scaled_in_place
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear as multiply
from memcalc.play.matmul import matmul
from memcalc.play.norms import softmax
from memcalc.play.picking import picked
from memcalc.play.pointwise import add, dropout, to
from memcalc.play.reshape import expand, merge_dims, narrow, split_dim, transpose
from memcalc.play.values import Value

NAMES = Names("transformer", "word_embeddings", "h", "ln_f", token_head="classifier", question_body="transformer")
Heads = tuple[Value, Value, Value]


def linear(machine: Machine, layer: Linear, value: Value) -> Value:
    """A product with a view of the weight, of which autocast keeps no copy, and its bias added after.

    source: transformers 5.23.0 models/falcon/modeling_falcon.py:FalconLinear.forward
    """
    weight = machine.parameter("weight", (layer.out_features, layer.in_features), "linear")
    made = multiply(machine, value, transpose(machine, weight, 0, 1), transposed=True)
    if not layer.bias:
        return made
    return add(machine, made, machine.parameter("bias", (layer.out_features,), "linear"))


def _dense(machine: Machine, layer: FusedAttention, key: str, value: Value) -> Value:
    made: Value = machine.call(layer.names[key], linear, machine, layer.matrices()[key], value)
    return made


def layer_of(config: Any) -> Any:
    """The layer, as a config's flags have it.

    source: transformers 5.23.0 models/falcon/modeling_falcon.py:FalconDecoderLayer.forward
    """
    new, parallel = bool(config.new_decoder_architecture), bool(config.parallel_attn)

    def play(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value | None]:
        residual = hidden
        normed, second = _normed(machine, block, config, hidden)
        attended, weights = machine.call("self_attention", attention, machine, block, config, normed, context)
        if not new and not parallel:
            residual = _dropped_and_added(machine, attended, residual, config.attention_dropout)
            second = _norm(machine, block, "post_attention_layernorm", residual)
        forward = machine.call("mlp", feed_forward, machine, block.part("mlp"), normed if second is None else second)
        if new or parallel:
            forward = added_in_place(machine, forward, attended)
        return _dropped_and_added(machine, forward, residual, config.hidden_dropout), weights

    return play


def _normed(machine: Machine, block: Block, config: Any, hidden: Value) -> tuple[Value, Value | None]:
    """What attention reads, and what the feed-forward reads where that is something of its own already."""
    if config.new_decoder_architecture and block.has("ln_attn"):
        two = block.part("ln_attn")
        if machine.decide(two.condition if isinstance(two, Maybe) else True):
            return _norm(machine, block, "ln_attn", hidden), _norm(machine, block, "ln_mlp", hidden)
    return _norm(machine, block, "input_layernorm", hidden), None


def _norm(machine: Machine, block: Block, name: str, value: Value) -> Value:
    held = block.part(name)
    found: Any = held.layer if isinstance(held, Maybe) else held
    return machine.call(name, found.play, machine, value)  # type: ignore[no-any-return]


def _dropped_and_added(machine: Machine, value: Value, residual: Value, probability: float | None) -> Value:
    """source: transformers 5.23.0 models/falcon/modeling_falcon.py:dropout_add"""
    out = dropout(machine, value, probability or 0.0)
    return add(machine, residual, out)


def feed_forward(machine: Machine, mlp: MLP, hidden: Value) -> Value:
    """source: transformers 5.23.0 models/falcon/modeling_falcon.py:FalconMLP.forward"""
    up, down = mlp.names
    hidden = activated(
        machine,
        mlp.activation,
        machine.call(up, linear, machine, Linear(mlp.hidden, mlp.intermediate, mlp.bias), hidden),
    )
    return machine.call(  # type: ignore[no-any-return]
        down, linear, machine, Linear(mlp.intermediate, mlp.hidden, mlp.bias), hidden
    )


def attention(machine: Machine, block: Block, config: Any, hidden: Value, context: Context) -> tuple[Value, Value | None]:
    """source: transformers 5.23.0 models/falcon/modeling_falcon.py:FalconAttention.forward"""
    layer = block.part("self_attention")
    fused = _dense(machine, layer, "qkv", hidden)
    query, key, value = _apart(machine, layer, config, fused)
    query, key, value = (transpose(machine, each, 1, 2) for each in (query, key, value))
    written = _written_biased if layer.alibi else _written
    if not layer.alibi:
        query, key = rotated(machine, query, key, context)
    key, value = cached(machine, key, value)
    weights = held = None
    if context.eager:
        out, weights, held = written(machine, layer, query, key, value, hidden.dtype, context)
    else:
        probability = layer.dropout if layer.alibi else 0.0
        out = attend(machine, query, key, value, context.mask, probability=probability)
    out = merge_dims(machine, transpose(machine, out, 1, 2), 2, 3)
    out = _dense(machine, layer, "o", out)
    del fused, held
    return out, weights


def _apart(machine: Machine, layer: FusedAttention, config: Any, fused: Value) -> Heads:
    """(batch, length, heads, head dimension) each.

    source: transformers 5.23.0 models/falcon/modeling_falcon.py:FalconAttention._split_heads
    """
    heads, dim = layer.heads, layer.head_dim
    if config.new_decoder_architecture:
        return _grouped(machine, layer, fused)
    if not config.multi_query:
        query, key, value = (transpose(machine, each, 1, 2) for each in selected(machine, layer, fused))
        return query, key, value
    whole = split_dim(machine, fused, 2, (heads + 2, dim))
    return narrow(machine, whole, 2, heads), _one(machine, whole, 2), _one(machine, whole, 2)


def _grouped(machine: Machine, layer: FusedAttention, fused: Value) -> Heads:
    group = layer.heads // layer.kv_heads
    whole = split_dim(machine, fused, 2, (layer.kv_heads, group + 2, layer.head_dim))
    query = narrow(machine, whole, 3, group)
    key, value = _one(machine, whole, 3), _one(machine, whole, 3)
    key = expand(machine, key, query.shape)
    value = expand(machine, value, query.shape)
    query, key, value = (merge_dims(machine, each, 2, 3) for each in (query, key, value))
    return query, key, value


def _one(machine: Machine, whole: Value, dim: int) -> Value:
    """``[..., [-2], :]``: one, picked by a list."""
    return picked(machine, whole, dim, machine.new((1,), "int64", "_to_copy"))


Written = tuple[Value, Value, Any]


def _written(
    machine: Machine, layer: FusedAttention, query: Value, key: Value, value: Value, dtype: str, context: Context
) -> Written:
    """Attention with rotary positions, written out."""
    scores = matmul(machine, query, transpose(machine, key, 2, 3))
    scores = scaled_in_place(machine, scores, "div.Tensor")
    assert context.mask is not None
    scores = softmax(machine, add(machine, scores, context.mask), dtype)
    return matmul(machine, scores, value), scores, None


def _written_biased(
    machine: Machine, layer: FusedAttention, query: Value, key: Value, value: Value, dtype: str, context: Context
) -> Written:
    """Attention with position biases, written out: the scores stay to the end in all their forms."""
    product = matmul(machine, query, transpose(machine, key, 2, 3))
    scores = to(machine, product, "float32")
    assert context.bias is not None
    assert context.mask is not None
    logits = add(machine, scores, context.bias)
    logits = scaled_in_place(machine, logits)
    weights = softmax(machine, add(machine, logits, context.mask), dtype)
    weights = dropout(machine, weights, layer.dropout)
    return matmul(machine, weights, value), weights, (product, scores, logits)


def _biases(machine: Machine, batch: Batch, heads: Any, dtype: str) -> tuple[Value, Value]:
    """The biases, ``(batch · heads, 1, keys)``, and the ones they were counted from.

    source: transformers 5.23.0 models/falcon/modeling_falcon.py:build_alibi_tensor
    """
    rows, tokens = batch.rows, keys_of(machine, batch)
    ones = machine.new((rows, tokens), "int64", "ones")
    slopes = machine.new((heads,), "float32", "pow.Tensor_Tensor")
    counted = machine.new((rows, tokens), "int64", "mul.Tensor")
    out = machine.new((rows * heads, 1, tokens), "bfloat16", "mul.Tensor")
    del slopes, counted
    return to(machine, out, dtype), ones


def _biased_mask(machine: Machine, batch: Batch, bias: Value, mask: Value) -> tuple[Value, Value]:
    """The biases by sample, and the mask with them in it, ``(batch, heads, length, keys)``."""
    if mask.dtype == "bool":
        zero, least = machine.new((), bias.dtype, "full"), machine.new((), bias.dtype, "scalar_tensor")
        mask = machine.like(mask, "where.self", bias.dtype)
        del zero, least
    bias = split_dim(machine, bias, 0, (batch.rows, bias.shape[0] // batch.rows))
    rows, heads, _, tokens = bias.shape
    divided = machine.like(bias, "div.Tensor")
    hidden = machine.like(mask, "lt.Scalar", "bool")
    out = machine.new((rows, heads, batch.tokens, tokens), bias.dtype, "masked_fill.Scalar")
    del divided, hidden
    return bias, out


def _mask(machine: Machine, batch: Batch, dtype: str, *, eager: bool) -> Value:
    """The causal mask, which is always made (``allow_is_causal_skip=False``): of booleans for a kernel."""
    if eager:
        return written_mask(machine, batch, dtype)
    return allowed_mask(machine, batch, keys_of(machine, batch))


def _check_static(machine: Machine) -> None:
    """Biases are as long as what has been read, a static cache's mask as long as what it can hold.

    Raises:
        InputError: both are there, and neither can be stretched over the other.
    """
    if machine.cache is not None and machine.cache.static:
        raise InputError(
            "inference.cache", "static", "does not go with alibi in Falcon, whose biases are not of its length", "use dynamic"
        )


def play(machine: Machine, architecture: str, config: Any, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        """source: transformers 5.23.0 models/falcon/modeling_falcon.py:FalconModel.forward"""
        embeds = machine.call("word_embeddings", root.part("word_embeddings").play, machine, batch["input_ids"])
        context, ones, count = Context(eager=machine.policy.attention == "eager"), None, None
        if config.alibi:
            _check_static(machine)
            count = held_count(machine)
            context.bias, ones = _biases(machine, batch, config.num_attention_heads, embeds.dtype)
        context.place = positions(machine, batch.tokens)
        context.mask = _mask(machine, batch, embeds.dtype, eager=context.eager)
        if context.bias is not None:
            context.bias, context.mask = _biased_mask(machine, batch, context.bias, context.mask)
        hidden = embeds
        rotary(machine, hidden, context.place, config.hidden_size // config.num_attention_heads, context)
        hidden = through_layers(machine, root, NAMES, layer_of(config), [hidden], context, root.part("h"))
        del embeds, ones, count
        return hidden

    return classic_forward(machine, architecture, config, root, batch, NAMES, body)
