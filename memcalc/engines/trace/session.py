"""A person's own training loop, traced: whatever runs inside the context runs on tensors without data.

Phases are told by what happens: forward until autograd runs backward, then the optimizer's step. What the optimizer is given
are the parameters. An iteration ends once every optimizer has stepped, and the second one is the steady one.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.optim import optimizer as hooks

from memcalc.allocator.replay import replay
from memcalc.allocator.settings import asked_settings
from memcalc.engines.trace.assemble import Told, footprint_of, tape_of
from memcalc.engines.trace.bridge import cuda_is_here
from memcalc.engines.trace.estimate import Traced
from memcalc.engines.trace.failures import kernel_warnings, refused
from memcalc.engines.trace.fake import CUDA, CudaFakeMode
from memcalc.engines.trace.kernels import Kernels
from memcalc.engines.trace.machine import machine_of
from memcalc.engines.trace.presence import as_real_tensors
from memcalc.engines.trace.routing import assumed, experts_of
from memcalc.engines.trace.sites import Sites
from memcalc.engines.trace.thrift import own_garbage
from memcalc.engines.trace.tracker import Tracker
from memcalc.engines.trace.values import Values
from memcalc.errors import NO_VALUE, InputError
from memcalc.footprint import ModelSummary
from memcalc.job import Job
from memcalc.plan import make_plan, understood
from memcalc.runtime.walk import plain_parts, storages_of
from memcalc.tape.events import Phase, Role


class Session:
    """What is being traced, and in the end the result.

    Attributes:
        device: where to put the model and its inputs: ``cuda:0``.
    """

    device = CUDA

    def __init__(self, job: Job, tracker: Tracker, mode: CudaFakeMode) -> None:
        self.job, self.tracker, self.mode = job, tracker, mode
        # a loop of one's own runs once: whether it will ask what a router chose is not known before
        imbalance = job.training.routing_imbalance or 1.0
        self.values = mode.values = Values(set(), imbalance, tracker.sites, mode.without_values)
        self._params: dict[int, tuple[str, torch.Tensor]] = {}
        self._optimizers: dict[str, None] = {}
        self._iteration = 1
        self._steps: list[int] = []
        self._numbered = False
        self._in_backward = 0
        self._traced: Traced | None = None

    def watch(self, module: torch.nn.Module) -> None:
        """Name a module's tensors and parts, as a result shows them. Call it once the module is on the device."""
        self.tracker.sites.add(module.named_modules())
        self.values.experts |= experts_of(module)
        for name, param in module.named_parameters():
            self._claim(param, "parameter", name)
            self._params[id(param)] = (name, param)
        for name, buffer in module.named_buffers():
            self._claim(buffer, "buffer", name)

    def keep(self, named: Iterable[tuple[str, torch.Tensor]], role: Role) -> None:
        """Say what tensors are for, as those of a cache of keys and values; names are for readers."""
        for name, tensor in named:
            self._claim(tensor, role, name)

    def mark(self, phase: Phase, iteration: int | None = None) -> None:
        """A phase begins, where the loop does something that is not seen by itself."""
        if iteration is not None:
            self._iteration, self._numbered = iteration, True
        self.tracker.mark(phase, self._iteration)

    @property
    def traced(self) -> Traced:
        """The result, once the context has ended.

        Raises:
            InputError: before it has, or where no optimizer step was taken.
        """
        if self._traced is None:
            raise InputError("trace", NO_VALUE, "has not ended", "ask after the with block, which takes at least one step")
        return self._traced

    def _claim(self, tensor: torch.Tensor, role: Role, name: str) -> None:
        for part in plain_parts(tensor.detach()):
            life = self.tracker.life_of(part)
            if life is not None and life.role is None:
                life.role, life.name = role, name

    def _before_step(self, optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                name, _param = self._params.setdefault(id(param), (f"parameter {len(self._params)}", param))
                self._claim(param, "parameter", name)
                if param.grad is not None:
                    self._claim(param.grad, "gradient", f"{name}.grad")
        self._optimizers[f"{type(optimizer).__module__.split('.')[0]}:{type(optimizer).__name__}"] = None
        self.tracker.mark("optimizer_step", self._iteration)
        self.mode.answering = True

    def _after_step(self, optimizer: Any, *_: Any) -> None:
        self.mode.answering = False
        params = [param for group in optimizer.param_groups for param in group["params"]]
        for found in storages_of(optimizer, params):
            life = self.tracker.live.get(found.key)
            if life is not None and life.role is None:
                owner = "" if found.owner is None else f"{self._params[id(params[found.owner])][0]} "
                life.role, life.name = "optimizer_state", f"{owner}{found.path.rpartition('.')[2] or '?'}"
        self._steps.append(id(optimizer))
        self._iteration += 1
        gc.collect()  # what only a cycle keeps dies here, not whenever Python looks for it
        if not self._in_backward:  # else there are nodes left to run
            self.tracker.sites.forget()
        self.tracker.mark("backward" if self._in_backward else "forward", self._iteration)

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Marks where optimizers and autograd are entered and left."""
        engine = torch.autograd.backward

        def backward(*args: Any, **kwargs: Any) -> Any:
            before = self.tracker.now
            self.tracker.mark("backward", self._iteration)
            self._in_backward += 1
            try:
                engine(*args, **kwargs)
            finally:
                self._in_backward -= 1
            self.tracker.mark(before[0], self._iteration)

        handles = [
            hooks.register_optimizer_step_pre_hook(self._before_step),
            hooks.register_optimizer_step_post_hook(self._after_step),
        ]
        torch.autograd.backward = backward
        try:
            yield
        finally:
            torch.autograd.backward = engine
            for handle in handles:
                handle.remove()

    def _end(self, allocator: str) -> None:
        if not self._steps and not self._numbered:
            return
        self.tracker.close()
        # a loop that says its iterations itself has said them; one without an optimizer ends within its last
        ended = self._iteration - 1 if self._steps else self._iteration
        steps = ended if self._numbered else renumbered(self.tracker.events, self._steps)
        params = [param for _, param in self._params.values()]
        counted = sum(param.numel() for param in params)
        trainable = sum(param.numel() for param in params if param.requires_grad)
        told = understood(self.job, make_plan(self.job))
        machine = machine_of(self.job)
        told["behaviour"] |= machine.told()
        told["training"] |= {"optimizer": ", ".join(self._optimizers) or "none", "optimizer_args": {}}
        routed = assumed(self.values.read, self.values.imbalance)
        tape = tape_of(self.tracker)
        played = replay(tape, allocator or asked_settings(self.job))
        steady = min(steps, 2)
        warnings = () if steps > 1 else ("one step alone was taken: it is the first, in which states are born",)
        name = str(self.job.model)
        footprint = footprint_of(
            tape, played,
            Told(
                ModelSummary(name, "module", counted, trainable, None, len(params)), told, {}, 0,
                (*machine.assumptions, *self.mode.assumed, *routed),
                (*warnings, *kernel_warnings(self.tracker.kernels)),
            ),
            steady,
        )  # fmt: skip
        self._traced = Traced(footprint, tape, played, {str(func): count for func, count in self.tracker.operators.items()})


def renumbered(events: list[tuple[str, Any]], steps: list[int]) -> int:
    """Give each stretch between two steps the number of its iteration; how many iterations there are.

    Args:
        events: as the tracker has them; until now each step began an iteration.
        steps: who took each step. An iteration ends once all of them have taken one, as in adversaries' loops, or where each
            parameter has an optimizer of its own.
    """
    numbers, iteration, waiting = {0: 0}, 1, set(steps)
    for stretch, optimizer in enumerate(steps, 1):
        numbers[stretch] = iteration
        waiting.discard(optimizer)
        if not waiting:
            iteration, waiting = iteration + 1, set(steps)
    numbers[len(steps) + 1] = iteration
    known: dict[int, tuple[Phase, int]] = {}

    def now(moment: tuple[Phase, int]) -> tuple[Phase, int]:
        # the same moment stays one object: a phase that is come back to is another
        return known.setdefault(id(moment), (moment[0], numbers[moment[1]]))

    for index, (kind, what) in enumerate(events):
        if kind == "=":
            events[index] = (kind, now(what))
        elif kind == "+":
            what.born, what.died = now(what.born), what.died and now(what.died)
    return iteration - 1


@contextlib.contextmanager
def session(job: Job, allocator: str = "") -> Iterator[Session]:
    """Everything inside runs on a GPU that is not there; see :func:`memcalc.tracing`."""
    machine = machine_of(job)
    sites = Sites()
    kernels = Kernels(machine.behaviour)
    tracker = Tracker(sites, kernels)
    with cuda_is_here(machine) as mode, as_real_tensors():
        opened = Session(job, tracker, mode)
        with own_garbage(), sites.watching(), opened._following(), tracker:
            tracker.mark("forward", 1)
            try:
                yield opened
            except Exception as error:
                refusal = refused(error, str(job.model), tracker)
                if refusal is None:
                    raise
                raise refusal from error
        opened._end(allocator)
