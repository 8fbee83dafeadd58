"""What convolutional networks are made of: normalised convolutions, residual blocks of them, and pooling."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import BatchNorm, Conv
from memcalc.records import dataclass
from memcalc.tensors import Tensor


def square_conv(inside: Count, outside: Count, kernel: int, *, stride: Count = 1, groups: Count = 1) -> Conv:
    """A convolution over images, without a bias, padded so that a stride of one keeps their size."""
    return Conv(
        inside,
        outside,
        (kernel, kernel),
        bias=False,
        groups=groups,
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
    )


@dataclass(frozen=True, slots=True)
class ConvNorm:
    """A convolution, the batch normalisation of what comes out, perhaps an activation; ``names`` are (convolution, norm)."""

    conv: Conv
    activation: str | None = None
    names: tuple[str, str] = ("convolution", "normalization")

    @property
    def norm(self) -> BatchNorm:
        """The normalisation of the convolution's channels."""
        return BatchNorm(self.conv.out_channels)

    def tensors(self) -> Iterator[Tensor]:
        """Convolution, then norm."""
        conv, norm = self.names
        yield from Module([(conv, self.conv), (norm, self.norm)]).tensors()


@dataclass(frozen=True, slots=True)
class ConvResidual:
    """Normalised convolutions in a row, their input added to what comes out, an activation on the sum.

    Attributes:
        branch: the convolutions under their names.
        shortcut: what the input goes through before it is added, where there is anything; a ``Maybe`` where numbers decide.
        activation: of the sum.
        shortcut_first: whether the module registers the shortcut before the branch.
    """

    branch: tuple[tuple[str, ConvNorm], ...]
    shortcut: tuple[tuple[str, Layer], ...] = ()
    activation: str = "relu"
    shortcut_first: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Branch and shortcut, as the module registers them."""
        parts = (*self.shortcut, *self.branch) if self.shortcut_first else (*self.branch, *self.shortcut)
        yield from Module(parts).tensors()


@dataclass(frozen=True, slots=True)
class MaxPool:
    """``nn.MaxPool2d``: no tensors, but the indices of the maxima are kept for backward."""

    kernel: int
    stride: int
    padding: int

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())


@dataclass(frozen=True, slots=True)
class GlobalAveragePool:
    """``nn.AdaptiveAvgPool2d(1)``: one value a channel."""

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())
