"""How many of a head's dimensions a rotary embedding turns, from whichever spelling the config gives."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from memcalc.arrays import Count, truncate
from memcalc.families.base import FamilyConfig

Part = Annotated[float, Field(strict=True, gt=0, le=1)]
"""A share of a head's dimensions."""


class RotarySettings(BaseModel):
    """The entries of ``rope_parameters`` (``rope_scaling`` before transformers 5) that decide how long ``inv_freq`` is."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    rope_type: str | None = None
    type: str | None = None
    partial_rotary_factor: Part | None = None

    @property
    def kind(self) -> str:
        """The type under its newer key, its older one, or the default."""
        return self.rope_type or self.type or "default"


class RotaryConfig(FamilyConfig):
    """The keys of a family with rotary positions."""

    rope_parameters: RotarySettings | None = None
    rope_scaling: RotarySettings | None = None
    partial_rotary_factor: Part | None = None


def rotated(config: Any, head_dim: Count, *, default_is_partial: bool = False, share: float = 1.0) -> Count:
    """Dimensions of a head that are rotated, of ``head_dim``.

    The scaled types rotate ``partial_rotary_factor`` of a head, wherever it is written; a family's default type heeds it only
    where its own formula does (``default_is_partial``, as gpt_neox). ``share`` is the family's factor where none is written.

    source: transformers 5.23.0 modeling_rope_utils.py, the _compute_*_parameters functions (dim) and
    RotaryEmbeddingConfigMixin.convert_rope_params_to_dict (which spelling wins)
    """
    settings = config.rope_scaling or config.rope_parameters or RotarySettings()
    written = [settings.partial_rotary_factor, config.partial_rotary_factor, share]
    part = next(factor for factor in written if factor is not None)
    if settings.kind == "proportional":
        return head_dim // 2 * 2
    if settings.kind == "default" and not default_is_partial:
        return head_dim
    return truncate(head_dim * part)
