"""GPT-Neo: layers that look back over everything and layers that look back over a window, each with its own mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from memcalc.arrays import Count, is_array
from memcalc.families._alternating import alternating, listed, others, periodic
from memcalc.families._classic_forward import learned_body, one_after_another_weighing, only_written
from memcalc.families._classic_heads import classic_forward
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._forward import Batch, Context
from memcalc.families._places import learned
from memcalc.families.base import Architecture, Depth, Family, FamilyConfig, Flag, Probability, Size
from memcalc.layers.base import Layer, Module, Stack
from memcalc.layers.basic import Buffer, Dropout, Embedding, layer_norm
from memcalc.layers.fused import cached, own_heads, windowed
from memcalc.layers.transformer import MLP, Attention, Block
from memcalc.play.machine import Machine
from memcalc.play.reshape import contiguous, merge_dims, transpose
from memcalc.play.values import Value
from memcalc.tensors import Span

NAMES = Names("transformer", "wte", "h", "ln_f", token_head="classifier", question_body="transformer")

Reach = Literal["global", "local"]


class GPTNeoConfig(FamilyConfig):
    """source: transformers 5.23.0 models/gpt_neo/configuration_gpt_neo.py"""

    aliases: ClassVar[Mapping[str, str]] = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}

    vocab_size: Size = 50257
    hidden_size: Size = 2048
    num_hidden_layers: Depth = 24
    num_attention_heads: Size = 16
    intermediate_size: Size | None = None
    max_position_embeddings: Size = 2048
    window_size: Size = 256
    attention_types: list[tuple[list[Reach], Depth]] | None = None
    """Patterns of layers and how often each is repeated; None for global and local in turns, twelve times."""
    attention_layers: list[Reach] | None = None
    """The same written out, which wins."""
    activation_function: str = "gelu_new"
    resid_dropout: Probability = 0.0
    embed_dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    classifier_dropout: Probability = 0.1
    tie_word_embeddings: Flag = True

    def check(self) -> tuple[str, str, str] | None:
        """Every layer has a kind (GPTNeoConfig.validate_architecture)."""
        types = [(["global", "local"], 12)] if self.attention_types is None else self.attention_types
        named = sum(len(pattern) * times for pattern, times in types)
        named = named if self.attention_layers is None else len(self.attention_layers)
        if named != self.num_hidden_layers:
            way_out = "name each layer's, as attention_types: [[[global, local], 12]] does for 24"
            return "num_hidden_layers", f"is not the {named} layers that attention_types gives a kind", way_out
        return super().check()


def local_layers(config: GPTNeoConfig) -> Span:
    """The layers that look back over a window."""
    types = config.attention_types
    if config.attention_layers is not None:
        return listed(config.attention_layers, "local")
    if types is None:
        return periodic(config.num_hidden_layers, 2, offset=1)
    if any(is_array(times) for _, times in types):
        return Span(sum(pattern.count("local") * times for pattern, times in types))
    return listed([kind for pattern, times in types for _ in range(times) for kind in pattern], "local")


def block(config: GPTNeoConfig, window: Count | None) -> Block:
    """One decoder layer."""
    hidden, heads, positions = config.hidden_size, config.num_attention_heads, config.max_position_embeddings
    intermediate = 4 * hidden if config.intermediate_size is None else config.intermediate_size
    mask: tuple[tuple[str, Layer], ...] = (("bias", Buffer((1, 1, positions, positions), "bool")),)
    attention = Attention(
        hidden, heads, heads, hidden // heads, output_bias=True, extra=mask,
        names={"k": "k_proj", "v": "v_proj", "q": "q_proj", "o": "out_proj"},
        dropout=config.attention_dropout, window=window,
    )  # fmt: skip
    return Block(
        (
            ("ln_1", layer_norm(hidden)),
            ("attn.attention", attention),
            ("attn.attention.resid_dropout", Dropout(config.resid_dropout)),
            ("ln_2", layer_norm(hidden)),
            ("mlp", MLP(hidden, intermediate, activation=config.activation_function)),
            ("mlp.dropout", Dropout(config.resid_dropout)),
        )
    )


def build(config: GPTNeoConfig, architecture: str) -> Architecture:
    """The decoder under its head."""
    local = local_layers(config)
    layers = alternating(
        (block(config, window=None), others(config.num_hidden_layers, local)), (block(config, config.window_size), local)
    )
    return decoder_architecture(
        config, architecture, layers, layer_norm(config.hidden_size), names=NAMES,
        before_layers=(
            ("wpe", Embedding(config.max_position_embeddings, config.hidden_size)),
            ("drop", Dropout(config.embed_dropout)),
        ),
    )  # fmt: skip


def attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
    """source: transformers 5.23.0 models/gpt_neo/modeling_gpt_neo.py:GPTNeoAttention.forward"""
    return machine.call("attention", _attention, machine, block, hidden, context)  # type: ignore[no-any-return]


def _attention(machine: Machine, block: Block, hidden: Value, context: Context) -> tuple[Value, Value]:
    layer = block.part("attn.attention")
    query, key, value = own_heads(machine, layer, hidden)
    key, value = cached(machine, key, value)
    out, weights = windowed(machine, query, key, value, context.mask, layer.dropout)
    out = merge_dims(machine, contiguous(machine, transpose(machine, out, 1, 2)), 2, 3)
    out = machine.call(layer.names["o"], layer.matrices()["o"].play, machine, out)
    out = machine.call("resid_dropout", block.part("attn.attention.resid_dropout").play, machine, out)
    return out, weights


def play(machine: Machine, architecture: str, config: GPTNeoConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it: layers of both reaches take the same memory."""
    only_written(machine)

    def body(machine: Machine, root: Module, batch: Batch) -> Value:
        layers = Stack(block(config, window=None), config.num_hidden_layers)
        layer = one_after_another_weighing(attention)
        return learned_body(machine, root, batch, NAMES, layer, eager=True, mask_first=True, weighing=layers)

    return classic_forward(machine, architecture, config, root, batch, NAMES, body)


FAMILY = Family(
    model_type="gpt_neo",
    config=GPTNeoConfig,
    architectures=(
        "GPTNeoForCausalLM",
        "GPTNeoModel",
        "GPTNeoForSequenceClassification",
        "GPTNeoForTokenClassification",
        "GPTNeoForQuestionAnswering",
    ),
    usual="GPTNeoForCausalLM",
    build=build,
    source="transformers 5.23.0 models/gpt_neo/modeling_gpt_neo.py",
    play=play,
    places=learned,
    caches=True,
)
