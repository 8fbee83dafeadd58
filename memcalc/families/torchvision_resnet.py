"""torchvision's ResNet, with the ResNeXt and wide variants that its groups and widths make.

``depth`` 18, 34, 50, 101 or 152 stands for the layers of each stage; ``groups: 32, width_per_group: 4`` is ResNeXt 32x4d and
``width_per_group: 128`` the wide one.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from memcalc.arrays import Condition, Count
from memcalc.families import _paired_heads as heads
from memcalc.families import _resnet_forward as forward
from memcalc.families._alternating import alternating, periodic
from memcalc.families._forward import Batch
from memcalc.families.base import IMAGE, Architecture, Family, FamilyConfig, Flag, MaybeZero, Size
from memcalc.layers.base import Layer, Maybe, Module
from memcalc.layers.basic import Linear
from memcalc.layers.convolution import ConvNorm, ConvResidual, GlobalAveragePool, MaxPool, square_conv
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.tensors import Span

LayerType = Literal["basic", "bottleneck"]
STAGES: dict[str, tuple[LayerType, tuple[int, int, int, int]]] = {
    "18": ("basic", (2, 2, 2, 2)),
    "34": ("basic", (3, 4, 6, 3)),
    "50": ("bottleneck", (3, 4, 6, 3)),
    "101": ("bottleneck", (3, 4, 23, 3)),
    "152": ("bottleneck", (3, 8, 36, 3)),
}
"""The block and the layers of each stage by depth (torchvision/models/resnet.py: resnet18 ... resnet152)."""
EXPANSION: dict[LayerType, int] = {"basic": 1, "bottleneck": 4}
"""Channels that leave a block over those that its stage is named after (BasicBlock.expansion, Bottleneck.expansion)."""
STEM = 64
"""Channels after the first convolution, and those that the first stage is named after (ResNet.__init__)."""


def _words(value: Any) -> Any:
    """A depth as the word it is looked up by: it names a table's row and is never computed with."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class TorchvisionResNetConfig(FamilyConfig):
    """source: torchvision at 07a929e models/resnet.py ResNet.__init__, whose own names for the keys are read too"""

    aliases: ClassVar = {"layers": "depths", "block": "layer_type", "num_classes": "num_labels"}

    depth: Annotated[Literal["18", "34", "50", "101", "152"], BeforeValidator(_words)] = "50"
    depths: tuple[Size, Size, Size, Size] | None = None
    layer_type: LayerType | None = None
    groups: Size = 1
    width_per_group: Size = 64
    replace_stride_with_dilation: tuple[Flag, Flag, Flag] | None = None
    num_labels: MaybeZero = 1000

    def check(self) -> tuple[str, str, str] | None:
        """Basic blocks have one group of the usual width, and no dilation."""
        if self.depths is not None and "depth" in self.model_fields_set:
            return "depth", "says what depths says too", "keep one of the two"
        if block_type(self) == "basic":
            if self.groups != 1:
                return "groups", "is not 1, as basic blocks need", "use bottleneck blocks, as depth 50 has"
            if self.width_per_group != STEM:
                return "width_per_group", f"is not {STEM}, as basic blocks need", "use bottleneck blocks, as depth 50 has"
            if any(self.replace_stride_with_dilation or ()):
                return "replace_stride_with_dilation", "is not for basic blocks", "use bottleneck blocks, as depth 50 has"
        return super().check()


def block_type(config: TorchvisionResNetConfig) -> LayerType:
    """The block: the one named, else a bottleneck where stages are listed, else the one of the depth."""
    if config.layer_type is not None:
        return config.layer_type
    return "bottleneck" if config.depths is not None else STAGES[config.depth][0]


def convolutions(config: TorchvisionResNetConfig, inside: Count, planes: Count, stride: int) -> tuple[ConvNorm, ...]:
    """The branch of one block, the last without an activation of its own.

    source: torchvision at 07a929e models/resnet.py BasicBlock.__init__, Bottleneck.__init__
    """
    sizes: tuple[tuple[Count, Count, int, int, Count], ...]
    if block_type(config) == "basic":
        sizes = ((inside, planes, 3, stride, 1), (planes, planes, 3, 1, 1))
    else:
        width = planes * config.width_per_group // STEM * config.groups
        outside = planes * EXPANSION["bottleneck"]
        sizes = ((inside, width, 1, 1, 1), (width, width, 3, stride, config.groups), (width, outside, 1, 1, 1))
    return tuple(
        ConvNorm(
            square_conv(before, after, kernel, stride=step, groups=groups),
            activation="relu" if index < len(sizes) else None,
            names=(f"conv{index}", f"bn{index}"),
        )
        for index, (before, after, kernel, step, groups) in enumerate(sizes, start=1)
    )


def residual(
    config: TorchvisionResNetConfig, inside: Count, planes: Count, stride: int = 1, changes: Condition | None = None
) -> ConvResidual:
    """One block; its input passes a convolution where ``changes`` says that its shape does."""
    branch = tuple(("", layer) for layer in convolutions(config, inside, planes, stride))
    if changes is None:
        return ConvResidual(branch)
    shortcut = ConvNorm(square_conv(inside, planes * EXPANSION[block_type(config)], 1, stride=stride), names=("0", "1"))
    return ConvResidual(branch, (("downsample", Maybe(changes, shortcut)),))


def stage(config: TorchvisionResNetConfig, index: int, inside: Count, depth: Count) -> Module:
    """A first block that changes the width and, after the first stage, halves the image; then blocks that keep both.

    A stride traded for dilation leaves the image whole; the dilated convolutions are padded to keep its size.

    source: torchvision at 07a929e models/resnet.py ResNet._make_layer
    """
    planes = STEM * 2**index
    outside = planes * EXPANSION[block_type(config)]
    dilated = config.replace_stride_with_dilation or (False, False, False)
    stride = 1 if index == 0 or dilated[index - 1] else 2
    changes = True if stride == 2 else inside != outside
    return alternating(
        (residual(config, inside, planes, stride, changes), Span(1, (0,))),
        (residual(config, outside, planes), periodic(depth, 1, first=1)),
    )


def build(config: TorchvisionResNetConfig, architecture: str) -> Architecture:
    """Stem, four stages, the mean over the image, the classes.

    source: torchvision at 07a929e models/resnet.py ResNet.__init__
    """
    assert architecture == "ResNet", architecture
    depths = STAGES[config.depth][1] if config.depths is None else config.depths
    expansion = EXPANSION[block_type(config)]
    stem = ConvNorm(square_conv(3, STEM, 7, stride=2), "relu", ("conv1", "bn1"))
    parts: list[tuple[str, Layer]] = [("", stem), ("maxpool", MaxPool(3, 2, 1))]
    inside = STEM
    for index, depth in enumerate(depths):
        parts.append((f"layer{index + 1}", stage(config, index, inside, depth)))
        inside = STEM * 2**index * expansion
    return Architecture(Module([*parts, ("avgpool", GlobalAveragePool()), ("fc", Linear(inside, config.num_labels))]))


def play(machine: Machine, architecture: str, config: TorchvisionResNetConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward; the model has no loss of its own.

    source: torchvision at 07a929e models/resnet.py:ResNet._forward_impl
    """
    value = forward.conv_norm(machine, root.part(""), batch["pixel_values"], True)
    value = machine.call("maxpool", forward.pooled_most, machine, root.part("maxpool"), value)
    for name, layers in forward.parts_of(root, "layer"):
        value = forward.stage(machine, name, layers, value, in_place=True)
    value = machine.call("avgpool", forward.pooled, machine, value)
    value = forward.flat(machine, value)
    return heads.bare(machine, machine.call("fc", root.part("fc").play, machine, value))


FAMILY = Family(
    model_type="torchvision_resnet",
    config=TorchvisionResNetConfig,
    architectures=("ResNet",),
    usual="ResNet",
    build=build,
    source="torchvision at 07a929e models/resnet.py",
    inputs=IMAGE,
    play=play,
    attends=False,
)
