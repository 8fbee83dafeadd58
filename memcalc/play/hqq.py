"""Keys and values quantised by HQQ: 1 to 8 bits in bytes or 32-bit words, a scale and a zero in the cache's dtype.

Its solver works in FP16 on CUDA, and stops where its error no longer falls, after two turns at the soonest: two are played,
since the second finds what the first has left, as all later ones do. It hands cached blocks back to the driver
(``torch.cuda.empty_cache``), which no tape tells.

source: hqq 0.2.8.post1 hqq/core: quantize.py:Quantizer, optimize.py:optimize_weights_proximal_legacy, bitpack.py:BitPack
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.arrays import Count, ceil_div
from memcalc.cache_options import CacheOptions
from memcalc.errors import InputError
from memcalc.kernels.reduction import contiguous as split_of
from memcalc.play.caching_grouped import Packed
from memcalc.play.hqq_solver import solved
from memcalc.play.pointwise import to
from memcalc.play.values import Shape, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

IN_A_WORD = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}
"""Elements in a byte, by bits; of 3 bits in 32 (bitpack.py)."""
PAIR = 16
"""Bytes in which a minimum is sought with its place (native/cuda/ReduceArgMaxKernel.cu)."""


class HQQ:
    """Its Quantizer, as HQQQuantizedLayer calls it.

    Args:
        options: how it quantises.
        narrow: dtype of the solver, FP32 on a CPU (optimize.py: ``device.type == "cuda"``).
    """

    name = "hqq"

    def __init__(self, options: CacheOptions, narrow: str = "float16") -> None:
        self.group, self.bits, self.narrow = options.q_group_size, options.nbits, narrow
        self.in_a_word = IN_A_WORD[options.nbits]
        self.word = "int32" if options.nbits == 3 else "uint8"

    def quantised(self, machine: Machine, tensor: Value, axis: int, name: str, dtype: str) -> Packed:
        """source: transformers 5.23.0 cache_utils.py:HQQQuantizedLayer._quantize"""
        levels, scale, zero, reach = self._levels(machine, tensor, axis)
        inverse = machine.like(machine.wide(scale), "reciprocal")
        turned = machine.like(inverse, "mul.Tensor")
        del inverse, scale
        data = self._packed(machine, levels, name)
        del levels, reach
        kept = []
        given = [turned, zero]
        del turned, zero
        for what in ("scale", "zero"):  # to_inplace: each copy takes the place of what it was made of
            made = to(machine, given.pop(0), dtype)
            made.storage.life.role, made.storage.life.name = "cache", f"{what} of the {name}"
            kept.append(made)
        return Packed(tensor.shape, dtype, axis, (data, *kept))

    def dequantised(self, machine: Machine, packed: Packed) -> Value:
        """source: quantize.py:Quantizer.dequantize"""
        data = packed.parts[0]
        rows, columns = self._grouped_shape(packed.shape, packed.axis)
        made = self._unpacked(machine, data, packed.dtype)
        moved = machine.new((rows, columns), packed.dtype, "sub.Tensor")
        out = machine.new((rows, columns), packed.dtype, "mul.Tensor")
        del moved, made
        return Value(out.storage, packed.shape, packed.dtype, view=True)

    def found(self, machine: Machine, shape: Shape, dtypes: tuple[str, str], axis: int, name: str) -> Packed:
        """source: bitpack.py, quantize.py:Quantizer.to_inplace"""
        self._check(machine, shape, axis)
        rows, columns = self._grouped_shape(shape, axis)
        data = machine.before((ceil_div(rows, self.in_a_word), columns), self.word, "cache", f"{name}, packed")
        each: Shape = (1, columns) if axis == 0 else (rows, 1)
        scale, zero = (machine.before(each, dtypes[1], "cache", f"{what} of the {name}") for what in ("scale", "zero"))
        return Packed(shape, dtypes[1], axis, (data, scale, zero))

    def _levels(self, machine: Machine, tensor: Value, axis: int) -> tuple[Value, Value, Value, Value]:
        """Levels in FP32, scales and zeros in the solver's dtype, and each group's reach (quantize.py:Quantizer.quantize)."""
        shape = self._grouped_shape(tensor.shape, axis)
        self._check(machine, tensor.shape, axis)
        wide = to(machine, tensor, "float32")
        flat = Value(wide.storage, shape, "float32", view=True)
        del wide
        least, most = self._extreme(machine, flat, axis, "min.dim"), self._extreme(machine, flat, axis, "max.dim")
        reach = machine.like(most, "sub.Tensor")
        scale = self._scale(machine, reach)
        negated = machine.like(least, "neg")
        zero = machine.like(negated, "mul.Tensor")
        del negated
        levels, scale, zero = solved(machine, flat, scale, zero, axis, self.narrow)
        return levels, scale, zero, reach

    def _extreme(self, machine: Machine, flat: Value, axis: int, operator: str) -> Value:
        """The least or the largest of each group; their places go at once."""
        rows, columns = flat.shape
        shape: Shape = (1, columns) if axis == 0 else (rows, 1)
        values, places = machine.new(shape, "float32", operator), machine.new(shape, "int64", operator)
        partial, semaphores = split_of(flat.shape, [axis], PAIR, machine.policy.behaviour.chip)
        machine.scratches([("partial results", partial), ("semaphores", semaphores)])
        del places
        return values

    def _scale(self, machine: Machine, reach: Value) -> Value:
        """Levels for each unit, none where a group hardly varies."""
        inverse = machine.like(reach, "reciprocal")
        scale = machine.like(inverse, "mul.Tensor")
        del inverse
        size = machine.like(reach, "abs")
        small = machine.like(size, "le.Scalar", "bool")
        del size
        ones = machine.like(scale, "full_like")
        chosen = machine.like(scale, "where.self")
        del small, ones, scale
        return machine.like(chosen, "clamp")

    def _packed(self, machine: Machine, levels: Value, name: str) -> Value:
        """Several rows in one (bitpack.py: pack_8bit_u8 to pack_1bit_u8)."""
        rows, columns = levels.shape
        shape = (ceil_div(rows, self.in_a_word), columns)
        if self.word == "int32":
            whole = machine.new((shape[0] * self.in_a_word, columns), "int32", "zeros")
        else:
            whole = machine.like(levels, "_to_copy", "uint8")
        if self.in_a_word == 1:
            made = whole
        else:
            made = machine.new(shape, self.word, "__lshift__")
            for place in range(1, self.in_a_word):
                last = place == self.in_a_word - 1
                part = whole if last else machine.new(shape, self.word, "__lshift__")
                made = machine.new(shape, self.word, "bitwise_or.Tensor")
                del part
        del whole
        made.storage.life.role, made.storage.life.name = "cache", f"{name}, packed"
        return made

    def _unpacked(self, machine: Machine, data: Value, dtype: str) -> Value:
        """source: bitpack.py: unpack_8bit_u8 to unpack_1bit_u8"""
        made = machine.new(
            (data.shape[0] * self.in_a_word, data.shape[1]), dtype, "empty" if self.in_a_word > 1 else "_to_copy"
        )
        if self.in_a_word > 1:
            for _ in range(self.in_a_word - 1):
                masked = machine.like(data, "bitwise_and.Tensor")
                moved = machine.like(masked, "__rshift__")
                del masked, moved
            masked = machine.like(data, "bitwise_and.Tensor")
            del masked
        return made

    def _grouped_shape(self, shape: Shape, axis: int) -> tuple[Count, Count]:
        """Rows and columns: a group each row, or with axis 0 each column."""
        groups = shape[0] * shape[1] * shape[2] * shape[3] // self.group
        return (groups, self.group) if axis == 1 else (self.group, groups)

    def _check(self, machine: Machine, shape: Shape, axis: int) -> None:
        """Raise an InputError where groups do not divide a tensor, or their rows do not fill words (3 bits are padded)."""
        if not machine.decide(shape[0] * shape[1] * shape[2] * shape[3] % self.group == 0):
            rule, way_out = "does not divide a layer's keys or values", "use a divisor of the head dimension"
            raise InputError("inference.cache_args.q_group_size", self.group, rule, way_out)
        rows, _ = self._grouped_shape(shape, axis)
        if self.bits != 3 and not machine.decide(rows % self.in_a_word == 0):
            what = "a q_group_size that" if axis == 0 else "groups whose number"
            rule = f"takes {what} is a multiple of {self.in_a_word}"
            raise InputError("inference.cache_args.nbits", self.bits, rule, "use axis 0 and such a q_group_size, or 8 bits")
