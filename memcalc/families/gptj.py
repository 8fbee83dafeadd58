"""GPT-J: attention and feed-forward side by side from one norm, rotary positions kept as a table in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memcalc.arrays import ceil_div, where
from memcalc.errors import InputError
from memcalc.families._classic_forward import dropped_mlp, only_written, through_layers
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._forward import Batch, Context, causal_mask, positions
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, MaybeZero, Probability, Size
from memcalc.layers.base import Module
from memcalc.layers.basic import Buffer, Dropout, layer_norm
from memcalc.layers.fused import cached, in_float
from memcalc.layers.rotating import paired_table, rotated_pairs
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.reshape import cat, contiguous, merge_dims, narrow, split_dim, transpose
from memcalc.play.values import Value

NAMES = Names("transformer", "wte", "h", "ln_f")


class GPTJConfig(FamilyConfig):
    """source: transformers 5.23.0 models/gptj/configuration_gptj.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "n_ctx": "max_position_embeddings",
    }

    vocab_size: Size = 50400
    hidden_size: Size = 4096
    num_hidden_layers: Size = 28
    num_attention_heads: Size = 16
    intermediate_size: Size | None = None
    max_position_embeddings: Size = 2048
    rotary_dim: MaybeZero = 64
    activation_function: str = "gelu_new"
    resid_pdrop: Probability = 0.0
    embd_pdrop: Probability = 0.0
    attn_pdrop: Probability = 0.0
    tie_word_embeddings: Flag = False


def block(config: GPTJConfig) -> Block:
    """One decoder layer."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    intermediate = 4 * hidden if config.intermediate_size is None else config.intermediate_size
    # none means all: the table is then as wide as the hidden states, sines and cosines half each
    turned = where(config.rotary_dim > 0, config.rotary_dim, hidden)
    table = Buffer((config.max_position_embeddings, 2 * ceil_div(turned, 2)))
    attention = Attention(
        hidden, heads, heads, hidden // heads, extra=(("embed_positions", table),),
        names={"k": "k_proj", "v": "v_proj", "q": "q_proj", "o": "out_proj"},
        dropout=config.attn_pdrop, rotary=where(config.rotary_dim > 0, config.rotary_dim, hidden // heads),
    )  # fmt: skip
    mlp = MLP(hidden, intermediate, names=("fc_in", "fc_out"), activation=config.activation_function)
    return Block(
        (
            ("ln_1", layer_norm(hidden)),
            ("attn", attention),
            ("attn.resid_dropout", Dropout(config.resid_pdrop)),
            ("mlp", mlp),
            ("mlp.dropout", Dropout(config.resid_pdrop)),
        ),
        parallel=True,
    )


def build(config: GPTJConfig, architecture: str) -> Architecture:
    """The decoder under its head; the language-model head has a bias even where its weight is the embedding's."""
    return decoder_architecture(
        config, architecture, block(config), layer_norm(config.hidden_size), names=NAMES, head_bias=True,
        before_layers=(("drop", Dropout(config.embd_pdrop)),), answers=config.num_labels,
    )  # fmt: skip


def layer(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
    """Attention and feed-forward side by side, which gives the weights too.

    source: transformers 5.23.0 models/gptj/modeling_gptj.py:GPTJBlock.forward
    """
    residual = hidden
    hidden = machine.call("ln_1", block.part("ln_1").play, machine, hidden)
    attended, weights = machine.call("attn", attention, machine, block, hidden, context)
    forward = machine.call("mlp", dropped_mlp, machine, block, hidden)
    hidden = add(machine, add(machine, attended, forward), residual)
    return hidden, weights


def attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/gptj/modeling_gptj.py:GPTJAttention.forward"""
    layer, matrices = block.part("attn"), block.part("attn").matrices()
    sizes = (layer.heads, layer.head_dim)
    query, key, value = (machine.call(layer.names[k], matrices[k].play, machine, hidden) for k in "qkv")
    query, key = split_dim(machine, query, 2, sizes), split_dim(machine, key, 2, sizes)
    value = transpose(machine, split_dim(machine, value, 2, sizes), 1, 2)
    assert context.place is not None
    table = dict(layer.extra)["embed_positions"]
    rows = machine.constant(tuple(table.shape), table.dtype)
    sin, cos, held = paired_table(machine, rows, context.place, key.dtype)
    key_turned, key_rest = _divided(machine, key, layer.rotary)
    query_turned, query_rest = _divided(machine, query, layer.rotary)
    key_turned = rotated_pairs(machine, key_turned, sin, cos)
    query_turned = rotated_pairs(machine, query_turned, sin, cos)
    key = cat(machine, (key_turned, key_rest), -1)
    query = cat(machine, (query_turned, query_rest), -1)
    key, query = transpose(machine, key, 1, 2), transpose(machine, query, 1, 2)
    key, value = cached(machine, key, value)
    out, weights = in_float(machine, query, key, value, context.mask, layer.dropout)
    out = merge_dims(machine, contiguous(machine, transpose(machine, out, 1, 2)), 2, 3)
    out = machine.call(layer.names["o"], matrices["o"].play, machine, out)
    out = machine.call("resid_dropout", block.part("attn.resid_dropout").play, machine, out)
    del held
    return out, weights


def _divided(machine: Machine, value: Value, rotary: Any) -> tuple[Value, Value]:
    return narrow(machine, value, -1, rotary), narrow(machine, value, -1, value.shape[-1] - rotary)


def _body(machine: Machine, root: Module, batch: Batch) -> Value:
    """source: transformers 5.23.0 models/gptj/modeling_gptj.py:GPTJModel.forward"""
    embeds = machine.call("wte", root.part("wte").play, machine, batch["input_ids"])
    context = Context(eager=True)
    context.place = positions(machine, batch.tokens)
    context.mask = causal_mask(machine, context.place, batch, embeds.dtype, eager=True)
    hidden = machine.call("drop", root.part("drop").play, machine, embeds)
    hidden = through_layers(machine, root, NAMES, layer, [hidden], context, root.part("h"))
    del embeds
    return hidden


def play(machine: Machine, architecture: str, config: GPTJConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    Raises:
        InputError: a model that cannot run.
    """
    only_written(machine)
    if not machine.decide(config.rotary_dim > 0):
        raise InputError(
            "model.rotary_dim", 0, "makes a table as wide as all heads, which forward cannot use", "set it above 0"
        )
    return classic_forward(machine, architecture, config, root, batch, NAMES, _body)


FAMILY = Family(
    model_type="gptj",
    config=GPTJConfig,
    architectures=("GPTJForCausalLM", "GPTJModel", "GPTJForSequenceClassification", "GPTJForQuestionAnswering"),
    usual="GPTJForCausalLM",
    build=build,
    source="transformers 5.23.0 models/gptj/modeling_gptj.py",
    play=play,
    places=learned,
    caches=True,
)
