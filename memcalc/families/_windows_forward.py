"""Positions of decoders whose kinds of layer have rotary frequencies of their own."""

from __future__ import annotations

from memcalc.families._rotary_forward import Rotary
from memcalc.families._windows import Kinds, TypedRotaryConfig, typed_rotary_kind, typed_rotary_width


def typed_rotaries(config: TypedRotaryConfig, kinds: Kinds, *, wide: bool = False) -> dict[str, Rotary]:
    """How each kind of layer comes by its cosines and sines."""
    return {kind: Rotary(typed_rotary_width(config, kind), wide=wide, kind=typed_rotary_kind(config, kind)) for kind in kinds}
