"""Configs of Hugging Face's as torchtune's builders are told them, and what changed in its code from time to time.

source: pytorch/torchtune models/*/_model_builders.py, _component_builders.py, at the commits of ``VERSIONS``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from memcalc.arrays import Count
from memcalc.errors import InputError, NotModelledError, did_you_mean, either
from memcalc.implementations._torchtune_layers import NormKind, TuneLora
from memcalc.implementations.base import Asked, dated
from memcalc.models import Model
from memcalc.records import dataclass


class Version(NamedTuple):
    """What changed from time to time.

    Attributes:
        norm: how an RMSNorm is written.
        copies: whether builders that build one layer copy it, with the rotary cache in it (modules/transformer.py:_get_clones);
            else every layer is built on one cache.
    """

    norm: NormKind
    copies: bool


VERSIONS: Mapping[str, Version] = {
    "2024-11-10": Version("own", copies=True),  # e1caa9f8 to 1814feb1, v0.4.0
    "2024-11-25": Version("built_in", copies=True),  # 1450d612, v0.5.0
    "2025-01-27": Version("built_in", copies=False),  # 23896c30, v0.6.0 and v0.6.1
}
"""By the date of the first commit that was read with it."""
BUILDERS: Mapping[str, tuple[int, bool]] = {
    "llama2": (4096, True), "llama3": (8192, True), "llama3_1": (131072, False), "llama3_2": (131072, False),
    "qwen2": (32768, True),
}  # fmt: skip
"""By builder: positions that its rotary cache has (models/*/_model_builders.py: max_seq_len), and whether it built one layer
and copied it."""
LOSSES = ("CEWithChunkedOutputLoss", "CrossEntropyLoss")
"""Of the recipes' ``loss._component_``."""
MATRICES = ("q_proj", "k_proj", "v_proj", "output_proj")
TARGETS = (*MATRICES, "mlp", "output")
"""What adapters stand on (models/llama3/_component_builders.py: lora_attn_modules, apply_lora_to_mlp, apply_lora_to_output)."""


@dataclass
class Shape:
    """A decoder as torchtune's builders are told it, read from a config of Hugging Face's.

    Attributes:
        vocabulary: tokens.
        width: features.
        layers: blocks.
        heads: of queries.
        groups: of keys and values.
        inner: features of the feed-forward.
        longest: positions in the rotary cache (``max_seq_len``).
        tied: whether the output reads the embedding's table.
        biased: whether queries, keys and values have biases, and halves turn (Qwen 2).
        alone: whether every layer has a rotary cache of its own (a layer built once and copied: transformer.py:_get_clones).
        norm: how the norms are written.
        loss: one of ``LOSSES``.
        packed: whether samples are packed.
        lora: the adapters; None for none.
        targets: what they stand on.
    """

    vocabulary: Count
    width: Count
    layers: Count
    heads: Count
    groups: Count
    inner: Count
    longest: Count
    tied: bool
    biased: bool
    alone: bool
    norm: NormKind
    loss: str
    packed: bool
    lora: TuneLora | None
    targets: frozenset[str]

    @property
    def head_dim(self) -> Count:
        """Of each head."""
        return self.width // self.heads

    @property
    def cache(self) -> tuple[Count, ...]:
        """The rotary cache: pairs of a cosine and a sine, or of Qwen 2 both for every dimension of a head."""
        return (self.longest, 2 * self.head_dim) if self.biased else (self.longest, self.head_dim // 2, 2)


def shape_of(model: Model, asked: Asked) -> Shape:
    config, told, family = model.config, asked.arguments, model.family
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None and not _alike(head_dim * heads, width):
        raise NotModelledError("model.head_dim", head_dim, "is the width over the heads in torchtune", "leave it out")
    if family == "llama" and (config.attention_bias or config.mlp_bias):
        raise NotModelledError("model.attention_bias", True, "is not in torchtune's Llama", "leave it out")
    loss, packed = told.get("loss", LOSSES[0]), told.get("packed", False)
    version = version_of(told)
    longest, copied = BUILDERS[builder_of(model, told)]
    longest = told.get("max_seq_len", longest)
    if loss not in LOSSES:
        raise NotModelledError("implementation_args.loss", loss, "is not modelled", f"use {either(list(LOSSES))}")
    if not isinstance(packed, bool):
        raise InputError("implementation_args.packed", packed, "is not what a dataset takes", "use true or false")
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise InputError("implementation_args.max_seq_len", longest, "is no number of tokens", "use 8192 or another")
    groups = heads if config.num_key_value_heads is None else config.num_key_value_heads
    return Shape(
        config.vocab_size, width, config.num_hidden_layers, heads, groups, config.intermediate_size, longest,
        bool(config.tie_word_embeddings), family == "qwen2", copied and version.copies, version.norm, loss, packed,
        *_lora(asked),
    )  # fmt: skip


def builder_of(model: Model, told: Mapping[str, Any]) -> str:
    """As the job says; else Qwen 2's, or that of Llama 3.2 for tied embeddings and of Llama 3.1 for others."""
    usual = "qwen2" if model.family == "qwen2" else "llama3_2" if model.config.tie_word_embeddings else "llama3_1"
    name = told.get("builder", usual)
    if not isinstance(name, str) or name not in BUILDERS or (name == "qwen2") != (model.family == "qwen2"):
        raise InputError("implementation_args.builder", name, f"does not build a {model.family}", did_you_mean(str(name), [
            each for each in BUILDERS if (each == "qwen2") == (model.family == "qwen2")]))  # fmt: skip
    return str(name)


def _alike(first: Any, second: Any) -> bool:
    same = first == second
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def version_of(told: Mapping[str, Any]) -> Version:
    date = dated(told, max(VERSIONS))
    known = [each for each in VERSIONS if each <= date]
    if not known:
        raise InputError("implementation_args.version", date, "is before what is known of torchtune",
                         f"give a date from {min(VERSIONS)} on")  # fmt: skip
    return VERSIONS[max(known)]


def _lora(asked: Asked) -> tuple[TuneLora | None, frozenset[str]]:
    """Torchtune's defaults: rank 8, no dropout; the recipes' configs adapt queries, values and output_proj."""
    if asked.lora is None:
        return None, frozenset()
    targets = asked.lora.get("target_modules") or ("q_proj", "v_proj", "output_proj")
    for name in targets:
        if name not in TARGETS:
            raise InputError(
                "training.lora.target_modules", name, "is nothing that torchtune adapts", did_you_mean(name, TARGETS)
            )
    return TuneLora(int(asked.lora.get("r", 8)), float(asked.lora.get("lora_dropout", 0.0))), frozenset(targets)
