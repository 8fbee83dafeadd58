"""How residual networks run, transformers' and torchvision's.

source: transformers 5.23.0 models/resnet/modeling_resnet.py; torchvision at 07a929e models/resnet.py
"""

from __future__ import annotations

from typing import Any

from memcalc.errors import InputError
from memcalc.families._forward import run_layers
from memcalc.layers.base import Maybe, Module
from memcalc.layers.convolution import ConvNorm, ConvResidual, MaxPool
from memcalc.play.activations import activated
from memcalc.play.batch_norm import max_pool, relu_in_place
from memcalc.play.inplace import added_in_place
from memcalc.play.machine import Machine
from memcalc.play.reduce import mean_over
from memcalc.play.reshape import merge_dims
from memcalc.play.values import Value


def conv_norm(machine: Machine, layer: ConvNorm, value: Value, in_place: bool) -> Value:
    """source: modeling_resnet.py:ResNetConvLayer.forward; torchvision resnet.py:Bottleneck.forward"""
    conv, norm = layer.names
    value = machine.call(conv, layer.conv.play, machine, value)
    value = machine.call(norm, layer.norm.play, machine, value)
    if layer.activation is None:
        return value
    name = "relu" if in_place else "activation"
    return machine.call(name, _activated, machine, layer.activation, value, in_place)  # type: ignore[no-any-return]


def _activated(machine: Machine, name: str, value: Value, in_place: bool) -> Value:
    return relu_in_place(machine, value) if in_place else activated(machine, name, value)


def residual(machine: Machine, layer: ConvResidual, value: Value, in_place: bool) -> Value:
    """One layer; torchvision's activations work in place.

    source: modeling_resnet.py:ResNetBottleNeckLayer.forward, ResNetBasicLayer.forward; torchvision resnet.py: likewise
    """
    kept = value
    for name, each in layer.branch:
        value = machine.call(name, conv_norm, machine, each, value, in_place)
    for name, shortcut in layer.shortcut:
        assert isinstance(shortcut, Maybe)
        if machine.decide(shortcut.condition):
            kept = machine.call(name, conv_norm, machine, shortcut.layer, kept, in_place)
    value = added_in_place(machine, value, kept)
    name = "relu" if in_place else "activation"
    return machine.call(name, _activated, machine, layer.activation, value, in_place)  # type: ignore[no-any-return]


def stage(machine: Machine, name: str, layers: Module, value: Value, *, in_place: bool) -> Value:
    """A stage: a first layer and those like one another after it."""
    given = value  # the stage's own name for what it was given (modeling_resnet.py:ResNetStage.forward)
    for place, (_, stack) in enumerate(layers.parts):
        value = run_layers(machine, name, stack, residual, value, in_place, first=place)  # type: ignore[arg-type]
    del given
    return value


def pooled_most(machine: Machine, layer: MaxPool, value: Value) -> Value:
    """The maxima of overlapping windows."""
    return max_pool(machine, value, layer.kernel, layer.stride, layer.padding)


def pooled(machine: Machine, value: Value) -> Value:
    """The mean over the image (AdaptiveAveragePooling.cpp:adaptive_avg_pool2d of one place)."""
    return mean_over(machine, value, (2, 3), keep=True)


def flat(machine: Machine, value: Value) -> Value:
    """One row for each image."""
    return merge_dims(machine, value, 1, 3)


def parts_of(root: Any, ending: str) -> list[tuple[str, Module]]:
    """The stages of a network, under their names."""
    return [(name, part) for name, part in root.parts if name.startswith(ending)]


def refuse_checkpointing(machine: Machine) -> None:
    """Transformers recomputes nothing of a ResNet (ResNetPreTrainedModel has no supports_gradient_checkpointing).

    Raises:
        InputError: recomputation was asked for.
    """
    mode = machine.policy.checkpointing
    if mode != "none":
        raise InputError("training.activation_checkpointing", mode, "is refused by transformers for ResNet", "use none")
