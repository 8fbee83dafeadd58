"""Every family, tensor by tensor, against transformers' own modules built on the meta device."""

from __future__ import annotations

import json

import pytest

from memcalc.families.base import known_families, load_family
from memcalc.readers.config import model_from_config
from tests.families.kept import STEMS, cases_of

torch = pytest.importorskip("torch", reason="the oracle is torch's own modules")
transformers = pytest.importorskip("transformers", reason="the oracle is transformers")

ALL = [
    pytest.param(stem, case, id=f"{stem}-{index}-{case['architecture']}")
    for stem in STEMS
    for index, case in enumerate(cases_of(stem))
]


def truth(model_type: str, case: dict):
    """(tensors, config) as transformers builds them: name -> (shape, dtype, role, trainable)."""
    config = transformers.CONFIG_MAPPING[load_family(model_type).model_type](**case["config"])
    with torch.device("meta"):
        module = getattr(transformers, case["architecture"])(config)
    config.architectures = [case["architecture"]]
    described = {}
    for name, tensor in module.named_parameters():
        described[name] = (tuple(tensor.shape), str(tensor.dtype)[6:], "parameter", tensor.requires_grad)
    for name, tensor in module.named_buffers():
        described[name] = (tuple(tensor.shape), str(tensor.dtype)[6:], "buffer", True)
    return described, config


def described(model) -> dict:
    """Name -> (shape, dtype, role, trainable) as memcalc lists them."""
    return {
        name: (tensor.shape, tensor.dtype, tensor.role, tensor.trainable) for tensor in model.tensors for name in tensor.names()
    }


@pytest.mark.parametrize(("model_type", "case"), ALL)
def test_tensor_list_equals_transformers(model_type, case):
    """A complete config and one reduced to its differences both give transformers' very tensors."""
    expected, config = truth(model_type, case)
    for spelled in (config.to_dict(), config.to_diff_dict()):
        # through JSON, because that is how a config reaches a person
        model = model_from_config(json.loads(json.dumps(spelled, default=str)))
        ours = described(model)
        assert {k: v for k, v in ours.items() if expected.get(k) != v} == {}, "memcalc lists what transformers has not"
        assert {k: v for k, v in expected.items() if ours.get(k) != v} == {}, "transformers has what memcalc does not list"
        assert sum(t.count for t in model.tensors) == len(expected)


def test_every_family_has_cases():
    """No family goes untested: the default config and at least two odd ones each."""
    missing = [
        name for name in known_families() if load_family(name).source.startswith("transformers") and len(cases_of(name)) < 3
    ]
    assert missing == []
