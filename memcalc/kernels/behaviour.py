"""The software and GPU whose behaviour is restated: what every other module of this package asks."""

from __future__ import annotations

from dataclasses import dataclass

from memcalc.kernels.reduction import THREADS_PER_SM, Chip
from memcalc.kernels.reduction import multiprocessors_of as multiprocessors_of

WHEEL_CUDNN: dict[tuple[tuple[int, int], int], int] = {
    ((2, 6), 12): 90100,  # pytorch#193491: "nvidia-cudnn-cu12==9.1.0.70, which all torch cu124 wheels pin"
    ((2, 7), 12): 90701,  # pytorch#146717: "cuDNN to 9.7.1.26 for CUDA 12.8"
    ((2, 8), 12): 90701,  # at least; nothing here depends on it before 2.9
    ((2, 9), 12): 91002,  # pytorch#165801: "CUDA 12.8 wheels ship with cuDNN 9.10.2"
    ((2, 9), 13): 91300,  # pytorch#162268: "Bump CUDA 13 to cuDNN 9.13.0"
    ((2, 10), 13): 91501,  # pytorch#173677: "Update release 2.10 CUDNN version to 9.15.1.9"
}
"""cuDNN's number (major * 10000 + minor * 100 + patch) in a release's wheels, by torch's version and CUDA's first number."""

CUDA_12_CUDNN = 91002
"""In CUDA 12's wheels since 2.9: "CUDA <= 12.9 wheels ship with older cuDNN" (sdp_utils.cpp:check_prefer_cudnn_attention)."""

LATER_CUDNN = 91900
"""Stands in for CUDA 13 wheels since 2.11: only that it is over 9.15.0 is known (huggingface/transformers#48163), and asked."""


@dataclass(frozen=True)
class Behaviour:
    """Which torch, CUDA and cuDNN run, and on which GPU.

    >>> Behaviour().cudnn > 91500, Behaviour(torch=(2, 9), cuda=(12, 8)).cudnn
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
        later = LATER_CUDNN if self.cuda >= (13, 0) else CUDA_12_CUDNN
        return WHEEL_CUDNN.get((self.torch, self.cuda[0]), later)

    @property
    def major(self) -> int:
        """The compute capability's first number."""
        return self.capability[0]

    @property
    def chip(self) -> Chip:
        """What decides how a reduction is split over blocks."""
        return Chip(self.multiprocessors, THREADS_PER_SM.get(self.capability, 2048))
