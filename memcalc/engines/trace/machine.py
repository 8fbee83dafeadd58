"""The GPU and software a trace behaves as: what is asked of it, and what its kernels need beyond their results."""

from __future__ import annotations

from typing import Any

import torch

from memcalc.behaving import behaviour_of, cudnn_text
from memcalc.errors import NotModelledError
from memcalc.job import Job
from memcalc.kernels.behaviour import Behaviour
from memcalc.records import dataclass


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
    """The GPU a job names, or the usual one; torch is the installed one unless the job says.

    Raises:
        InputError: no such device.
        NotModelledError: one whose kernels are not CUDA's.
    """
    try:
        assumed = behaviour_of(job, torch.__version__)
    except NotModelledError as error:
        raise NotModelledError(error.path, error.value, error.rule, "use engine analytic") from None
    return Machine(assumed.gpu, assumed.total_memory, assumed.behaviour, assumed.assumptions)
