"""The training loop that is traced: the very step that ``measure`` takes, on tensors without data."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from memcalc.engines.trace.fake import CUDA, CudaFakeMode
from memcalc.engines.trace.names import claim_as_they_come, claim_gradients, claim_kept, claim_states
from memcalc.engines.trace.registry_step import RegistryStep
from memcalc.engines.trace.thrift import own_garbage
from memcalc.engines.trace.tracker import Tracker
from memcalc.plan import Plan
from memcalc.records import dataclass
from memcalc.runtime.around import floating_dtype, trained_parameters
from memcalc.runtime.build import Built, cast_parameters
from memcalc.runtime.checkpointing import switch_on
from memcalc.runtime.inputs import called, make_batch
from memcalc.runtime.losses import Loss
from memcalc.runtime.step_base import Recipe, Step
from memcalc.runtime.stepping import make_step
from memcalc.tape.events import Phase

CustomStep = Callable[[Any, Mapping[str, torch.Tensor], Any], Any]
"""A person's own step: ``step(model, batch, optimizer)``."""
ITERATIONS = 2
"""The first, in which states are born, and one of the steady ones."""


@dataclass
class Asked:
    """What is traced.

    Attributes:
        plan: the job with every name resolved.
        arguments: the optimizer's options as the job gives them.
        accumulation: micro-batches to a step.
        max_norm: what gradients are clipped to.
        checkpointing: ``none``, ``selective`` or ``full``.
        loss: the loss of an output.
        step: a person's own step, in place of forward, loss, backward and update.
        set_to_none: whether ``zero_grad`` drops gradients.
        real: whether the optimizer's own class runs; else the registry's word stands for it.
    """

    plan: Plan
    arguments: Mapping[str, Any]
    accumulation: int
    max_norm: float | None
    checkpointing: str
    loss: Loss
    step: CustomStep | None = None
    set_to_none: bool = True
    real: bool = True


class Loop:
    """One rank's training, from nothing to the end of a steady step.

    Attributes:
        module: on the GPU, as it is trained.
        batch: what it is fed.
        in_optimizer: whether the optimizer is at work, or failed at it.
        step: what updates it.
    """

    def __init__(self, asked: Asked, tracker: Tracker, mode: CudaFakeMode) -> None:
        self.asked, self.tracker, self.mode = asked, tracker, mode
        self.module: Any = None
        self.batch: dict[str, torch.Tensor] = {}
        self.extra: dict[str, Any] = {}
        self.step: Step
        self.parts: dict[str, int] = {}
        self.in_optimizer = False

    def build(self, built: Built) -> None:
        """Model, batch and optimizer on the GPU."""
        module, asked = built.module, self.asked
        cast_parameters(module, asked.plan.scheme)
        module.to(CUDA)
        switch_on(module, asked.checkpointing)
        self.module, self.extra = module, built.extra
        self.tracker.sites.add(module.named_modules())
        claim_kept(self.tracker, module)
        self.batch = make_batch(built.inputs, "cuda:0", floating_dtype(module), 0)
        for name, tensor in self.batch.items():
            self._is(tensor, "input", name)
        with self._decided():
            recipe, trained = self._recipe(built), trained_parameters(module)
            if asked.plan.frees_gradients:  # before the hooks that let go of them
                claim_as_they_come(self.tracker, trained)
            self.step = make_step(recipe, trained, module) if asked.real else RegistryStep(recipe, trained)
        claim_states(self.tracker, self.step, asked.plan)

    def run(self) -> None:
        """The iterations; what only a cycle of references keeps dies at the end of its own, not when Python looks for it."""
        with own_garbage():
            for index in range(1, ITERATIONS + 1):
                if self.asked.step is None:
                    self.iterate(index)
                else:
                    self._custom(index)
                gc.collect()
        self.tracker.close()

    def iterate(self, index: int) -> None:
        """One optimizer step with the micro-batches before it."""
        asked, mark = self.asked, self.tracker.mark
        for _ in range(asked.accumulation):
            self._forward_backward(index, last=_ == asked.accumulation - 1)
        claim_gradients(self.tracker, self.step)
        with self._decided():
            if asked.max_norm is not None:
                mark("clip", index)
                self.step.clip(asked.max_norm)
            mark("optimizer_step", index)
            self.step.update()
        if asked.plan.optimizer.fills:
            claim_gradients(self.tracker, self.step)
        self.parts = claim_states(self.tracker, self.step, asked.plan)
        mark("zero_grad", index)
        self.step.zero_grad(set_to_none=asked.set_to_none)
        self.tracker.sites.forget()

    def _forward_backward(self, index: int, *, last: bool) -> None:
        asked, mark = self.asked, self.tracker.mark
        placed, named = called(self.batch)
        with self._autocast():
            mark("forward", index)
            output = self.module(*placed, **named, **self.extra)
            mark("loss", index)
            loss = asked.loss(output) / asked.accumulation if asked.accumulation > 1 else asked.loss(output)
            del output
        mark("backward", index)
        with self._decided() if asked.plan.frees_gradients else contextlib.nullcontext():
            self.step.backward(loss)
        del loss
        if not last:
            self.step.next_micro_batch()

    def _custom(self, index: int) -> None:
        """A person's own step: its phases are told by what runs, which is forward until the first node runs backward."""
        self.tracker.mark("forward", index)
        with self._phases_by_calls(index):
            assert self.asked.step is not None
            self.asked.step(self.module, self.batch, self.step.optimizer)
        claim_gradients(self.tracker, self.step)
        self.parts = claim_states(self.tracker, self.step, self.asked.plan)
        self.tracker.sites.forget()

    @contextlib.contextmanager
    def _phases_by_calls(self, index: int) -> Iterator[None]:
        """Marks where the optimizer and autograd are entered and left."""
        optimizer, engine = self.step.optimizer, torch.autograd.backward
        step, zero = optimizer.step, optimizer.zero_grad

        def within(phase: Phase, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            before = self.tracker.now[0]
            self.tracker.mark(phase, index)
            if phase == "optimizer_step":
                claim_gradients(self.tracker, self.step)
            with self._decided() if phase == "optimizer_step" else contextlib.nullcontext():
                result = call(*args, **kwargs)
            self.tracker.mark(before, index)
            return result

        torch.autograd.backward = lambda *a, **k: within("backward", engine, *a, **k)
        optimizer.step = lambda *a, **k: within("optimizer_step", step, *a, **k)
        optimizer.zero_grad = lambda *a, **k: within("zero_grad", zero, *a, **k)
        try:
            yield
        finally:
            torch.autograd.backward = engine
            del optimizer.step, optimizer.zero_grad

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        copy = self.asked.plan.scheme.copy
        return contextlib.nullcontext() if copy is None else torch.autocast("cuda", getattr(torch, copy))

    @contextlib.contextmanager
    def _decided(self) -> Iterator[None]:
        """Values that the optimizer asks for are answered: gradients are finite, and no step is left out."""
        self.mode.answering = self.in_optimizer = True
        yield
        self.in_optimizer = self.mode.answering = False

    def _is(self, tensor: torch.Tensor, role: Any, name: str) -> None:
        life = self.tracker.life_of(tensor)
        if life is not None:
            life.role, life.name = role, name

    def _recipe(self, built: Built) -> Recipe:
        plan = self.asked.plan
        return Recipe(
            scheme=plan.scheme, entry=plan.optimizer, arguments=self.asked.arguments, options=plan.options,
            implementation=plan.implementation, device="cuda", batch=built.sizes["micro_batch_size"],
            max_norm=self.asked.max_norm, accumulation=self.asked.accumulation, in_backward=plan.in_backward,
        )  # fmt: skip
