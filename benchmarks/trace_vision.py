"""Models of torchvision and timm: what a trace holds when backward begins, beside what a real forward on the CPU saves.

    python benchmarks/trace_vision.py [--only torchvision/resnet50 timm/vit_tiny_patch16_224 …]

FP32, two images, attention by PyTorch's own formula (``math``, the one kernel that a CPU and a GPU have in common), and nothing
dropped at random: where semantics coincide, both are the same to the byte. Exits with 1 where they are not.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from memcalc.api import trace_whole
from memcalc.tape.events import Alloc, Free, Mark

MODELS: dict[str, int] = {
    **dict.fromkeys(
        (
            "torchvision/resnet50", "torchvision/resnext50_32x4d", "torchvision/vit_b_16", "torchvision/convnext_tiny",
            "torchvision/efficientnet_b0", "torchvision/densenet121", "torchvision/mobilenet_v2",
            "torchvision/mobilenet_v3_small", "torchvision/swin_t", "torchvision/swin_v2_t", "torchvision/regnet_y_400mf",
            "torchvision/vgg11_bn", "torchvision/googlenet", "torchvision/squeezenet1_0", "torchvision/shufflenet_v2_x0_5",
            "torchvision/mnasnet0_5", "torchvision/alexnet", "timm/resnet18", "timm/vit_tiny_patch16_224",
            "timm/deit3_small_patch16_224", "timm/beit_base_patch16_224", "timm/cait_xxs24_224", "timm/convnext_atto",
            "timm/efficientnet_lite0", "timm/regnety_002", "timm/resnest14d", "timm/nf_resnet26", "timm/ghostnet_100",
            "timm/repvgg_a0", "timm/mobilevit_xxs", "timm/pvt_v2_b0",
        ),
        64,
    ),
    "timm/eva02_tiny_patch14_224": 56, "timm/swin_tiny_patch4_window7_224": 224, "timm/mixer_s32_224": 224,
    "timm/coatnet_nano_rw_224": 224, "torchvision/maxvit_t": 224, "torchvision/inception_v3": 299,
}  # fmt: skip
"""Model and the side of its images."""
SIZED = ("vit", "deit", "beit", "cait", "eva", "swin_tiny", "mixer", "coatnet")
"""Names whose models are told the side."""
KEPT = ("parameter", "buffer", "input", "optimizer_state", "master_parameter", "gradient", "workspace")


def make(name: str, side: int) -> torch.nn.Module:
    """The model, in training, with nothing dropped at random."""
    library, _, model = name.partition("/")
    module: Any
    if library == "torchvision":
        options = {"image_size": side} if model.startswith("vit") else {}
        module = importlib.import_module("torchvision.models").get_model(model, weights=None, **options)
    else:
        options = {"img_size": side} if model.startswith(SIZED) else {}
        module = importlib.import_module("timm").create_model(model, **options)
    for part in module.modules():
        for key in ("p", "drop_prob", "dropout", "attention_dropout", "dropout_prob", "drop_rate"):
            if isinstance(getattr(part, key, None), float):
                setattr(part, key, 0.0)
    return module.train()  # type: ignore[no-any-return]


def loss_of(output: Any) -> torch.Tensor:
    """The mean of every tensor that comes out, summed."""
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else (output,)
    return sum((part.mean() for part in parts if isinstance(part, torch.Tensor)), torch.zeros(()))


def traced(module: torch.nn.Module, side: int) -> int:
    """Bytes on the device when backward of the steady step begins, all that outlives the step apart."""
    inputs = [torch.zeros(2, 3, side, side)]
    found = trace_whole(module, inputs, loss=loss_of, precision="as-is", optimizer="sgd", attention="math")
    live: dict[int, int] = {}
    for event in found.tape:
        if isinstance(event, Mark) and (event.phase, event.iteration) == ("backward", 2):
            break
        if isinstance(event, Alloc) and event.buffer.place == "device" and event.buffer.role not in KEPT:
            live[id(event.buffer)] = int(event.buffer.requested)
        elif isinstance(event, Free):
            live.pop(id(event.buffer), None)
    return sum(live.values())


def real(module: torch.nn.Module, side: int) -> int:
    """Bytes of the storages that autograd saves in a real forward, and of the loss."""
    image = torch.randn(2, 3, side, side)
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers(), image)}
    saved: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), sdpa_kernel([SDPBackend.MATH]):
        loss = loss_of(module(image))
    saved[loss.untyped_storage()._cdata] = loss.untyped_storage()
    return sum(storage.nbytes() for storage in saved.values())


def main() -> int:
    """One line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(MODELS))
    warnings.simplefilter("ignore")
    differ = 0
    for name in parser.parse_args().only:
        torch.manual_seed(0)
        module, side = make(name, MODELS[name]), MODELS[name]
        begun = time.perf_counter()
        mine = traced(module, side)
        seconds, truth = time.perf_counter() - begun, real(module, side)
        differ += mine != truth
        word = "equal" if mine == truth else f"off by {mine - truth:+,}"
        print(f"{name:38} {side:4} {mine:13,} B  {word}  traced in {seconds:.1f} s", flush=True)
    print(f"torch {torch.__version__}: {differ} of the models differ")
    return min(differ, 1)


if __name__ == "__main__":
    sys.exit(main())
