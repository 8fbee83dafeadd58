"""GPT-NeoX (and Pythia): attention and feed-forward side by side, a part of each head rotated."""

from __future__ import annotations

from memcalc.arrays import Count
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._rotary import Part, RotaryConfig, rotated
from memcalc.families.base import Architecture, Family, Flag, Probability, Size
from memcalc.layers.basic import Dropout, RotaryTable, layer_norm
from memcalc.layers.transformer import MLP, Block, FusedAttention

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
)
