"""Models that a published run took from a package by name, and that no config of memcalc's names: factories for ``py:``."""

from __future__ import annotations

from typing import Any


def vit_giant() -> Any:
    """As pytorch/ao 1b1e94c5 benchmarks/benchmark_low_bit_adam.py makes it: 45 classes, 224 pixels; blocks are recomputed."""
    import timm

    return timm.create_model("vit_giant_patch14_dinov2.lvd142m", pretrained=False, num_classes=45, img_size=224)
