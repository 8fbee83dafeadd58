"""An image as a row of tokens: its patches behind a class token, each with a learned position."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.layers.base import Layer, Module
from memcalc.records import dataclass
from memcalc.tensors import Tensor

Area = tuple[Count, Count]
"""Height and width in pixels."""


def patches(image: Area, patch: Area) -> Count:
    """How many whole patches an image has.

    >>> patches((224, 224), (16, 16))
    196
    """
    return (image[0] // patch[0]) * (image[1] // patch[1])


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """From ``(channels, *image)`` pixels to ``tokens`` rows of features, with what a family holds for it under its own names.

    Attributes:
        image: height and width of the images.
        patch: height and width of a patch.
        parts: the convolution over patches, the class token, the positions, perhaps a mask token.
        dropout: that of the tokens.
    """

    image: Area
    patch: Area
    parts: tuple[tuple[str, Layer], ...]
    dropout: float = 0.0

    @property
    def tokens(self) -> Count:
        """The class token and the patches."""
        return 1 + patches(self.image, self.patch)

    def tensors(self) -> Iterator[Tensor]:
        """Each part's tensors under its name."""
        yield from Module(self.parts).tensors()
