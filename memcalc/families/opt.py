"""OPT: learned positions offset by two, embeddings that may be narrower than the layers, norms before or after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, headed
from memcalc.families._forward import Batch, Context, causal_mask, eager_mask, held_count, run_layers
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Maybe, Module, Stack
from memcalc.layers.basic import Dropout, Embedding, Linear, layer_norm
from memcalc.layers.fused import attended, cached, merged, upcast
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.norms import embedding
from memcalc.play.pointwise import add, dropout, scaled, shifted
from memcalc.play.reshape import merge_dims, narrow, split_dim, transpose
from memcalc.play.values import Value

NAMES = Names("model", "decoder.embed_tokens", question_body="model")
OFFSET = 2
"""Rows of the position table below the first position (OPTLearnedPositionalEmbedding.__init__)."""


class OPTConfig(FamilyConfig):
    """source: transformers 5.23.0 models/opt/configuration_opt.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "ffn_dim": "intermediate_size",
        "_remove_final_layer_norm": "remove_final_layer_norm",
    }

    vocab_size: Size = 50272
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    max_position_embeddings: Size = 2048
    word_embed_proj_dim: Size | None = None
    do_layer_norm_before: Flag = True
    remove_final_layer_norm: Flag = False
    activation_function: str = "relu"
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.0
    layerdrop: Probability = 0.0
    enable_bias: Flag = True
    layer_norm_elementwise_affine: Flag = True
    tie_word_embeddings: Flag = True


def embedding_width(config: OPTConfig) -> Count:
    """Width of the token embeddings, and so of what the heads read."""
    return config.hidden_size if config.word_embed_proj_dim is None else config.word_embed_proj_dim


def norm(config: OPTConfig) -> Layer:
    """A layer normalisation, with scale and shift or with neither."""
    affine = config.layer_norm_elementwise_affine
    return layer_norm(config.hidden_size, bias=affine, weight=affine)


def block(config: OPTConfig) -> Block:
    """One decoder layer."""
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.enable_bias
    attention = Attention(
        hidden, heads, heads, hidden // heads, bias, output_bias=bias,
        names={"k": "k_proj", "v": "v_proj", "q": "q_proj", "o": "out_proj"}, dropout=config.attention_dropout,
    )  # fmt: skip
    mlp = MLP(hidden, config.intermediate_size, bias, names=("fc1", "fc2"), activation=config.activation_function)
    return Block(
        (
            ("self_attn", attention),
            ("", Dropout(config.dropout)),
            ("self_attn_layer_norm", norm(config)),
            ("", mlp),
            ("", Dropout(config.dropout)),
            ("final_layer_norm", norm(config)),
        ),
        norms="pre" if config.do_layer_norm_before else "post",
    )


def body(config: OPTConfig) -> Layer:
    """The decoder, with a projection into and out of the layers where embeddings are narrower."""
    hidden, width = config.hidden_size, embedding_width(config)
    parts: list[tuple[str, Layer]] = [
        ("embed_tokens", Embedding(config.vocab_size, width)),
        ("embed_positions", Embedding(config.max_position_embeddings + OFFSET, hidden)),
        ("project_out", Maybe(width != hidden, Linear(hidden, width, bias=False))),
        ("project_in", Maybe(width != hidden, Linear(width, hidden, bias=False))),
    ]
    if config.do_layer_norm_before and not config.remove_final_layer_norm:
        parts.append(("final_layer_norm", norm(config)))
    return Module([("decoder", Module([*parts, ("layers", Stack(block(config), config.num_hidden_layers))]))])


def build(config: OPTConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    return headed(config, architecture, body(config), NAMES, width=embedding_width(config))


def layer(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """source: transformers 5.23.0 models/opt/modeling_opt.py:OPTDecoderLayer.forward"""

    def normed(name: str, value: Value, where: str) -> Value:
        if block.norms != where:
            return value
        return machine.call(name, block.part(name).play, machine, value)  # type: ignore[no-any-return]

    drop, mlp = block.parts[1][1], block.parts[3][1]
    assert isinstance(drop, Dropout)
    assert isinstance(mlp, MLP)
    residual = hidden
    hidden = normed("self_attn_layer_norm", hidden, "pre")
    hidden, weights = machine.call("self_attn", attention, machine, block, hidden, context)
    hidden = dropout(machine, hidden, drop.probability)
    hidden = add(machine, residual, hidden)
    hidden = normed("self_attn_layer_norm", hidden, "post")
    shape = hidden.shape
    hidden = merge_dims(machine, hidden, 0, 1)
    residual = hidden
    hidden = normed("final_layer_norm", hidden, "pre")
    up, down = mlp.names
    hidden = machine.call(up, Linear(mlp.hidden, mlp.intermediate, mlp.bias).play, machine, hidden)
    hidden = activated(machine, mlp.activation, hidden)
    hidden = machine.call(down, Linear(mlp.intermediate, mlp.hidden, mlp.bias).play, machine, hidden)
    hidden = dropout(machine, hidden, drop.probability)
    hidden = split_dim(machine, add(machine, residual, hidden), 0, shape[:2])
    hidden = normed("final_layer_norm", hidden, "post")
    del weights
    return hidden


def attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value | None]:
    """source: transformers 5.23.0 models/opt/modeling_opt.py:OPTAttention.forward"""
    layer, sizes = block.part("self_attn"), (block.part("self_attn").heads, block.part("self_attn").head_dim)
    matrices = layer.matrices()
    query = scaled(machine, machine.call(layer.names["q"], matrices["q"].play, machine, hidden))
    query = transpose(machine, split_dim(machine, query, 2, sizes), 1, 2)
    key = machine.call(layer.names["k"], matrices["k"].play, machine, hidden)
    value = machine.call(layer.names["v"], matrices["v"].play, machine, hidden)
    key = transpose(machine, split_dim(machine, key, 2, sizes), 1, 2)
    value = transpose(machine, split_dim(machine, value, 2, sizes), 1, 2)
    key, value = cached(machine, key, value)
    out, weights = attended(machine, layer, query, key, value, context, upcast)
    out = merged(machine, out)
    return machine.call(layer.names["o"], matrices["o"].play, machine, out), weights


def decoder(machine: Machine, root: Module, batch: Batch, config: OPTConfig) -> Value:
    """source: transformers 5.23.0 models/opt/modeling_opt.py:OPTDecoder.forward"""

    def part(name: str, value: Value) -> Value:
        held = root.part(name)
        found: Any = held.layer if isinstance(held, Maybe) else held
        return machine.call(name, found.play, machine, value)  # type: ignore[no-any-return]

    embeds = part("embed_tokens", batch["input_ids"])
    count = held_count(machine)
    ones, place = _positions(machine, batch)
    context = Context(eager=machine.policy.attention == "eager")
    context.mask = _mask(machine, batch, embeds.dtype, eager=context.eager)
    context.place = place
    places = machine.call("embed_positions", _placed, machine, root.part("embed_positions"), place)
    narrow = machine.decide(embedding_width(config) != config.hidden_size)
    if narrow:
        embeds = part("project_in", embeds)
    hidden = add(machine, embeds, places)
    given = [hidden]
    del hidden  # the only name for them, which the first layer's result takes
    hidden = run_layers(machine, "layers", root.part("layers"), layer, given.pop(), context)
    if root.has("final_layer_norm"):
        hidden = part("final_layer_norm", hidden)
    if narrow:
        hidden = part("project_out", hidden)
    del embeds, ones, place, places, count
    return hidden


def _mask(machine: Machine, batch: Batch, dtype: str, *, eager: bool) -> Value | None:
    if machine.cache is None:
        return eager_mask(machine, batch, dtype) if eager else None
    return causal_mask(machine, None, batch, dtype, eager=eager)


def _positions(machine: Machine, batch: Batch) -> tuple[Value, Value]:
    """A mask of ones, and the positions counted from it, of which those of the tokens are cut out where a cache has others."""
    past = 0 if machine.cache is None else machine.cache.past
    shape = (batch.rows, past + batch.tokens)
    ones = machine.new(shape, "float32", "ones")
    place = machine.new(shape, "float32", "cumsum")
    place = machine.like(shifted(machine, scaled(machine, place), "sub.Tensor"), "_to_copy", "int64")
    return ones, place if machine.cache is None else narrow(machine, place, 1, batch.tokens)


def _placed(machine: Machine, table: Embedding, place: Value) -> Value:
    """source: transformers 5.23.0 models/opt/modeling_opt.py:OPTLearnedPositionalEmbedding.forward"""
    weight = machine.parameter("weight", (table.rows, table.width), "embedding")
    return embedding(machine, shifted(machine, place), weight)


def play(machine: Machine, architecture: str, config: OPTConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    Raises:
        NotModelledError: layers are left out at random.
    """
    if machine.decide(config.layerdrop > 0):
        raise NotModelledError("model.layerdrop", config.layerdrop, "leaves out layers at random", "set it to 0")

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        return machine.call("decoder", decoder, machine, root.part("decoder"), batch, config)  # type: ignore[no-any-return]

    return classic_forward(machine, architecture, config, root, batch, NAMES, body)


FAMILY = Family(
    model_type="opt",
    config=OPTConfig,
    architectures=("OPTForCausalLM", "OPTModel", "OPTForSequenceClassification", "OPTForQuestionAnswering"),
    usual="OPTForCausalLM",
    build=build,
    source="transformers 5.23.0 models/opt/modeling_opt.py",
    play=play,
    places=learned,
    caches=True,
)
