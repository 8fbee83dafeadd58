"""Lists of layers in which some look at a window of the sequence and the others at all of it.

The types differ in no parameter, and are kept apart all the same: what backward keeps depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator

from memcalc.arrays import Count
from memcalc.families import _alternating
from memcalc.families._rotary import RotarySettings, rotated
from memcalc.families._rotary_decoder import RotaryDecoderConfig, head_sizes
from memcalc.families.base import Depth, MaybeZero
from memcalc.layers.base import Layer, Maybe, Module
from memcalc.layers.basic import RotaryTable
from memcalc.tensors import Span

LayerType = Literal["sliding_attention", "full_attention"]
Kinds = Mapping[LayerType, Span]
"""The layers of each type: how many, and which."""
LEGACY = {"attention": "full_attention"}
"""source: transformers 5.23.0 configuration_utils.py _LEGACY_LAYER_TYPE_REMAP"""


def _modern(types: object) -> object:
    """The present names of layer types; whatever is no list is left for validation to refuse."""
    return [LEGACY.get(kind, kind) if isinstance(kind, str) else kind for kind in types] if isinstance(types, list) else types


LayerTypes = Annotated[tuple[LayerType, ...], BeforeValidator(_modern)]
"""The type of each layer, first to last."""


class WindowedConfig(RotaryDecoderConfig):
    """The keys of a decoder whose layers are of two types."""

    num_hidden_layers: Depth
    sliding_window: MaybeZero | None = 4096
    """The positions a query of a sliding layer looks back on."""
    layer_types: LayerTypes | None = None
    """None derives them from a pattern of the family's."""

    def check(self) -> tuple[str, str, str] | None:
        """A list of types names each layer's (configuration_utils.py PreTrainedConfig.validate_layer_type)."""
        types, layers = self.layer_types, self.num_hidden_layers
        if types is not None and len(types) != layers:
            return "layer_types", f"has {len(types)} entries for num_hidden_layers = {layers}", "name one type for each layer"
        return super().check()


def listed(types: tuple[LayerType, ...]) -> Kinds:
    """The types as a config lists them, those that occur.

    >>> listed(("full_attention", "sliding_attention", "full_attention"))["full_attention"].indices
    (0, 2)
    """
    return {kind: _alternating.listed(types, kind) for kind in sorted({*types})}


def every(total: Count, step: Count) -> Kinds:
    """Every ``step``-th layer attends to everything, the others slide.

    >>> kinds = every(7, 3)
    >>> kinds["sliding_attention"].indices, kinds["full_attention"].indices
    ((0, 1, 3, 4, 6), (2, 5))
    """
    full = _alternating.periodic(total, step, offset=1)
    return {"full_attention": full, "sliding_attention": _alternating.others(total, full)}


def sliding_from(total: Count, first: Count) -> Kinds:
    """The layers before ``first`` attend to everything, those from it on slide.

    >>> kinds = sliding_from(5, 3)
    >>> kinds["sliding_attention"].indices, kinds["full_attention"].indices
    ((3, 4), (0, 1, 2))
    """
    sliding = _alternating.periodic(total, 1, first=first)
    return {"full_attention": _alternating.others(total, sliding), "sliding_attention": sliding}


def all_full(total: Count) -> Kinds:
    """Every layer attends to everything."""
    return {"full_attention": Span(total)}


def stacked(kinds: Kinds, make: Callable[[LayerType], Layer]) -> Module:
    """One list of modules from the layer ``make`` gives for each type."""
    return _alternating.alternating(*((make(kind), span) for kind, span in kinds.items()))


def window(config: WindowedConfig, layer_type: LayerType) -> Count | None:
    """How far back a layer of that type looks; None for all the way."""
    return config.sliding_window if layer_type == "sliding_attention" else None


class TypedRotarySettings(RotarySettings):
    """Rotary parameters with a set for each type of layer inside."""

    full_attention: RotarySettings | None = None
    sliding_attention: RotarySettings | None = None

    def of(self, layer_type: LayerType) -> RotarySettings | None:
        """The set of that type."""
        return self.full_attention if layer_type == "full_attention" else self.sliding_attention


class TypedRotaryConfig(WindowedConfig):
    """The keys of a decoder whose types of layer have rotary frequencies of their own."""

    rope_parameters: TypedRotarySettings | None = None


def typed_rotary_width(config: TypedRotaryConfig, layer_type: LayerType) -> Count:
    """How many of a head's dimensions are rotated in layers of that type; the older ``rope_scaling`` speaks of the full ones.

    source: transformers 5.23.0 models/gemma3/configuration_gemma3.py Gemma3TextConfig.convert_rope_params_to_dict
    """
    seen = config.model_copy(update={"rope_scaling": None, "rope_parameters": _typed_settings(config, layer_type)})
    return rotated(seen, head_sizes(config).head_dim)


def typed_rotary_kind(config: TypedRotaryConfig, layer_type: LayerType) -> str:
    """The type of scaling of layers of that type."""
    return _typed_settings(config, layer_type).kind


def _typed_settings(config: TypedRotaryConfig, layer_type: LayerType) -> RotarySettings:
    own = (config.rope_parameters or TypedRotarySettings()).of(layer_type) or RotarySettings(rope_type="default")
    if layer_type == "full_attention" and config.rope_scaling is not None:
        own = own.model_copy(update=config.rope_scaling.model_dump(exclude_none=True))
    return own


def rotary_tables(kinds: Kinds, config: TypedRotaryConfig) -> Module:
    """The frequencies of each type of layer there is.

    source: transformers 5.23.0 models/gemma3/modeling_gemma3.py Gemma3RotaryEmbedding.__init__
    """
    tables = {kind: RotaryTable(typed_rotary_width(config, kind), prefix=f"{kind}_") for kind in sorted(kinds)}
    return Module([("", Maybe(kinds[kind].count > 0, table)) for kind, table in tables.items()])
