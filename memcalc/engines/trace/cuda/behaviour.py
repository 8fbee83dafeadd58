"""The software and GPU whose behaviour is restated: what every other module of this package asks."""

from __future__ import annotations

from dataclasses import dataclass

MULTIPROCESSORS: dict[str, int] = {
    "p100": 56,
    "v100": 80,
    "t4": 40,
    "a100": 108,
    "a40": 84,
    "a10": 72,
    "a6000": 84,
    "rtx-3090": 82,
    "l4": 58,
    "l40": 142,
    "rtx-4090": 128,
    "h100": 132,
    "h200": 132,
    "b200": 148,
    "rtx-5090": 170,
}
"""Streaming multiprocessors by the start of a device's name (NVIDIA's architecture white papers; SXM boards)."""

WHEEL_CUDNN: dict[tuple[int, int], int] = {
    (2, 6): 90100,  # .github/scripts/generate_binary_build_matrix.py at v2.6.0: nvidia-cudnn-cu12==9.1.0.70 (CUDA 12.4)
    (2, 7): 90501,  # the same at v2.7.0: 9.5.1.17 (CUDA 12.6)
    (2, 8): 91002,  # the same at v2.8.0: 9.10.2.21 (CUDA 12.8)
    (2, 9): 91002,  # the same at v2.9.0: 9.10.2.21 (CUDA 12.8)
    (2, 10): 91002,  # the same at v2.10.0: 9.10.2.21 (CUDA 12.8)
}
"""Version number of cuDNN (major * 10000 + minor * 100 + patch) in the default wheel of a torch release; later ones below."""

LATEST_WHEEL_CUDNN = 91900
"""Default wheels from torch 2.11 on have CUDA 13 and cuDNN 9.19 or later; only ``> 91500`` is asked of it."""


@dataclass(frozen=True)
class Behaviour:
    """Which torch, CUDA and cuDNN run, and on which GPU.

    >>> Behaviour().cudnn > 91500, Behaviour(torch=(2, 8)).cudnn
    (True, 91002)
    """

    torch: tuple[int, int] = (2, 13)
    """Major and minor version."""
    cuda: tuple[int, int] = (13, 0)
    cudnn_version: int | None = None
    """As ``torch.backends.cudnn.version()``: 91002 is 9.10.2. None: the one in that torch's default wheel."""
    capability: tuple[int, int] = (9, 0)
    """The GPU's compute capability."""
    multiprocessors: int = 132
    """Streaming multiprocessors, as ``get_device_properties().multi_processor_count``."""
    deterministic: bool = False
    """``torch.are_deterministic_algorithms_enabled()``, with errors, not warnings."""
    cudnn_benchmark: bool = False
    """``torch.backends.cudnn.benchmark``."""

    @property
    def cudnn(self) -> int:
        """Version number of cuDNN, that of the default wheel unless it was given."""
        if self.cudnn_version is not None:
            return self.cudnn_version
        return WHEEL_CUDNN.get(self.torch, LATEST_WHEEL_CUDNN)

    @property
    def major(self) -> int:
        """The compute capability's first number."""
        return self.capability[0]


def multiprocessors_of(name: str) -> int:
    """Streaming multiprocessors of a device by its name in ``configs/devices``; 132 (an H100) where it is not known.

    >>> multiprocessors_of("a100-80gb"), multiprocessors_of("rtx-4090")
    (108, 128)
    """
    fits = [known for known in MULTIPROCESSORS if name.startswith(known)]
    return MULTIPROCESSORS[max(fits, key=len)] if fits else 132
