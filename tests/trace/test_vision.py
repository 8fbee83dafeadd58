"""Models of torchvision and timm in a trace, held against real forwards on the CPU, where the packages can be had."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "trace_vision.py"
FEW = (
    "torchvision/resnet50", "torchvision/vit_b_16", "torchvision/mobilenet_v3_small", "torchvision/convnext_tiny",
    "timm/vit_tiny_patch16_224", "timm/convnext_atto", "timm/mobilevit_xxs", "timm/resnest14d",
)  # fmt: skip


@pytest.fixture(scope="module")
def vision():
    """The benchmark's own functions, which compare many more models."""
    spec = importlib.util.spec_from_file_location("trace_vision", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FEW)
def test_saved_activations_are_those_of_a_real_forward(vision, name):
    """What is alive when backward begins is, to the byte, what a real FP32 forward saves, and the loss."""
    package = name.partition("/")[0]
    try:
        importlib.import_module(package)
    except Exception as error:
        pytest.skip(f"{package} cannot be imported beside torch {torch.__version__}: {error}")
    module = vision.make(name, vision.MODELS[name])
    assert vision.traced(module, vision.MODELS[name]) == vision.real(module, vision.MODELS[name])
