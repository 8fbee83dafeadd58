"""Modules that a training step does not reach, family by family: what the loss is not made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Idle = Callable[[Any, str, bool], tuple[str, ...]]
"""Of (config, architecture's name, whether images are read): names of modules."""

CROSS = ("encoder_attn", "encoder_attn_layer_norm")
"""BART's and Whisper's attention to an encoder, which a decoder alone is not given."""
CROSS_CLASSIC = ("crossattention", "ln_cross_attn")
"""BERT's and GPT-2's likewise, where ``add_cross_attention`` has made it."""
RUN = ("pooler", "multiple_choice_head")
"""Those that run all the same, and give what is no part of the loss."""


def under(**modules: tuple[str, ...]) -> Idle:
    """Modules by the head they are idle under; with attention to an encoder that nothing is given to.

    >>> under(BertModel=("pooler",))(None, "BertModel", False), under(BertModel=("pooler",))(None, "BertForMaskedLM", False)
    (('pooler',), ())
    """

    def idle(config: Any, architecture: str, sees: bool) -> tuple[str, ...]:
        classic = CROSS_CLASSIC if getattr(config, "add_cross_attention", False) else ()
        return (*modules.get(architecture, ()), *classic)

    return idle
