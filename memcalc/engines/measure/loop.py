"""The training loop that is measured: built, fed, stepped, and read at every phase boundary."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from typing import Any

import torch

from memcalc.engines.measure.meter import CudaMeter, Meter, Recorder
from memcalc.engines.measure.question import Question
from memcalc.engines.measure.walked import Rows, gradient_rows, input_rows, kept_rows, state_rows
from memcalc.errors import InputError, NotModelledError
from memcalc.implementations import USUAL
from memcalc.measurement import Iteration, Phase
from memcalc.runtime.around import all_zeros, counts_of, floating_dtype, only_kernel, trained_parameters, waiting
from memcalc.runtime.build import Built, build, cast_parameters, with_lora
from memcalc.runtime.checkpointing import switch_on
from memcalc.runtime.family_inputs import CPU_SEQUENCE, SEQUENCE
from memcalc.runtime.inputs import called, make_batch
from memcalc.runtime.losses import make_loss
from memcalc.runtime.optimizers import Trained
from memcalc.runtime.ranks import inner_module, wrapped
from memcalc.runtime.step_base import Recipe, Step
from memcalc.runtime.stepping import import_early, make_schedule, make_step

MORE = 16
"""Steps beyond those asked for that may be taken while loss scaling leaves some out."""


class Loop:
    """One rank's training, from nothing to the last step.

    Attributes:
        init: the phases before the first step.
        iterations: the steps.
        rows: every storage found, by component.
        copies: bytes of autocast's copies at the end of a steady forward; None where nobody can tell.
        without_gradient: trainable parameters that the loss does not depend on.
        kernels: which attention the model was built with, where it says so.
        zeros: trainable parameters that are all zeros before the first step.
        counts: elements of all parameters and of those that train, and how many tensors they are.
    """

    def __init__(self, question: Question, meter: Meter) -> None:
        self.question, self.meter = question, meter
        self.recorder = Recorder(meter)
        self.init: list[Phase] = []
        self.iterations: list[Iteration] = []
        self.rows = Rows()
        self.grad_dtypes: dict[int, str] = {}
        self.without_gradient: list[str] = []
        self.copies: int | None = None
        self.kernels: str | None = None
        self.loss_name, self.loss = make_loss(question.settings.loss, question.app_dir)
        self.floating = "float32"
        self.built: Built
        self.module: Any
        self.step: Step
        self.trained: list[Trained] = []
        self.batch: dict[str, torch.Tensor] = {}
        self.counts = (0, 0, 0)
        self.zeros: list[str] = []

    def run(self) -> None:
        """Everything, once."""
        self.build()
        settings, taken = self.question.settings, 0
        schedule = make_schedule(settings.schedule, self.step.optimizer, settings.iterations)
        for index in range(1, settings.iterations + MORE + 1):
            iteration = self.iterate(index, last=taken + 1 == settings.iterations)
            schedule()
            self.iterations.append(iteration)
            taken += not iteration.skipped
            if taken == settings.iterations:
                return

    def build(self) -> None:
        """Model, batch, wrapper and optimizer, each a part of ``init``."""
        question, plan, recorder = self.question, self.question.plan, self.recorder
        lora = question.settings.lora
        if question.job.training.lora is not None or question.job.implementation != USUAL:
            raise NotModelledError("training.lora", question.job.training.lora, "is no key of what is measured", "use --lora")
        import_early(plan.optimizer, lora=lora is not None)
        with recorder.phase("init", "model"):
            self.built = build(
                question.job, inputs=question.settings.inputs, app_dir=question.app_dir, base_dir=question.base_dir,
                seed=question.settings.seed, usual=CPU_SEQUENCE if question.device == "cpu" else SEQUENCE,
            )  # fmt: skip
            module = self.built.module
            if lora is not None:
                module = with_lora(module, lora)
            self.zeros = all_zeros(module)
            cast_parameters(module, plan.scheme)
            module.to(question.place)
            switch_on(module, question.job.training.activation_checkpointing)
        self.counts = counts_of(module)
        self.kernels = getattr(getattr(module, "config", None), "_attn_implementation", None)
        self.floating = floating_dtype(module)
        with recorder.phase("init", "inputs"):
            seed = question.settings.seed + question.here.rank
            self.batch = make_batch(self.built.inputs, question.place, self.floating, seed)
        with recorder.phase("init", "data_parallel"):
            self.module = wrapped(module, plan.backend, plan.stage, plan.zero_args, plan.scheme, question.here)
        self.trained = trained_parameters(inner_module(self.module))
        self._require_accepted()
        with recorder.phase("init", "optimizer"):
            self.step = make_step(self._recipe(), self.trained, inner_module(self.module))
            self.module = self.step.module or self.module
        self.init = recorder.taken()

    def iterate(self, index: int, *, last: bool) -> Iteration:
        """One optimizer step with the micro-batches before it; ``last`` is the one whose tensors are walked."""
        recorder, settings = self.recorder, self.question.settings
        accumulation = self.question.job.training.gradient_accumulation_steps
        begun, loss, norm = time.perf_counter(), math.nan, None
        watching = self.meter.operators if isinstance(self.meter, CudaMeter) and index == 1 else contextlib.nullcontext()
        with watching:
            for micro_batch in range(accumulation):
                final = micro_batch == accumulation - 1
                loss = self._forward_backward(index, micro_batch, accumulation, final=final)
        if last:
            self._walk_gradients()
        max_norm = self.question.job.training.max_grad_norm
        if max_norm is not None:
            with recorder.phase("clip", iteration=index):
                norm = self.step.clip(max_norm)
        scale = self.step.loss_scale()
        with recorder.phase("optimizer_step", iteration=index):
            skipped = self.step.update()
        if last:
            self._walk_states()
        with recorder.phase("zero_grad", iteration=index):
            self.step.zero_grad(set_to_none=settings.set_to_none)
        return Iteration(
            index=index, phases=recorder.taken(), loss=loss if math.isfinite(loss) else None,
            gradient_norm=norm if norm is not None and math.isfinite(norm) else None, loss_scale=scale, skipped=skipped,
            seconds=round(time.perf_counter() - begun, 6),
        )  # fmt: skip

    def _forward_backward(self, index: int, micro_batch: int, accumulation: int, *, final: bool) -> float:
        recorder = self.recorder
        placed, named = called(self.batch)
        told: dict[str, Any] = {"micro_batch": micro_batch, "iteration": index}
        with waiting(self.module, final=final), only_kernel(self.question.job.training.attention):
            with self._autocast():
                if self.question.plan.scheme.copy is not None:
                    self.meter.watch_copies_of(inner_module(self.module).parameters())
                with recorder.phase("forward", **told):
                    output = self.module(*placed, **named, **self.built.extra)
                with recorder.phase("loss", **told):
                    loss = self.loss(output) / accumulation if accumulation > 1 else self.loss(output)
                    del output
                self.copies = self.meter.copies()  # before autocast lets go of those that no backward waits for
                self.meter.watch_copies_of(())
            value = float(loss.detach())
            with recorder.phase("backward", **told):
                self.step.backward(loss)
                del loss
                if not final:
                    self.step.next_micro_batch()
        return value * accumulation

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        copy = self.question.plan.scheme.copy
        sharded = self.question.plan.backend == "fsdp2" and self.question.here.size > 1
        if copy is None or sharded:  # FSDP2 casts what it gathers; nothing is left for autocast
            return contextlib.nullcontext()
        return torch.autocast(self.question.device, getattr(torch, copy))

    def _recipe(self) -> Recipe:
        plan, question = self.question.plan, self.question
        training = question.job.training
        zero = plan.backend == "torch" and plan.stage == 1 and question.here.size > 1
        return Recipe(
            scheme=plan.scheme, entry=plan.optimizer, arguments=training.optimizer_args, options=plan.options,
            implementation=plan.implementation, device=question.device, backend=plan.backend, zero=zero, stage=plan.stage,
            engine_args=plan.zero_args, batch=self.built.sizes["micro_batch_size"], max_norm=training.max_grad_norm,
            accumulation=training.gradient_accumulation_steps, in_backward=plan.in_backward,
        )  # fmt: skip

    def _require_accepted(self) -> None:
        """That the optimizer takes every parameter, in the estimate's words."""
        entry = self.question.plan.optimizer
        refused = [each.name for each in self.trained if not entry.accepts(each.described())]
        if refused:
            rule = f"takes only {entry.needs}, not {refused[0]}"
            raise InputError("training.optimizer", entry.name, rule, "use one that takes every parameter")

    def _walk_gradients(self) -> None:
        in_buckets = bool(self.question.plan.zero_args.get("gradient_as_bucket_view")) and self.question.here.size > 1
        gradients = gradient_rows(self.step, in_buckets=in_buckets)
        own = any(each.tensor.grad is not None for each in self.trained)
        if own or not (gradients.found or self.question.plan.frees_gradients):
            self.without_gradient = [each.name for each in self.trained if each.tensor.grad is None]
        self.grad_dtypes = {
            id(each.tensor): str(each.tensor.grad.dtype).removeprefix("torch.")
            for each in self.trained
            if each.tensor.grad is not None
        }
        for rows in (kept_rows(inner_module(self.module), self.step), input_rows(self.batch), gradients):
            self.rows.found.update(rows.found)

    def _walk_states(self) -> None:
        plan = self.question.plan
        rows = state_rows(self.step, plan.optimizer, plan.options, self.rows.found, self.grad_dtypes)
        self.rows.found.update(rows.found)

    def done(self) -> None:
        """Let go of everything, so that what stays in the allocator is nobody's tensor."""
        for name in ("module", "step", "built"):
            if hasattr(self, name):
                delattr(self, name)
        self.batch, self.trained = {}, []
        gc.collect()
