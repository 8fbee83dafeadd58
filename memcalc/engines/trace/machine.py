"""The GPU and software a trace behaves as: what is asked of it, and what its kernels need beyond their results."""

from __future__ import annotations

import re
from typing import Any

import torch

from memcalc.devices import load_device
from memcalc.errors import InputError, NotModelledError
from memcalc.job import Job
from memcalc.kernels.behaviour import Behaviour, multiprocessors_of
from memcalc.records import dataclass

USUAL_GPU = "h100-80gb"


@dataclass
class Machine:
    """One GPU.

    Attributes:
        name: as ``memcalc list gpus`` has it.
        total_memory: bytes.
        behaviour: what its kernels are asked of.
        assumptions: what the job left open.
    """

    name: str
    total_memory: int
    behaviour: Behaviour
    assumptions: tuple[str, ...] = ()

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, (major, minor)."""
        return self.behaviour.capability

    def told(self) -> dict[str, Any]:
        """As a footprint's job has it."""
        major, minor = self.behaviour.torch
        return {"gpu": self.name, "torch": f"{major}.{minor}", "cudnn": cudnn_text(self.behaviour.cudnn)}


def machine_of(job: Job) -> Machine:
    """The GPU a job names, or the usual one.

    Raises:
        InputError: no such device.
        NotModelledError: one whose kernels are not CUDA's.
    """
    asked = job.behaviour.gpu or job.hardware.gpu
    device = load_device(asked or USUAL_GPU, "hardware.gpu")
    if device.compute_capability is None:
        raise NotModelledError(
            "hardware.gpu", device.name, "is not NVIDIA's, and its kernels are not known", "use engine analytic"
        )
    major, minor = map(int, device.compute_capability.split("."))
    said = () if asked else (f"kernels and workspaces are a {device.name}'s, as the job names no GPU",)
    behaviour = Behaviour(
        torch=_version(job.behaviour.torch or torch.__version__), capability=(major, minor),
        multiprocessors=multiprocessors_of(device.name), cudnn_version=_cudnn(job.behaviour.cudnn),
    )  # fmt: skip
    return Machine(device.name, device.total_bytes, behaviour, said)


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
