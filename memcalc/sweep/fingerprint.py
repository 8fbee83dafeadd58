"""What a sweep's rows depend on besides its own file: the models and devices that it names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from memcalc.errors import MemcalcError
from memcalc.models import Model
from memcalc.sweep.layout import Block
from memcalc.sweep.resolve import Reader


def digest(value: Any) -> str:
    """A short name for plain data, equal for equal data in the same order: the order of axes numbers the points."""
    return sha256(json.dumps(value, default=repr).encode()).hexdigest()


def sources(blocks: Sequence[Block], reader: Reader) -> str:
    """A digest of what every model and device that the points name holds now."""
    named = {("model", name) for name in _models(blocks)}
    named |= {("device", name) for key in ("hardware.gpu", "behaviour.gpu") for name in _words(blocks, key)}
    return digest([[kind, name, _content(kind, name, reader)] for kind, name in sorted(named)])


def _content(kind: str, name: str, reader: Reader) -> str:
    """What stands behind a name; its error where nothing does."""
    try:
        if kind == "device":
            from memcalc.devices import load_device

            return repr(load_device(name))
        found = reader.find(name)
        return repr((found.tensors, found.tied)) if isinstance(found, Model) else repr(sorted(found.config.items()))
    except MemcalcError as error:
        return str(error)


def _models(blocks: Sequence[Block]) -> Iterator[str]:
    """The words that name models, as values or as bases of values."""
    for value in _values(blocks, "model"):
        while isinstance(value, dict) and "base" in value:
            value = value["base"]
        if isinstance(value, str):
            yield value


def _words(blocks: Sequence[Block], key: str) -> Iterator[str]:
    return (value for value in _values(blocks, key) if isinstance(value, str))


def _values(blocks: Sequence[Block], key: str) -> Iterator[Any]:
    """Each distinct value of a key that is not a number."""
    for block in blocks:
        for axis in block.axes:
            if key in axis.keys:
                for parts in axis.parts.values():
                    yield from (part[key] for part in parts if key in part)
