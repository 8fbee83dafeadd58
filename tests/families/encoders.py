"""What the tests of encoders, encoder-decoders and vision models share: their cases, and their layer trees walked."""

from __future__ import annotations

import dataclasses

import pytest

from memcalc.layers.base import Maybe, Stack
from memcalc.readers.config import model_from_config
from tests.families.kept import cases_of

TORCHVISION = ["torchvision_resnet", "torchvision_vit"]
FAMILIES = [
    "bert", "roberta", "xlm_roberta", "distilbert", "albert", "electra", "deberta_v2", "t5", "mt5", "bart", "whisper", "vit",
    "clip", "clip_text_model", "clip_vision_model", "resnet",
]  # fmt: skip
CASES = {name: cases_of(name) for name in FAMILIES}
ALL = [pytest.param(name, case, id=f"{name}-{i}") for name in FAMILIES for i, case in enumerate(CASES[name])]


def read(model_type, **keys):
    """The model of those keys."""
    return model_from_config({"model_type": model_type, **keys})


def described(model) -> dict:
    """Name -> (shape, dtype, role, kind, trainable)."""
    return {name: (t.shape, t.dtype, t.role, t.kind, t.trainable) for t in model.tensors for name in t.names()}


def nodes(layer):
    """The layer and every one inside it, without what a condition or a count of none leaves out."""
    if (isinstance(layer, Maybe) and not layer.condition) or (isinstance(layer, Stack) and not layer.count):
        return
    yield layer
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        for part in value if isinstance(value, list | tuple) else [value]:
            for each in part if isinstance(part, tuple) else [part]:
                if dataclasses.is_dataclass(each):
                    yield from nodes(each)


def found(model, kind) -> list:
    """Every layer object of that kind in the model."""
    return [node for node in nodes(model.root) if isinstance(node, kind)]


def theirs(model_type):
    """transformers, and its config class of that family."""
    from memcalc.families.base import load_family

    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    return transformers, transformers.CONFIG_MAPPING[load_family(model_type).model_type]


def module_of(model_type, architecture, keys):
    """The module transformers builds, on the meta device."""
    torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
    transformers, config = theirs(model_type)
    with torch.device("meta"):
        return getattr(transformers, architecture)(config(**keys))
