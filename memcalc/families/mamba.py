"""Mamba: a stack of selective state-space mixers, no attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from memcalc.arrays import Count, ceil_div
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Size
from memcalc.layers.basic import rms_norm
from memcalc.layers.state_space import MambaMixer
from memcalc.layers.transformer import Block

NAMES = Names("backbone", "embeddings", "layers", "norm_f")


class MambaConfig(FamilyConfig):
    """source: transformers 5.23.0 models/mamba/configuration_mamba.py"""

    aliases: ClassVar[Mapping[str, str]] = {"d_model": "hidden_size", "n_layer": "num_hidden_layers"}

    vocab_size: Size = 50280
    hidden_size: Size = 768
    state_size: Size = 16
    num_hidden_layers: Size = 32
    expand: Size = 2
    intermediate_size: Size | None = None
    """Channels of a mixer; ``expand`` times ``hidden_size`` unless a config says otherwise."""
    conv_kernel: Size = 4
    time_step_rank: Size | Literal["auto"] = "auto"
    use_bias: Flag = False
    use_conv_bias: Flag = True
    hidden_act: str = "silu"
    tie_word_embeddings: Flag = True


def mixer(config: MambaConfig) -> MambaMixer:
    """The mixer of a layer."""
    hidden, rank = config.hidden_size, config.time_step_rank
    inner: Count = config.expand * hidden if config.intermediate_size is None else config.intermediate_size
    return MambaMixer(
        hidden, inner, config.state_size, config.conv_kernel, ceil_div(hidden, 16) if isinstance(rank, str) else rank,
        config.use_bias, config.use_conv_bias, config.hidden_act,
    )  # fmt: skip


def build(config: MambaConfig, architecture: str) -> Architecture:
    """The stack under its head."""
    layer = Block((("norm", rms_norm(config.hidden_size)), ("mixer", mixer(config))))
    return decoder_architecture(config, architecture, layer, rms_norm(config.hidden_size), names=NAMES)


FAMILY = Family(
    model_type="mamba",
    config=MambaConfig,
    architectures=("MambaForCausalLM", "MambaModel"),
    usual="MambaForCausalLM",
    build=build,
    source="transformers 5.23.0 models/mamba/modeling_mamba.py",
    attends=False,
)
