"""A model that is run and not trained, traced: forwards without gradients, one after another."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import torch

from memcalc.engines.trace.cuda.quantisers import opened
from memcalc.engines.trace.fake import CUDA, CudaFakeMode
from memcalc.engines.trace.loop import ITERATIONS, Asked, Loop
from memcalc.engines.trace.names import claim_kept
from memcalc.engines.trace.thrift import own_garbage
from memcalc.engines.trace.tracker import Tracker
from memcalc.errors import InputError
from memcalc.job import Job
from memcalc.runtime.around import floating_dtype
from memcalc.runtime.build import Built, cast_parameters
from memcalc.runtime.inference import Forwards, Running
from memcalc.runtime.inputs import make_batch


class Forwarding(Loop):
    """Two forwards, of which the second is the one that is asked for.

    Attributes:
        running: the model at work.
        assumptions: what the job left open.
    """

    def __init__(self, job: Job, asked: Asked, tracker: Tracker, mode: CudaFakeMode) -> None:
        super().__init__(asked, tracker, mode)
        self.job = job
        self.running: Running
        self.step = SimpleNamespace(notes=())  # type: ignore[assignment]
        self.assumptions: tuple[str, ...] = ()

    def build(self, built: Built) -> None:
        """Model and batch on the GPU, and what stands before the first forward.

        Raises:
            InputError: a cache for a module that is not one of transformers'.
        """
        module = self.module = built.module
        if self.job.mode != "evaluate" and not hasattr(module, "generation_config"):
            raise InputError("model", built.name, f"has no cache for mode {self.job.mode}", "use mode evaluate")
        cast_parameters(module, self.asked.plan.scheme)
        module.to(CUDA)
        self.tracker.sites.add(module.named_modules())
        claim_kept(self.tracker, module)
        copy = self.asked.plan.scheme.copy
        dtype = getattr(torch, copy) if copy else None
        forwards = Forwards.of(self.job, getattr(module, "config", None), dtype)
        self.assumptions = forwards.told.assumptions
        batch = make_batch(built.inputs, "cuda:0", floating_dtype(module), 0)
        self.running = Running(module, batch, forwards, built.extra)
        del batch
        with own_garbage(), opened(forwards.told.kind, self.mode):
            self.running.prepare()
            gc.collect()
        for name, tensor in self.running.inputs().items():
            self._is(tensor, "input", name)
        self._claimed()

    def run(self) -> None:
        """The forwards; what only a cycle of references keeps dies at the end of its own, not when Python looks for it."""
        with own_garbage(), opened(self.running.asked.told.kind, self.mode):
            for index in range(1, ITERATIONS + 1):
                self.tracker.mark("forward", index)
                self.running.step()
                self._claimed()
                self.tracker.sites.forget()
                gc.collect()
        self.tracker.close()

    def _claimed(self) -> None:
        for name, tensor in self.running.cached():
            life = self.tracker.life_of(tensor)
            if life is not None and life.role is None:
                life.role, life.name = "cache", name


def loop_of(job: Job, asked: Asked, tracker: Tracker, mode: CudaFakeMode) -> Any:
    """The loop of a job that trains, or of one that does not."""
    return Loop(asked, tracker, mode) if job.mode == "train" else Forwarding(job, asked, tracker, mode)
