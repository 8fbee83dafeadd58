"""Keys and values quantised by optimum-quanto: 2 or 4 bits in bytes, with a scale and a shift in the tensor's own dtype.

source: optimum-quanto 0.2.7 optimum/quanto/tensor: optimizers/affine_optimizer.py, optimizers/max_optimizer.py, grouped.py,
packed.py, qbits.py, weights/qbits.py; library/quantize.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.arrays import Count, ceil_div, maximum, minimum, where
from memcalc.cache_options import CacheOptions
from memcalc.errors import InputError
from memcalc.play.caching_grouped import Packed
from memcalc.play.reduce import split
from memcalc.play.reshape import merge_dims, permute, split_dim
from memcalc.play.values import Shape, Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


class Quanto:
    """Its MaxOptimizer and ``quantize_weight``, as QuantoQuantizedLayer calls them."""

    name = "quanto"

    def __init__(self, options: CacheOptions) -> None:
        self.group, self.in_a_byte = options.q_group_size, 8 // options.nbits

    def quantised(self, machine: Machine, tensor: Value, axis: int, name: str, dtype: str) -> Packed:
        """source: transformers 5.23.0 cache_utils.py:QuantoQuantizedLayer._quantize"""
        scale, shift = self._affine(machine, tensor, axis, name)
        whole = self._rounded(machine, tensor, axis, scale, shift)
        return Packed(tensor.shape, tensor.dtype, axis, (self._packed(machine, whole, name), scale, shift))

    def dequantised(self, machine: Machine, packed: Packed) -> Value:
        """source: qbits.py:QBitsDequantizer.forward; library/extensions/cuda/unpack.cu:allocate_output"""
        data, scale, _ = packed.parts
        unpacked = machine.new((data.shape[0] * self.in_a_byte, data.shape[1]), "uint8", "unpack")
        made = machine.new(self._grouped_shape(packed.shape, packed.axis), scale.dtype, "mul.Tensor")  # the shift goes in place
        out = self._ungrouped(machine, made, packed)
        del unpacked
        return out

    def found(self, machine: Machine, shape: Shape, dtypes: tuple[str, str], axis: int, name: str) -> Packed:
        """source: packed.py:pack_weights"""
        self._check(machine, shape, axis)
        dtype = dtypes[0]
        rows, columns = self._grouped_shape(shape, axis)
        data = machine.before((ceil_div(rows, self.in_a_byte), columns), "uint8", "cache", f"{name}, packed")
        scales = self._scales(rows, columns, axis)
        scale = machine.before(scales, dtype, "cache", f"scale of the {name}")
        return Packed(shape, dtype, axis, (data, scale, machine.before(scales, dtype, "cache", f"shift of the {name}")))

    def _affine(self, machine: Machine, tensor: Value, axis: int, name: str) -> tuple[Value, Value]:
        """source: optimizers/affine_optimizer.py:AffineOptimizer.__call__, optimizers/max_optimizer.py:MaxOptimizer.optimize"""
        base = self._grouped(machine, tensor, axis)
        rows, columns = base.shape
        scales = self._scales(rows, columns, axis)
        least = machine.new(scales, base.dtype, "amin")
        split(machine, base, [1 if axis == 0 else 0])
        most = machine.new(scales, base.dtype, "amax")
        split(machine, base, [1 if axis == 0 else 0])
        wide = machine.like(most, "sub.Tensor")
        scale = machine.new(scales, base.dtype, "div.Tensor", role="cache", name=f"scale of the {name}")
        del wide
        shift = machine.new(scales, base.dtype, "neg", role="cache", name=f"shift of the {name}")
        del least, most
        return scale, shift

    def _rounded(self, machine: Machine, tensor: Value, axis: int, scale: Value, shift: Value) -> Value:
        """Whole numbers, a byte each (library/quantize.py:quantize_affine)."""
        base = self._grouped(machine, tensor, axis)
        moved = machine.like(base, "add.Tensor")
        divided = machine.like(moved, "div.Tensor")
        del moved
        data = machine.like(divided, "round")
        del divided
        clamped = machine.like(data, "clamp")
        whole = machine.like(clamped, "_to_copy", "uint8")
        del clamped, data, base
        return whole

    def _packed(self, machine: Machine, whole: Value, name: str) -> Value:
        """Several rows in one (packed.py:pack_weights)."""
        rows, columns = whole.shape
        height = ceil_div(rows, self.in_a_byte)
        made = machine.new((height, columns), "uint8", "zeros", role="cache", name=f"{name}, packed")
        for place in range(self.in_a_byte):
            part = maximum(minimum(height, rows - place * height), 0)
            machine.scratch(part * columns, "__lshift__")
        return made

    def _grouped_shape(self, shape: Shape, axis: int) -> tuple[Count, Count]:
        """Rows and columns: a group each row, or with axis -1 each column (grouped.py:grouped_shape)."""
        groups = shape[0] * shape[1] * shape[2] * shape[3] // self.group
        return (groups, self.group) if axis == 0 else (self.group, groups)

    def _scales(self, rows: Count, columns: Count, axis: int) -> Shape:
        """A scale for each group; of a single row one for each column, as its axis is then none (affine_optimizer.py)."""
        if axis == -1:
            return (1, columns)
        return (where(rows == 1, columns, rows), 1)

    def _grouped(self, machine: Machine, tensor: Value, axis: int) -> Value:
        """A row of each group, in the tensor's own memory; with axis -1 a column, which is a copy (grouped.py:group)."""
        rows, heads, tokens, _ = tensor.shape
        self._check(machine, tensor.shape, axis)
        if axis == 0:
            return Value(tensor.storage, self._grouped_shape(tensor.shape, axis), tensor.dtype, view=True)
        flat = merge_dims(machine, tensor, 0, 2)
        each = split_dim(machine, flat, 0, (rows * heads * tokens // self.group, self.group))
        return merge_dims(machine, permute(machine, each, (1, 2, 0)), 1, 2)

    def _check(self, machine: Machine, shape: Shape, axis: int) -> None:
        """Raise an InputError where groups do not fill what they divide (grouped.py:group)."""
        rows, heads, tokens, width = shape
        divided = heads * tokens * width if axis == 0 else rows * heads * tokens
        if not machine.decide(divided % self.group == 0):
            what = "a sample's elements of all heads" if axis == 0 else "the tokens of all samples and heads"
            way_out = "use a divisor of the head dimension" if axis == 0 else "use axis 0, or sizes that it divides"
            raise InputError("inference.cache_args.q_group_size", self.group, f"does not divide {what}", way_out)

    def _ungrouped(self, machine: Machine, made: Value, packed: Packed) -> Value:
        """source: grouped.py:ungroup"""
        if packed.axis == 0:
            return Value(made.storage, packed.shape, made.dtype, view=True)
        rows, heads, tokens, width = packed.shape
        parts = split_dim(machine, made, 1, (width, rows * heads * tokens // self.group))
        flat = merge_dims(machine, permute(machine, parts, (2, 0, 1)), 0, 1)
        return Value(flat.storage, packed.shape, made.dtype, view=True)
