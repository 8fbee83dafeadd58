"""Activation checkpointing as people switch it on: by transformers' own method, or around each layer of any other module.

``full`` keeps each layer's input and recomputes the rest; ``selective`` keeps besides that what matrix multiplications and
attention gave, and recomputes what is cheap (pytorch 2.13 torch/utils/checkpoint.py:create_selective_checkpoint_contexts).
``every-2`` wraps every second layer, as torchtitan does (torchtitan/distributed/activation_checkpoint.py:_apply_layer_sac).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from memcalc.errors import InputError

KEPT = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "_grouped_mm"})
"""Operators whose results ``selective`` keeps, besides every ``_scaled_dot_product`` kernel's."""


def layers_of(module: Any) -> list[Any]:
    """The members of the outermost lists of layers; the parts of an outermost sequence where there is no list.

    >>> [type(part).__name__ for part in layers_of(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU()))]
    ['Linear', 'ReLU']
    """
    found = _outermost(module, torch.nn.ModuleList)
    return found or _outermost(module, torch.nn.Sequential)


def repeated_layers(module: Any) -> list[Any]:
    """The layers that each make a group of their own under FSDP2: members of lists, or parts of sequences that recur.

    Parts that are made of parts recur by their class, whatever their widths, as the blocks of torchvision's ResNet, of which
    the first of a stage differs from the others; single operators by their parameters' shapes. A stem and a head that stand in
    one sequence with the layers between them are left to the root.
    """
    listed = _outermost(module, torch.nn.ModuleList)
    if listed:
        return listed
    parts = _outermost(module, torch.nn.Sequential)
    kinds = [_kind(part) for part in parts]
    return [part for part, kind in zip(parts, kinds, strict=True) if kind is not None and kinds.count(kind) > 1]


def _kind(part: Any) -> object:
    """What layers that recur have in common; None of a part without parameters."""
    shapes = tuple(tuple(param.shape) for param in part.parameters())
    if not shapes:
        return None
    plain = isinstance(part, torch.nn.Sequential) or not any(True for _ in part.children())
    return (type(part), shapes) if plain else type(part)


def _outermost(module: Any, kind: type[Any]) -> list[Any]:
    if isinstance(module, kind):
        return list(module.children())
    return [layer for child in module.children() for layer in _outermost(child, kind)]


def switch_on(module: Any, mode: str) -> None:
    """Recompute activations in backward, ``full`` or ``selective``; nothing for ``none``.

    Raises:
        InputError: the module has no layers to recompute.
    """
    if mode == "none":
        return
    told: dict[str, Any] = {"use_reentrant": False}
    how, _, often = mode.partition("-")
    if how == "every":
        _wrap(module, mode, told, int(often))
        return
    if mode == "selective":
        told["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    enable = getattr(module, "gradient_checkpointing_enable", None)
    if callable(enable):
        try:
            enable(gradient_checkpointing_kwargs=told)
            return
        except ValueError as error:
            said = next(iter(str(error).splitlines()))
            raise InputError("training.activation_checkpointing", mode, f"is refused ({said})", "use none") from None
    _wrap(module, mode, told)


def _wrap(module: Any, mode: str, told: dict[str, Any], often: int = 1) -> None:
    """The last of ``often`` layers, again and again, is recomputed."""
    layers = layers_of(module)
    if not layers:
        rule = "finds no list of layers in the module"
        raise InputError("training.activation_checkpointing", mode, rule, "keep them in an nn.ModuleList, or use none")
    for layer in layers[often - 1 :: often]:
        layer.forward = partial(checkpoint, layer.forward, **told)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = str(operator).removeprefix("aten.").partition(".")[0]
    keep = name in KEPT or "scaled_dot_product" in name
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
