"""ResNet as transformers has it; torchvision's own is ``torchvision_resnet``."""

from __future__ import annotations

from typing import Any, Literal

from memcalc.arrays import Condition, Count
from memcalc.families import _paired_heads as heads
from memcalc.families import _resnet_forward as forward
from memcalc.families._alternating import alternating, periodic
from memcalc.families._forward import Batch
from memcalc.families.base import IMAGE, Architecture, Family, FamilyConfig, Flag, Size
from memcalc.layers.base import Layer, Maybe, Module
from memcalc.layers.basic import Linear
from memcalc.layers.convolution import ConvNorm, ConvResidual, GlobalAveragePool, MaxPool, square_conv
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.tensors import Span


class ResNetConfig(FamilyConfig):
    """source: transformers 5.23.0 models/resnet/configuration_resnet.py"""

    num_channels: Size = 3
    embedding_size: Size = 64
    hidden_sizes: tuple[Size, ...] = (256, 512, 1024, 2048)
    depths: tuple[Size, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: Flag = False
    downsample_in_bottleneck: Flag = False

    def check(self) -> tuple[str, str, str] | None:
        """Every stage has a width and a depth."""
        stages, depths = len(self.hidden_sizes), len(self.depths)
        if stages != depths or not stages:
            return "depths", f"has {depths} stages where hidden_sizes has {stages}", "give one of each for every stage"
        return super().check()


REDUCTION = 4
"""How much narrower a bottleneck is than its stage (modeling_resnet.py: ResNetBottleNeckLayer.__init__)."""


def convolutions(config: ResNetConfig, inside: Count, outside: Count, stride: int) -> tuple[ConvNorm, ...]:
    """The branch of one layer, the activation inside it torch's relu whatever the config says.

    source: transformers 5.23.0 models/resnet/modeling_resnet.py ResNetBasicLayer.__init__, ResNetBottleNeckLayer.__init__
    """
    if config.layer_type == "basic":
        return (
            ConvNorm(square_conv(inside, outside, 3, stride=stride), "relu"),
            ConvNorm(square_conv(outside, outside, 3)),
        )
    narrow = outside // REDUCTION
    first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
    return (
        ConvNorm(square_conv(inside, narrow, 1, stride=first), "relu"),
        ConvNorm(square_conv(narrow, narrow, 3, stride=second), "relu"),
        ConvNorm(square_conv(narrow, outside, 1)),
    )


def residual(
    config: ResNetConfig, inside: Count, outside: Count, stride: int = 1, changes: Condition | None = None
) -> ConvResidual:
    """One layer; its input passes a convolution where ``changes`` says that its shape does."""
    convs = convolutions(config, inside, outside, stride)
    branch = tuple((f"layer.{index}", layer) for index, layer in enumerate(convs))
    if changes is None:
        return ConvResidual(branch, activation=config.hidden_act)
    shortcut = Maybe(changes, ConvNorm(square_conv(inside, outside, 1, stride=stride)))
    return ConvResidual(branch, (("shortcut", shortcut),), activation=config.hidden_act, shortcut_first=True)


def stage(config: ResNetConfig, inside: Count, outside: Count, depth: Count, *, halves: bool) -> Module:
    """A first layer that changes the width, and perhaps halves the image, then others that keep both.

    source: transformers 5.23.0 models/resnet/modeling_resnet.py ResNetStage.__init__
    """
    changes = True if halves else inside != outside
    return alternating(
        (residual(config, inside, outside, 2 if halves else 1, changes), Span(1, (0,))),
        (residual(config, outside, outside), periodic(depth, 1, first=1)),
    )


def trunk(config: ResNetConfig) -> list[tuple[str, Layer]]:
    """The stem and the stages.

    source: transformers 5.23.0 models/resnet/modeling_resnet.py ResNetEmbeddings.__init__, ResNetEncoder.__init__
    """
    widths = (config.embedding_size, *config.hidden_sizes)
    stem = ConvNorm(square_conv(config.num_channels, config.embedding_size, 7, stride=2), config.hidden_act)
    parts: list[tuple[str, Layer]] = [("embedder.embedder", stem), ("embedder.pooler", MaxPool(3, 2, 1))]
    for index, depth in enumerate(config.depths):
        halves = config.downsample_in_first_stage if index == 0 else True
        layers = stage(config, widths[index], widths[index + 1], depth, halves=halves)
        parts.append((f"encoder.stages.{index}.layers", layers))
    return parts


def build(config: ResNetConfig, architecture: str) -> Architecture:
    """The trunk, pooled and classified where the architecture says so."""
    parts = trunk(config)
    if architecture == "ResNetBackbone":
        return Architecture(Module(parts))
    body = Module([*parts, ("pooler", GlobalAveragePool())])
    if architecture == "ResNetModel":
        return Architecture(body)
    assert architecture == "ResNetForImageClassification", architecture
    classifier = Maybe(config.num_labels > 0, Linear(config.hidden_sizes[-1], config.num_labels))
    return Architecture(Module([("resnet", body), ("classifier.1", classifier)]))


def play(machine: Machine, architecture: str, config: ResNetConfig, root: Any, batch: Batch) -> tuple[Value, Any]:
    """A training forward, as transformers runs it.

    source: transformers 5.23.0 models/resnet/modeling_resnet.py: the architecture's forward
    """
    forward.refuse_checkpointing(machine)
    pixels = batch["pixel_values"]
    if architecture == "ResNetForImageClassification":
        states, pooled = machine.call("resnet", _body, machine, root.part("resnet"), pixels)
        loss, kept = heads.image_classes(machine, root, forward.flat(machine, pooled), config, batch)
        del states, pooled
        return loss, kept
    if architecture == "ResNetModel":
        return heads.bare(machine, *_body(machine, root, pixels))
    assert architecture == "ResNetBackbone", architecture
    return heads.bare(machine, *_trunk(machine, root, pixels, keep=True))


def _trunk(machine: Machine, root: Any, pixels: Value, *, keep: bool) -> tuple[Value, Any]:
    """What the last stage gives; kept, what every stage is given too."""
    stem = root.part("embedder.embedder")
    value = machine.call("embedder.embedder", forward.conv_norm, machine, stem, pixels, False)
    value = machine.call("embedder.pooler", forward.pooled_most, machine, root.part("embedder.pooler"), value)
    given = [value]
    for name, layers in forward.parts_of(root, "encoder.stages"):
        stage_of, _, list_of = name.rpartition(".")
        value = machine.call(stage_of, forward.stage, machine, list_of, layers, value, in_place=False)
        if keep:
            given.append(value)
    return value, tuple(given)


def _body(machine: Machine, root: Any, pixels: Value) -> tuple[Value, Value]:
    """source: modeling_resnet.py:ResNetModel.forward"""
    states, given = _trunk(machine, root, pixels, keep=False)
    pooled = machine.call("pooler", forward.pooled, machine, states)
    del given
    return states, pooled


FAMILY = Family(
    model_type="resnet",
    config=ResNetConfig,
    architectures=("ResNetForImageClassification", "ResNetModel", "ResNetBackbone"),
    usual="ResNetForImageClassification",
    build=build,
    source="transformers 5.23.0 models/resnet/modeling_resnet.py",
    inputs=IMAGE,
    play=play,
    attends=False,
)
