"""What families with mixtures of experts share: the key that chooses their layout, and the spellings of their number."""

from __future__ import annotations

from typing import Any, ClassVar

from memcalc.errors import NotModelledError
from memcalc.families._rotary import RotaryConfig
from memcalc.families.base import Flag, MaybeZero, Probability, Size
from memcalc.layers.moe import ExpertLayout

EXPERTS = {"num_local_experts": "num_experts", "n_routed_experts": "num_experts"}
"""The number of experts as Mixtral and gpt_oss, and as DeepSeek write it."""


class MixtureConfig(RotaryConfig):
    """Keys that every such family reads alike; the head dimension is a key of its own, or a quotient cut to a whole number."""

    divides: ClassVar[tuple[tuple[str, str], ...]] = (("num_key_value_heads", "num_attention_heads"),)

    vocab_size: Size
    hidden_size: Size
    num_attention_heads: Size
    num_experts_per_tok: MaybeZero | None = None
    hidden_act: str = "silu"
    attention_dropout: Probability = 0.0
    tie_word_embeddings: Flag = False
    classifier_dropout: Probability | None = None
    hidden_dropout: Probability | None = None
    expert_layout: ExpertLayout = "stacked"
    """How the experts' matrices are kept: as transformers 5 does, or one module for each."""
    output_router_logits: Flag = False
    """Whether the loss has the routers' own as a part."""
    router_jitter_noise: Probability = 0.0
    """How far mixtral's routers' inputs are shaken."""


def head_sizes(config: Any) -> tuple[Any, Any, Any]:
    """(query heads, key-value heads, head dimension), the last two derived where the config leaves them out."""
    heads = config.num_attention_heads
    kv_heads = heads if config.num_key_value_heads is None else config.num_key_value_heads
    head_dim = config.hidden_size // heads if config.head_dim is None else config.head_dim
    return heads, kv_heads, head_dim


def check_layer_types(config: Any) -> tuple[str, str, str] | None:
    """A config that lists its layers' types lists one for each (PreTrainedConfig.validate_layer_type)."""
    types = config.layer_types
    if types is not None and len(types) != config.num_hidden_layers:
        return "layer_types", f"are {len(types)} for num_hidden_layers = {config.num_hidden_layers}", "list one for each layer"
    return None


def check_mixture(config: Any) -> None:
    """What a mixture's forward is not modelled with.

    Raises:
        NotModelledError: experts that are modules of their own, the routers' own loss, or noise on their inputs.
    """
    if config.expert_layout == "separate":
        raise NotModelledError(
            "model.expert_layout", "separate", "is a layout whose activations are not modelled", "set it to stacked"
        )
    if config.output_router_logits:
        raise NotModelledError("model.output_router_logits", True, "adds a loss that is not modelled", "use engine trace")
    if config.router_jitter_noise > 0:
        noise = config.router_jitter_noise
        raise NotModelledError("model.router_jitter_noise", noise, "is noise that is not modelled", "set it to 0")
