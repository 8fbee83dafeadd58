"""Configs of Hugging Face's as litgpt's ``Config`` has them, and what changed in its code from time to time.

source: Lightning-AI/litgpt config.py, model.py, lora.py, at the commits of ``VERSIONS``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal, NamedTuple

from memcalc.arrays import Count
from memcalc.errors import NotModelledError
from memcalc.families._rotary_decoder import head_sizes
from memcalc.implementations._litgpt_lora import Lora
from memcalc.records import dataclass

NormKind = Literal["layer", "own", "cast_last", "cast_first", "float_weight"]


class Version(NamedTuple):
    """What changed from time to time.

    Attributes:
        rms: how an RMSNorm is written.
        residual_first: the order of a parallel block's sums.
        shares: whether a single key head is not repeated.
        low_tables: whether rotary tables are FP16 where the model is in 16 bits.
        lora_scales: whether the adapted model scales its embeddings, as the plain one does.
        in_place: how an adapter's result is padded.
        counts: whether the loss is divided by a count of tokens.
        two_names: whether a parallel block has names for what both of its norms give (bfe26099 gave them one).
    """

    rms: NormKind
    residual_first: bool = False
    shares: bool = False
    low_tables: bool = False
    lora_scales: bool = True
    in_place: bool = True
    counts: bool = True
    two_names: bool = False


VERSIONS: Mapping[str, Version] = {
    "2023-09-27": Version(  # 29de2828, 8641822b
        "own",
        residual_first=True,
        shares=True,
        low_tables=True,
        lora_scales=False,
        in_place=False,
        counts=False,
        two_names=True,
    ),
    "2023-10-27": Version("cast_last", lora_scales=False, in_place=False, counts=False, two_names=True),  # 0cc02afa
    "2024-03-15": Version("cast_first", lora_scales=False, in_place=False, two_names=True),  # 4a9b7e62, 41dece20, 0d207708
    "2024-03-28": Version("cast_first", in_place=False),  # 3cf6493c, 58c5b188, 43c44323
    "2024-05-06": Version("cast_first"),  # 101e31d2, f247be87
    "2024-08-02": Version("float_weight"),  # 2b195c7f
}
"""By the date of the first commit that was read with it. A date between two is taken for the earlier one's."""


@dataclass
class Shape:
    """A model as litgpt's ``Config`` has it, read from a config of Hugging Face's (litgpt config.py)."""

    vocabulary: Count
    width: Count
    layers: Count
    heads: Count
    groups: Count
    head_size: Count
    rotated: Count
    inner: Count
    norm: Literal["layer", "rms"] = "rms"
    mlp: Literal["neox", "llama", "gemma"] = "llama"
    bias: bool = False
    head_bias: bool = False
    parallel: bool = False
    shared_norm: bool = False
    gemma: bool = False
    capped: bool = False
    version: Version = field(default_factory=lambda: VERSIONS["2024-08-02"])
    lora: Lora | None = None
    script: str = "full"
    quantization: str | None = None


def _llama(config: Any) -> Shape:
    return _rotary(config, head_sizes(config).head_dim)


def _rotary(config: Any, rotated: Count, **more: Any) -> Shape:
    heads, groups, size = head_sizes(config)
    return Shape(config.vocab_size, config.hidden_size, config.num_hidden_layers, heads, groups, size, rotated,
                 config.intermediate_size, **more)  # fmt: skip


def _phi(config: Any) -> Shape:
    from memcalc.families._rotary_decoder import rotary_width
    from memcalc.families.phi import ROTATED

    return _rotary(config, rotary_width(config, ROTATED), norm="layer", mlp="neox", bias=True, head_bias=True, parallel=True,
                   shared_norm=True)  # fmt: skip


def _gemma(config: Any) -> Shape:
    return _rotary(config, head_sizes(config).head_dim, mlp="gemma", gemma=True)


def _gemma2(config: Any) -> Shape:
    return _rotary(config, head_sizes(config).head_dim, mlp="gemma", gemma=True, capped=True)


def _gpt_neox(config: Any) -> Shape:
    from memcalc.families.gpt_neox import rotary_dim

    heads = config.num_attention_heads
    return Shape(config.vocab_size, config.hidden_size, config.num_hidden_layers, heads, heads, config.hidden_size // heads,
                 rotary_dim(config), config.intermediate_size, "layer", "neox", bias=True,
                 parallel=config.use_parallel_residual)  # fmt: skip


def _falcon(config: Any) -> Shape:
    new = bool(config.new_decoder_architecture)
    if config.alibi or not (new or (config.multi_query and config.parallel_attn)):
        raise NotModelledError("implementation", "litgpt", "is known of falcon with one key head and parallel attention, or of "
                               "its new architecture")  # fmt: skip
    heads, width = config.num_attention_heads, config.hidden_size
    groups = (config.num_key_value_heads or heads) if new else 1
    return Shape(config.vocab_size, width, config.num_hidden_layers, heads, groups, width // heads, width // heads, 4 * width,
                 "layer", "neox", bias=bool(config.bias), parallel=True, shared_norm=not new)  # fmt: skip


SHAPES: Mapping[str, Callable[[Any], Shape]] = {
    "llama": _llama, "mistral": _llama, "phi": _phi, "phi3": _llama, "gemma": _gemma, "gemma2": _gemma2, "gpt_neox": _gpt_neox,
    "falcon": _falcon,
}  # fmt: skip
