"""The caches of keys and values of transformers: made, and their tensors found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from memcalc.errors import MissingPackageError
from memcalc.runtime.walk import plain_parts

SELF, CROSS = "self_attention_cache", "cross_attention_cache"


def make_cache(kind: str, config: Any, length: int, arguments: dict[str, Any]) -> Any:
    """An empty cache of a model.

    Args:
        kind: ``dynamic``, ``static``, or ``quantized-`` with a back end.
        config: the model's own.
        length: tokens that a static one holds.
        arguments: options of a quantised one.

    Raises:
        MissingPackageError: the back end's package is not installed.
    """
    from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

    both = getattr(config, "is_encoder_decoder", False)
    if kind == "dynamic":
        # a config of two sides says how many layers its encoder has
        made: Any = DynamicCache() if both else DynamicCache(config=config)
    elif kind == "static":
        made = StaticCache(config=config, max_cache_len=length)
    else:
        backend = kind.removeprefix("quantized-")
        try:
            made = QuantizedCache(backend=backend, config=config, **arguments)
        except ImportError as error:
            said = next(iter(str(error).split(".")), backend)
            raise MissingPackageError("inference.cache", kind, f"cannot be made here ({said})", "install it") from None
    return EncoderDecoderCache(made, DynamicCache()) if both else made


def tensors_of(cache: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything a cache holds on to, layer by layer."""
    if hasattr(cache, SELF):
        for name in (SELF, CROSS):
            for at, tensor in tensors_of(getattr(cache, name)):
                yield f"{name}.{at}", tensor
        return
    for index, layer in enumerate(getattr(cache, "layers", ())):
        for name, value in vars(layer).items():
            for place, part in enumerate(_tensors(value)):
                for tensor in plain_parts(part):
                    yield f"layers.{index}.{name.strip('_')}" + (f".{place}" if place else ""), tensor


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def cached_bytes(cache: Any, device: str = "cuda") -> int:
    """Bytes of memory a cache holds on a device: whole storages, of which its tensors may be parts."""
    found: dict[int, int] = {}
    for _, tensor in tensors_of(cache):
        if tensor.device.type == device:
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return sum(found.values())
