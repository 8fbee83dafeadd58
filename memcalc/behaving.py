"""The GPU and software a job's step is assumed to run on: what its kernels and libraries do differently from others."""

from __future__ import annotations

import re

from memcalc.errors import InputError, NotModelledError
from memcalc.job import Job
from memcalc.kernels.behaviour import Behaviour, multiprocessors_of
from memcalc.records import dataclass

USUAL_GPU = "h100-80gb"
NEWEST_TORCH = "2.13"
"""What is assumed where no torch is installed or named: the newest whose source was read."""


@dataclass
class Assumed:
    """One GPU and its software.

    Attributes:
        gpu: as ``memcalc list gpus`` has it.
        total_memory: bytes; 0 where the device's file was not read.
        behaviour: what kernels do.
        assumptions: what the job left open.
    """

    gpu: str
    total_memory: int
    behaviour: Behaviour
    assumptions: tuple[str, ...] = ()

    def told(self) -> dict[str, str]:
        """As a footprint's job has it."""
        major, minor = self.behaviour.torch
        return {"gpu": self.gpu, "torch": f"{major}.{minor}", "cudnn": cudnn_text(self.behaviour.cudnn)}


def behaviour_of(job: Job, torch: str = NEWEST_TORCH, *, read: bool = True) -> Assumed:
    """The GPU a job names, or the usual one.

    Args:
        job: what was asked.
        torch: the version where the job names none.
        read: whether the device's file is read though the job names none.

    Raises:
        InputError: no such device, or no version.
        NotModelledError: one whose kernels are not CUDA's.
    """
    asked = job.behaviour.gpu or job.hardware.gpu
    chosen, cudnn = job.behaviour.torch or torch, _cudnn(job.behaviour.cudnn)
    said = () if asked else (f"kernels and workspaces are a {USUAL_GPU}'s, as the job names no GPU",)
    if asked is None and not read:
        return Assumed(USUAL_GPU, 0, Behaviour(torch=_version(chosen), cudnn_version=cudnn), said)
    from memcalc.devices import load_device

    device = load_device(asked or USUAL_GPU, "hardware.gpu")
    if device.compute_capability is None:
        raise NotModelledError(
            "hardware.gpu", device.name, "is not NVIDIA's, and its kernels are not known", "use scope states"
        )
    major, minor = map(int, device.compute_capability.split("."))
    behaviour = Behaviour(
        torch=_version(chosen), capability=(major, minor), multiprocessors=multiprocessors_of(device.name), cudnn_version=cudnn
    )
    return Assumed(device.name, device.total_bytes, behaviour, said)


def cudnn_text(number: int) -> str:
    """Version number of cuDNN as people write it.

    >>> cudnn_text(91900)
    '9.19.0'
    """
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _version(text: str) -> tuple[int, int]:
    """Major and minor of ``2.13.0+cpu``."""
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise InputError("behaviour.torch", text, "is not a version", "write it as 2.13")
    return int(found[1]), int(found[2])


def _cudnn(text: str | None) -> int | None:
    """``9.19.0`` as cuDNN counts it: 91900."""
    if text is None:
        return None
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise InputError("behaviour.cudnn", text, "is not a version", "write it as 9.19.0")
    return int(found[1]) * 10000 + int(found[2]) * 100 + int(found[3] or 0)
