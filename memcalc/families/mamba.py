"""Mamba: a stack of selective state-space mixers, no attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from memcalc.arrays import Count, ceil_div
from memcalc.families._decoder import Names, decoder_architecture
from memcalc.families._encoder_heads import bare
from memcalc.families._forward import Batch, causal_loss, run_layers
from memcalc.families.base import Architecture, Family, FamilyConfig, Flag, Size
from memcalc.layers.basic import rms_norm
from memcalc.layers.state_space import Kernels, MambaMixer
from memcalc.layers.transformer import Block
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, to
from memcalc.play.values import Value

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
    residual_in_fp32: Flag = True
    kernels: Kernels = "mamba-ssm"
    """No key of transformers': whose kernels are installed, which decides what runs (``implementation_args``)."""


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


ASSUMED = {
    "mamba-ssm": "mamba-ssm's and causal-conv1d's kernels are installed; without them: implementation_args: {kernels: torch}",
    "torch": "neither mamba-ssm nor causal-conv1d is installed: Mamba scans token after token in PyTorch",
}
"""By kernels."""


def block(machine: Machine, layer: Block, hidden: Value, config: MambaConfig) -> Value:
    """source: transformers 5.23.0 models/mamba/modeling_mamba.py:MambaBlock.forward"""
    residual = hidden
    norm = layer.part("norm")
    hidden = to(machine, hidden, machine.policy.dtype_of("norm"))
    hidden = machine.call("norm", norm.play, machine, hidden)
    if config.residual_in_fp32:
        residual = to(machine, residual, "float32")
    hidden = machine.call("mixer", layer.part("mixer").play, machine, hidden, config.kernels)
    return add(machine, residual, hidden)


def body(machine: Machine, root: Any, batch: Batch, config: MambaConfig) -> Value:
    """source: transformers 5.23.0 models/mamba/modeling_mamba.py:MambaModel.forward"""
    embeds = machine.call(NAMES.embedding, root.part(NAMES.embedding).play, machine, batch["input_ids"])
    hidden = run_layers(machine, NAMES.layers, root.part(NAMES.layers), block, embeds, config)
    return machine.call(NAMES.norm, root.part(NAMES.norm).play, machine, hidden)  # type: ignore[no-any-return]


def play(machine: Machine, architecture: str, config: MambaConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it."""
    machine.assumed[ASSUMED[config.kernels]] = None
    if architecture == "MambaModel":
        return bare(machine, body(machine, root, batch, config))
    hidden = machine.call(NAMES.body, body, machine, root.part(NAMES.body), batch, config)
    given = to(machine, hidden, machine.policy.dtype_of("linear"))
    logits = machine.call(NAMES.head, root.part(NAMES.head).play, machine, given)
    del given
    logits = to(machine, logits, "float32")
    return causal_loss(machine, logits, batch["labels"]), logits


RECAST: dict[str, tuple[str, ...]] = {
    "mamba-ssm": ("conv1d", "x_proj", "dt_proj", "out_proj"), "torch": ("conv1d.weight", "dt_proj.bias"),
}  # fmt: skip
"""By kernels: what the fused function casts by itself (mamba-ssm 2.3.2.post1 mamba_ssm/ops/selective_scan_interface.py:
MambaInnerFn.forward); a view of a weight, and a bias that is wanted in FP32."""

FAMILY = Family(
    model_type="mamba",
    config=MambaConfig,
    architectures=("MambaForCausalLM", "MambaModel"),
    usual="MambaForCausalLM",
    build=build,
    source="transformers 5.23.0 models/mamba/modeling_mamba.py",
    attends=False,
    play=play,
    options={"kernels": get_args(Kernels)},
    recast=lambda config: RECAST[config.kernels],
)
