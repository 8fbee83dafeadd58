"""Options of caches that quantise in groups and keep the newest tokens as they are: names, defaults, and what they may be.

source: transformers 5.23.0 cache_utils.py: QuantizedCache, QuantizedLayer, QuantoQuantizedLayer, HQQQuantizedLayer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.errors import InputError
from memcalc.records import dataclass

GROUPED: dict[str, dict[str, tuple[int, ...]]] = {
    "quantized-quanto": {"nbits": (2, 4), "axis_key": (0, -1), "axis_value": (0, -1)},
    "quantized-hqq": {"nbits": (1, 2, 3, 4, 8), "axis_key": (0, 1), "axis_value": (0, 1)},
}
"""By kind of cache: what the options that are no sizes may be."""
TAKEN_BY: dict[str, tuple[str, ...]] = {"max_cache_length": ("static",), "cache_args": tuple(GROUPED)}
"""Keys of a job's inference, and the kinds of cache that have a use for them."""
LEAST = {"q_group_size": 1, "residual_length": 0}


@dataclass(frozen=True)
class CacheOptions:
    """How a layer of such a cache keeps its keys and values.

    Attributes:
        nbits: bits of an element.
        axis_key: the dimension along which keys are grouped, as the back end counts it.
        axis_value: likewise of values.
        q_group_size: elements that share a scale.
        residual_length: newest tokens that are kept as they are: at that many all is quantised anew.
    """

    nbits: int = 4
    axis_key: int = 0
    axis_value: int = 0
    q_group_size: int = 64
    residual_length: int = 128

    @property
    def cycle(self) -> int:
        """Steps of one token from one quantisation to the next."""
        return max(self.residual_length, 1)


def cache_options(kind: str, arguments: Mapping[str, Any]) -> CacheOptions:
    """The options of a grouped cache, every default filled in.

    Raises:
        InputError: an option that it does not have, or values that it does not take.

    >>> cache_options("quantized-quanto", {"nbits": 2}).nbits
    2
    """
    known = CacheOptions.__dataclass_fields__
    for name, value in arguments.items():
        path = f"inference.cache_args.{name}"
        if name not in known:
            raise InputError(path, value, f"is no option of a {kind} cache", f"use {', '.join(known)}")
        choices, least = GROUPED[kind].get(name), LEAST.get(name)
        if choices is not None and (isinstance(value, bool) or value not in choices):
            raise InputError(path, value, f"is not what a {kind} cache takes", f"use {' or '.join(map(str, choices))}")
        if least is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InputError(path, value, "is no number of them", f"use an integer from {least} on")
    made = CacheOptions(**arguments)
    if kind == "quantized-hqq" and made.nbits == 3 and 1 in (made.axis_key, made.axis_value):
        # hqq 0.2.8.post1 hqq/core/quantize.py:Quantizer.dequantize, which cuts rows off as those of a matrix
        raise InputError("inference.cache_args.nbits", 3, "is not read back along axis 1 by HQQ", "use axis 0 or 4 bits")
    return made
