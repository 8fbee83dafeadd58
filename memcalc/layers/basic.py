"""The leaves: matrices, tables, normalisations, convolutions, and single tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from memcalc.arrays import Count
from memcalc.play import matmul as products
from memcalc.play import normalised, pointwise
from memcalc.play import norms as kernels
from memcalc.play.adapting import wanted
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Kind, Tensor


@dataclass(frozen=True, slots=True)
class Linear:
    """``nn.Linear``: weight ``(out, in)``, bias ``(out)``; ``transposed`` is transformers' ``Conv1D``, weight ``(in, out)``.

    >>> [t.shape for t in Linear(4, 3).tensors()]
    [(3, 4), (3,)]
    """

    in_features: Count
    out_features: Count
    bias: bool = True
    transposed: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Weight, then bias."""
        shape = (self.in_features, self.out_features) if self.transposed else (self.out_features, self.in_features)
        yield Tensor("weight", shape, kind="linear")
        if self.bias:
            yield Tensor("bias", (self.out_features,), kind="linear")

    def play(self, machine: Machine, value: Value) -> Value:
        """``(..., in)`` to ``(..., out)``, with the adapter that stands on it."""
        adapter = machine.policy.adapter
        return self.plain(machine, value) if adapter is None else adapter.linear(machine, self, value)

    def plain(self, machine: Machine, value: Value) -> Value:
        """The product alone."""
        shape = (self.in_features, self.out_features) if self.transposed else (self.out_features, self.in_features)
        weight = machine.parameter("weight", shape, "linear")
        bias = machine.parameter("bias", (self.out_features,), "linear") if self.bias else None
        return products.linear(machine, value, weight, bias, transposed=self.transposed)


@dataclass(frozen=True, slots=True)
class TiedLinear:
    """An ``nn.Linear`` that reads another module's weight: it multiplies like one, and holds a bias at most.

    ``tied_bias`` says that it reads another module's bias too.
    """

    in_features: Count
    out_features: Count
    bias: bool = False
    tied_bias: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """The bias, if any."""
        if self.bias:
            yield Tensor("bias", (self.out_features,), kind="linear")

    def play(self, machine: Machine, value: Value) -> Value:
        """``(..., in)`` to ``(..., out)``, by the weight it shares."""
        weight = machine.parameter("weight", (self.out_features, self.in_features), "linear")
        bias = machine.parameter("bias", (self.out_features,), "linear") if self.bias or self.tied_bias else None
        return products.linear(machine, value, weight, bias)


@dataclass(frozen=True, slots=True)
class Dropout:
    """``nn.Dropout``: no tensors, but a mask in training wherever the probability is above zero."""

    probability: float

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())

    def play(self, machine: Machine, value: Value) -> Value:
        """The value, with a mask kept where any of it may drop."""
        return pointwise.dropout(machine, value, self.probability)


@dataclass(frozen=True, slots=True)
class Embedding:
    """``nn.Embedding``: weight ``(rows, width)``."""

    rows: Count
    width: Count

    def tensors(self) -> Iterator[Tensor]:
        """The table."""
        yield Tensor("weight", (self.rows, self.width), kind="embedding")

    def play(self, machine: Machine, indices: Value) -> Value:
        """``(...)`` to ``(..., width)``."""
        out = kernels.embedding(machine, indices, machine.parameter("weight", (self.rows, self.width), "embedding"))
        adapter = machine.policy.adapter
        return wanted(machine, indices, out) if adapter is None else adapter.embedded(machine, indices, out)


@dataclass(frozen=True, slots=True)
class TiedEmbedding:
    """An ``nn.Embedding`` that reads another module's table: it looks up like one, and holds nothing."""

    rows: Count
    width: Count

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())

    def play(self, machine: Machine, indices: Value) -> Value:
        """``(...)`` to ``(..., width)``."""
        return kernels.embedding(machine, indices, machine.parameter("weight", (self.rows, self.width), "embedding"))


@dataclass(frozen=True, slots=True)
class ScaledEmbedding:
    """An ``nn.Embedding`` whose rows are multiplied by a constant kept as a float32 scalar buffer.

    source: transformers 5.23.0 models/gemma/modeling_gemma.py GemmaTextScaledWordEmbedding.__init__
    """

    rows: Count
    width: Count

    def tensors(self) -> Iterator[Tensor]:
        """The table, then the scalar."""
        yield Tensor("weight", (self.rows, self.width), kind="embedding")
        yield Tensor("embed_scale", (), role="buffer")

    def play(self, machine: Machine, indices: Value) -> Value:
        """``(...)`` to ``(..., width)`` (transformers 5.23.0 modeling_gemma.py:GemmaTextScaledWordEmbedding.forward)."""
        weight = machine.parameter("weight", (self.rows, self.width), "embedding")
        rows = kernels.embedding(machine, indices, weight)
        out = pointwise.mul(machine, rows, pointwise.to(machine, machine.constant((), "float32"), weight.dtype))
        return wanted(machine, indices, out)


NormFunction = Literal["rms", "layer", "rms_plus_one", "rms_float_scale", "layer_float", "layer_composed"]
"""What a normalisation computes, which decides what backward keeps of it.

``rms``: normalised in fp32, cast back, then scaled (llama); ``rms_plus_one``: scaled by one plus the weight, in fp32 (gemma);
``rms_float_scale``: scaled in fp32 before the cast (olmo2); ``layer``: torch's own layer normalisation; ``layer_float``: the
same on an fp32 copy (olmo); ``layer_composed``: written out step by step in fp32 (cohere).
"""


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation over ``width`` features: RMSNorm (no bias), LayerNorm (bias), or one without any weight.

    ``function`` says which it computes, as a layer normalisation without a bias holds what an RMSNorm holds.
    """

    width: Count
    bias: bool = False
    weight: bool = True
    function: NormFunction = "rms"

    def tensors(self) -> Iterator[Tensor]:
        """Scale, then shift."""
        if self.weight:
            yield Tensor("weight", (self.width,), kind="norm")
        if self.bias:
            yield Tensor("bias", (self.width,), kind="norm")

    def play(self, machine: Machine, value: Value) -> Value:
        """The value, normalised over its last dimension."""
        weight = machine.parameter("weight", (self.width,), "norm") if self.weight else None
        bias = machine.parameter("bias", (self.width,), "norm") if self.bias else None
        return normalised.NORMS[self.function](machine, value, weight, bias)


def rms_norm(width: Count, *, function: NormFunction = "rms") -> Norm:
    """A root-mean-square normalisation: a scale alone."""
    return Norm(width, function=function)


def layer_norm(width: Count, *, bias: bool = True, weight: bool = True) -> Norm:
    """A layer normalisation: by default a scale and a shift."""
    return Norm(width, bias=bias, weight=weight, function="layer")


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """``nn.BatchNorm2d``: scale and shift, and as buffers the running mean, variance and an int64 batch counter."""

    width: Count

    def tensors(self) -> Iterator[Tensor]:
        """Two parameters, three buffers."""
        yield Tensor("weight", (self.width,), kind="batch_norm")
        yield Tensor("bias", (self.width,), kind="batch_norm")
        yield Tensor("running_mean", (self.width,), role="buffer")
        yield Tensor("running_var", (self.width,), role="buffer")
        yield Tensor("num_batches_tracked", (), dtype="int64", role="buffer")

    def play(self, machine: Machine, value: Value) -> Value:
        """``(rows, width, height, width)`` to the same, by the statistics of the batch."""
        from memcalc.play.batch_norm import batch_norm

        weight = machine.parameter("weight", (self.width,), "batch_norm")
        bias = machine.parameter("bias", (self.width,), "batch_norm")
        return batch_norm(machine, value, weight, bias)


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution of any dimension: weight ``(out, in / groups, *kernel)``, bias ``(out)``.

    ``stride`` and ``padding`` have an entry for each dimension of ``kernel``; None is a stride of one, and no padding.
    """

    in_channels: Count
    out_channels: Count
    kernel: Sequence[Count]
    bias: bool = True
    groups: Count = 1
    stride: Sequence[Count] | None = None
    padding: Sequence[Count] | None = None
    dilation: Count = 1

    def tensors(self) -> Iterator[Tensor]:
        """Weight, then bias."""
        yield Tensor("weight", (self.out_channels, self.in_channels // self.groups, *self.kernel), kind="conv")
        if self.bias:
            yield Tensor("bias", (self.out_channels,), kind="conv")

    def play(self, machine: Machine, value: Value) -> Value:
        """``(rows, in, *extents)`` to ``(rows, out, *extents)``."""
        from memcalc.play.convolution import convolution

        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel)
        weight = machine.parameter("weight", shape, "conv")
        bias = machine.parameter("bias", (self.out_channels,), "conv") if self.bias else None
        stride = (1,) * len(self.kernel) if self.stride is None else self.stride
        padding = (0,) * len(self.kernel) if self.padding is None else self.padding
        return convolution(machine, value, weight, bias, stride, padding, self.dilation)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A single parameter registered by name on its module."""

    shape: Sequence[Count]
    kind: Kind = "other"
    trainable: bool = True

    def tensors(self) -> Iterator[Tensor]:
        """The one."""
        yield Tensor("", tuple(self.shape), kind=self.kind, trainable=self.trainable)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A single buffer registered by name on its module."""

    shape: Sequence[Count]
    dtype: str = "float32"

    def tensors(self) -> Iterator[Tensor]:
        """The one."""
        yield Tensor("", tuple(self.shape), dtype=self.dtype, role="buffer")


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """The inverse frequencies a rotary embedding keeps, float32, and the copy of the unscaled ones kept beside them.

    source: transformers 5.23.0 models/llama/modeling_llama.py LlamaRotaryEmbedding.__init__ (register_buffer, twice)
    """

    rotated: Count
    prefix: str = ""

    def tensors(self) -> Iterator[Tensor]:
        """``inv_freq`` and ``original_inv_freq``, half the rotated dimensions each; ``prefix`` tells layer types apart."""
        for name in ("inv_freq", "original_inv_freq"):
            yield Tensor(self.prefix + name, ((self.rotated + 1) // 2,), role="buffer")
