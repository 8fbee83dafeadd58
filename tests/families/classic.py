"""What the tests of the classic families share: their cases, and models described so that they compare."""

from __future__ import annotations

import dataclasses

from memcalc.layers.base import Stack
from memcalc.readers.config import model_from_config
from tests.families.kept import cases_of

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"]
FAMILIES = [
    *MIXTURES, "mamba", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "gpt_bigcode", "mpt",
]  # fmt: skip
CASES = {name: cases_of(name) for name in FAMILIES}


def read(model_type, **keys):
    """The model of those keys."""
    return model_from_config({"model_type": model_type, **keys})


def described(model) -> dict:
    """Name -> (shape, dtype, role, kind, trainable)."""
    return {name: (t.shape, t.dtype, t.role, t.kind, t.trainable) for t in model.tensors for name in t.names()}


def inside(layer, indices=None):
    """The layer and every one inside it, each with the indices of the outermost list it stands in."""
    yield layer, indices
    if isinstance(layer, Stack) and indices is None:
        indices = tuple(range(layer.count) if layer.indices is None else layer.indices)
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        parts = value if isinstance(value, list | tuple) else [value]
        for part in parts:
            for each in part if isinstance(part, tuple) else [part]:
                if dataclasses.is_dataclass(each):
                    yield from inside(each, indices)


def by_layer(model, kind) -> dict:
    """Index of a decoder layer -> the layer object of that kind in it."""
    return {index: node for node, indices in inside(model.root) if isinstance(node, kind) for index in indices}
