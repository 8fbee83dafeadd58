"""GPT-NeoX (and Pythia): attention and feed-forward side by side, a part of each head rotated."""

from __future__ import annotations

from typing import Any

from memcalc.arrays import Count
from memcalc.families._classic_forward import through_layers
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._forward import Batch, Context, causal_mask, positions, rotary
from memcalc.families._rotary import Part, RotaryConfig, rotated
from memcalc.families.base import Architecture, Family, Flag, Probability, Size
from memcalc.layers.base import Module
from memcalc.layers.basic import Dropout, RotaryTable, layer_norm
from memcalc.layers.fused import attended, by_head, cached, merged, projected, upcast
from memcalc.layers.rotating import rotated_part
from memcalc.layers.transformer import MLP, Block, FusedAttention
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add
from memcalc.play.values import Value

NAMES = Names("gpt_neox", "embed_in", "layers", "final_layer_norm", token_head="classifier", question_body="gpt_neox")


class GPTNeoXConfig(RotaryConfig):
    """source: transformers 5.23.0 models/gpt_neox/configuration_gpt_neox.py"""

    vocab_size: Size = 50432
    hidden_size: Size = 6144
    num_hidden_layers: Size = 44
    num_attention_heads: Size = 64
    intermediate_size: Size = 24576
    rotary_pct: Part = 0.25
    """The share of a head that is rotated where ``rope_parameters`` does not say; ``partial_rotary_factor`` beside them is a
    key this family does not read (GPTNeoXConfig.convert_rope_params_to_dict)."""
    hidden_act: str = "gelu"
    attention_bias: Flag = True
    attention_dropout: Probability = 0.0
    hidden_dropout: Probability = 0.0
    classifier_dropout: Probability = 0.1
    use_parallel_residual: Flag = True
    tie_word_embeddings: Flag = False


def rotary_dim(config: GPTNeoXConfig) -> Count:
    """Dimensions of a head that are rotated."""
    read = config.model_copy(update={"partial_rotary_factor": None})
    return rotated(read, config.hidden_size // config.num_attention_heads, default_is_partial=True, share=config.rotary_pct)


def block(config: GPTNeoXConfig) -> Block:
    """One decoder layer."""
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
    attention = FusedAttention(
        hidden, heads, heads, hidden // heads, bias, output_bias=bias, names={"qkv": "query_key_value", "o": "dense"},
        dropout=config.attention_dropout, rotary=rotary_dim(config),
    )  # fmt: skip
    mlp = MLP(hidden, config.intermediate_size, names=("dense_h_to_4h", "dense_4h_to_h"), activation=config.hidden_act)
    return Block(
        (
            ("input_layernorm", layer_norm(hidden)),
            ("post_attention_layernorm", layer_norm(hidden)),
            ("post_attention_dropout", Dropout(config.hidden_dropout)),
            ("post_mlp_dropout", Dropout(config.hidden_dropout)),
            ("attention", attention),
            ("mlp", mlp),
        ),
        parallel=config.use_parallel_residual,
    )


def build(config: GPTNeoXConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    return decoder_architecture(
        config, architecture, block(config), layer_norm(config.hidden_size), rotary=RotaryTable(rotary_dim(config)),
        names=NAMES, before_layers=(("emb_dropout", Dropout(config.hidden_dropout)),),
    )  # fmt: skip


def layer(machine: Machine, block: Block, hidden: Value, context: Context) -> Value:
    """Attention and feed-forward side by side, or one after the other.

    source: transformers 5.23.0 models/gpt_neox/modeling_gpt_neox.py:GPTNeoXLayer.forward
    """

    def part(name: str, value: Value) -> Value:
        return machine.call(name, block.part(name).play, machine, value)  # type: ignore[no-any-return]

    attended, weights = machine.call("attention", attention, machine, block, part("input_layernorm", hidden), context)
    attended = part("post_attention_dropout", attended)
    if block.parallel:
        forward = part("mlp", part("post_attention_layernorm", hidden))
        forward = part("post_mlp_dropout", forward)
        hidden = add(machine, add(machine, forward, attended), hidden)
    else:
        attended = add(machine, attended, hidden)
        forward = part("mlp", part("post_attention_layernorm", attended))
        forward = part("post_mlp_dropout", forward)
        hidden = add(machine, forward, attended)
    del weights
    return hidden


def attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value | None]:
    """source: transformers 5.23.0 models/gpt_neox/modeling_gpt_neox.py:GPTNeoXAttention.forward"""
    layer = block.part("attention")
    fused = projected(machine, layer, "qkv", hidden)
    query, key, value = by_head(machine, layer, fused)
    query, key = rotated_part(machine, query, key, context)
    key, value = cached(machine, key, value)
    out, weights = attended(machine, layer, query, key, value, context, upcast)
    out = merged(machine, out)
    return projected(machine, layer, "o", out), weights


def play(machine: Machine, architecture: str, config: GPTNeoXConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        """source: transformers 5.23.0 models/gpt_neox/modeling_gpt_neox.py:GPTNeoXModel.forward"""
        embeds = machine.call("embed_in", root.part("embed_in").play, machine, batch["input_ids"])
        context = Context(eager=machine.policy.attention == "eager")
        context.place = positions(machine, batch.tokens)
        context.mask = causal_mask(machine, context.place, batch, embeds.dtype, eager=context.eager)
        hidden = machine.call("emb_dropout", root.part("emb_dropout").play, machine, embeds)
        rotary(machine, hidden, context.place, rotary_dim(config), context)
        hidden = through_layers(machine, root, NAMES, layer, [hidden], context)
        del embeds
        return hidden

    return classic_forward(machine, architecture, config, root, batch, NAMES, body)


FAMILY = Family(
    model_type="gpt_neox",
    config=GPTNeoXConfig,
    architectures=(
        "GPTNeoXForCausalLM",
        "GPTNeoXModel",
        "GPTNeoXForSequenceClassification",
        "GPTNeoXForTokenClassification",
        "GPTNeoXForQuestionAnswering",
    ),
    usual="GPTNeoXForCausalLM",
    build=build,
    source="transformers 5.23.0 models/gpt_neox/modeling_gpt_neox.py",
    play=play,
    caches=True,
)
