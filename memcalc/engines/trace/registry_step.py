"""The step of an optimizer whose class cannot run without data: the registry's states and temporaries, in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from memcalc.engines.trace.fake import CUDA
from memcalc.optimizers.base import Param, State
from memcalc.optimizers.player import in_a_row
from memcalc.optimizers.step import step_events
from memcalc.optimizers.textbook import textbook_events
from memcalc.runtime.mixed_precision import all_finite, total_norm
from memcalc.runtime.optimizers import Trained
from memcalc.runtime.step_base import Recipe, Step
from memcalc.tape.events import Alloc, Event, Free
from memcalc.tape.unroll import unroll


class RegistryStep(Step):
    """Masters where the scheme keeps them, the entry's states, and in each step the entry's events one after another.

    Nothing is computed: buffers of the entry's sizes are made, held and given up, as ``memcalc.optimizers.step`` has them.
    """

    def __init__(self, recipe: Recipe, trained: Sequence[Trained]) -> None:
        self.recipe, self.trained = recipe, list(trained)
        self.notes = []
        self.looked = False
        """Whether the gradients of this step have been looked at for overflow."""
        wide = recipe.scheme.master is not None
        self.masters = [_master(each.tensor) if wide else None for each in self.trained]
        self.keyed = [
            each if master is None else each._replace(tensor=master)
            for each, master in zip(self.trained, self.masters, strict=True)
        ]
        self.optimizer: dict[Any, Any] = {}
        """Parameter -> its states' tensors, under the registry's names."""
        if recipe.scheme.scaler:
            self.scaler = torch.amp.GradScaler("cuda")
        if recipe.entry.born == "init":
            self._bear([each.described() for each in self.keyed])

    def backward(self, loss: torch.Tensor) -> None:
        """Of the loss, scaled where the scheme scales it."""
        scaled: Any = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()

    def clip(self, max_norm: float) -> float | None:
        """In place, by torch's own function; on masters as the textbook's step does."""
        if self.recipe.scheme.step == "textbook":
            self.looked = all_finite(self._gradients())
            total_norm(self._gradients())
            return None
        torch.nn.utils.clip_grad_norm_(self.params, max_norm)
        return None

    def update(self) -> bool:
        """The states at the first step, the entry's events at each."""
        described = [each.described(self._grad_dtype(each, param)) for each, param in zip(self.keyed, self.params, strict=True)]
        if not self.optimizer:
            self._bear(described)
        recipe, nodes = self.recipe, in_a_row(described)
        if recipe.scheme.step == "textbook":
            self.looked = self.looked or all_finite(self._gradients())
            pairs = zip(self.keyed, self.params, strict=True)
            lowered = frozenset(each.name for each, param in pairs if param.dtype != torch.float32)
            play(textbook_events(recipe.entry, nodes, recipe.options, recipe.implementation, lowered))
        else:
            play(step_events(recipe.entry, nodes, recipe.options, recipe.implementation))
        self.looked = False
        return False

    def _gradients(self) -> list[torch.Tensor]:
        return [param.grad for param in self.params if param.grad is not None]

    def _grad_dtype(self, each: Trained, param: torch.Tensor) -> str | None:
        if self.recipe.scheme.master is not None:
            return None
        return None if param.grad is None else str(param.grad.dtype).removeprefix("torch.")

    def _bear(self, described: Sequence[Param]) -> None:
        entry, options = self.recipe.entry, self.recipe.options
        self.optimizer = {
            each.tensor: _named(entry.states(told, options)) for each, told in zip(self.keyed, described, strict=True)
        }
        shared = entry.shared(described, options) if entry.shared else ()
        self.optimizer["shared"] = _named(shared)


def play(events: Iterable[Event]) -> None:
    """Buffers of these sizes made and given up in this order."""
    live: dict[int, list[torch.Tensor]] = {}
    for event in unroll(events):
        assert isinstance(event, Alloc | Free)
        held = live.setdefault(id(event.buffer), [])
        if isinstance(event, Alloc):
            held.append(torch.empty(int(event.buffer.requested), dtype=torch.uint8, device=CUDA))
        else:
            held.pop()


def _master(param: torch.Tensor) -> torch.Tensor | None:
    return None if param.dtype == torch.float32 else torch.nn.Parameter(param.detach().to(torch.float32))


def _named(states: Iterable[State]) -> dict[str, list[torch.Tensor]]:
    """Buffers by their state's name, which several states may share: a factor for each side."""
    made: dict[str, list[torch.Tensor]] = {}
    for state in states:
        made.setdefault(state.name, []).extend(_buffers(state))
    return made


def _buffers(state: State) -> list[torch.Tensor]:
    # managed memory is the driver's: no caching allocator counts it
    device = CUDA if state.place == "device" else torch.device("cpu")
    return [torch.empty(int(state.nbytes), dtype=torch.uint8, device=device) for _ in range(int(state.count))]
