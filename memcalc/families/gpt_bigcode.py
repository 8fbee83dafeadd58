"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key and value for all heads, and ordinary matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from memcalc.arrays import Count
from memcalc.families._classic_forward import learned_body, one_after_another
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._forward import Batch, Context
from memcalc.families._idle import under
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Buffer, Dropout, Embedding, layer_norm
from memcalc.layers.cross_attention import FusedCrossAttention
from memcalc.layers.fused import attended, by_head, cached, merged, one_key, projected, upcast
from memcalc.layers.transformer import MLP, Block, FusedAttention
from memcalc.play.machine import Machine
from memcalc.play.values import Value

NAMES = Names("transformer", "wte", "h", "ln_f", token_head="classifier")


class GPTBigCodeConfig(FamilyConfig):
    """source: transformers 5.23.0 models/gpt_bigcode/configuration_gpt_bigcode.py"""

    aliases: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
        "n_ctx": "max_position_embeddings",
    }
    divides: ClassVar[tuple[tuple[str, str], ...]] = (("num_attention_heads", "hidden_size"),)

    vocab_size: Size = 50257
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size | None = None
    max_position_embeddings: Size = 1024
    activation_function: str = "gelu_pytorch_tanh"
    resid_pdrop: Probability = 0.1
    embd_pdrop: Probability = 0.1
    attn_pdrop: Probability = 0.1
    classifier_dropout: Probability | None = None
    hidden_dropout: Probability | None = None
    multi_query: Flag = True
    num_key_value_heads: Size | None = None
    """One with ``multi_query`` and as many as heads without, whatever it says: written by transformers, and never read."""
    add_cross_attention: Flag = False
    tie_word_embeddings: Flag = True

    def check(self) -> tuple[str, str, str] | None:
        """The family has no cross-attention with one key and value (GPTBigCodeBlock.__init__)."""
        if self.add_cross_attention and self.multi_query:
            return "add_cross_attention", "does not go with multi_query", "set multi_query: false"
        if self.multi_query and self.num_key_value_heads not in (None, 1):
            return (
                "num_key_value_heads",
                "does not go with multi_query, which has one",
                "leave it out, or set multi_query: false",
            )
        return super().check()


def key_value_heads(config: GPTBigCodeConfig) -> Count:
    """Heads of keys and values."""
    return 1 if config.multi_query else config.num_attention_heads


def block(config: GPTBigCodeConfig) -> Block:
    """One decoder layer, with attention to an encoder where the config asks for it."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    intermediate = 4 * hidden if config.intermediate_size is None else config.intermediate_size
    dropout, resid = config.attn_pdrop, Dropout(config.resid_pdrop)
    cross: tuple[tuple[str, Layer], ...] = (
        ("crossattention", FusedCrossAttention(hidden, heads, hidden // heads, dropout=dropout)),
        ("crossattention.resid_dropout", resid),
        ("ln_cross_attn", layer_norm(hidden)),
    )
    return Block(
        (
            ("ln_1", layer_norm(hidden)),
            ("attn", FusedAttention(hidden, heads, key_value_heads(config), hidden // heads, dropout=dropout)),
            ("attn.resid_dropout", resid),
            ("ln_2", layer_norm(hidden)),
            *(cross if config.add_cross_attention else ()),
            ("mlp", MLP(hidden, intermediate, activation=config.activation_function)),
            ("mlp.dropout", resid),
        )
    )


def build(config: GPTBigCodeConfig, architecture: str) -> Architecture:
    """The decoder under its head; a causal mask of every pair of positions stays with it as a buffer."""
    hidden, positions = config.hidden_size, config.max_position_embeddings
    return decoder_architecture(
        config, architecture, block(config), layer_norm(hidden), names=NAMES,
        before_layers=(
            ("wpe", Embedding(positions, hidden)),
            ("drop", Dropout(config.embd_pdrop)),
            ("bias", Buffer((positions, positions), "bool")),
        ),
    )  # fmt: skip


def attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value | None]:
    """source: transformers 5.23.0 models/gpt_bigcode/modeling_gpt_bigcode.py:GPTBigCodeAttention.forward"""
    layer = block.part("attn")
    # one key and value, or as many as heads: a head of its own is taken apart in another way
    apart = by_head if machine.same(layer.heads, layer.kv_heads) and machine.decide(layer.heads > 1) else one_key
    query, key, value = apart(machine, layer, projected(machine, layer, "qkv", hidden))
    key, value = cached(machine, key, value)
    out, weights = attended(machine, layer, query, key, value, context, upcast)
    out = merged(machine, out)
    out = projected(machine, layer, "o", out)
    out = machine.call("resid_dropout", block.part("attn.resid_dropout").play, machine, out)
    return out, weights


def play(machine: Machine, architecture: str, config: GPTBigCodeConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    eager = machine.policy.attention == "eager"

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        layer = one_after_another(attention)
        return learned_body(machine, root, batch, NAMES, layer, eager=eager, mask_first=True)

    return classic_forward(machine, architecture, config, root, batch, NAMES, body)


FAMILY = Family(
    model_type="gpt_bigcode",
    config=GPTBigCodeConfig,
    architectures=(
        "GPTBigCodeForCausalLM",
        "GPTBigCodeModel",
        "GPTBigCodeForSequenceClassification",
        "GPTBigCodeForTokenClassification",
    ),
    usual="GPTBigCodeForCausalLM",
    build=build,
    source="transformers 5.23.0 models/gpt_bigcode/modeling_gpt_bigcode.py",
    play=play,
    places=learned,
    idle=under(),
    caches=True,
)
