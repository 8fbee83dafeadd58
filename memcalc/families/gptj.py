"""GPT-J: attention and feed-forward side by side from one norm, rotary positions kept as a table in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from memcalc.arrays import ceil_div, where
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, MaybeZero, Probability, Size
from memcalc.layers.basic import Buffer, Dropout, layer_norm
from memcalc.layers.transformer import MLP, Attention, Block

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


FAMILY = Family(
    model_type="gptj",
    config=GPTJConfig,
    architectures=("GPTJForCausalLM", "GPTJModel", "GPTJForSequenceClassification", "GPTJForQuestionAnswering"),
    usual="GPTJForCausalLM",
    build=build,
    source="transformers 5.23.0 models/gptj/modeling_gptj.py",
)
