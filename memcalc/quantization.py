"""What bitsandbytes keeps of a matrix in 4 bits: the packed matrix, its scales, and the tables they are read by.

source: bitsandbytes 0.50.2 functional.py: quantize_4bit, quantize_blockwise, QuantState; nn/modules.py: Params4bit
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count, ceil_div
from memcalc.play.quantized import BLOCK, OUTER
from memcalc.records import replace
from memcalc.tensors import Tensor

CODES, OUTER_CODES = 16, 256
"""Values of a 4-bit and of an 8-bit code, in FP32 (functional.py: get_4bit_type, create_dynamic_map)."""


def packed(weight: Tensor, *, nested: bool) -> Iterator[Tensor]:
    """The tensors that stand for one matrix; scales and tables are counted as buffers, for no precision scheme casts them.

    >>> [(t.shape, t.dtype) for t in packed(Tensor("w", (128, 64), kind="linear"), nested=False)]
    [((4096, 1), 'uint8'), ((128,), 'float32'), ((16,), 'float32')]
    """
    name = weight.name
    yield replace(weight, shape=(ceil_div(weight.numel, 2), 1), dtype="uint8", trainable=False, zeros=False, holds=2)
    blocks = ceil_div(weight.numel, BLOCK)

    def kept(what: str, shape: tuple[Count, ...], dtype: str = "float32") -> Tensor:
        return replace(weight, name=f"{name}.{what}", shape=shape, dtype=dtype, role="buffer", trainable=False, zeros=False)

    yield kept("absmax", (blocks,), "uint8" if nested else "float32")
    yield kept("quant_map", (CODES,))
    if nested:
        yield kept("nested_absmax", (ceil_div(blocks, OUTER),))
        yield kept("nested_quant_map", (OUTER_CODES,))
        yield kept("nested_offset", ())
