"""The step of an optimizer whose class cannot run without data: the registry's states and temporaries, in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from memcalc.engines.trace.fake import CUDA
from memcalc.optimizers.base import Param, State, Temporary
from memcalc.runtime.optimizers import Trained
from memcalc.runtime.step_base import Recipe, Step


class RegistryStep(Step):
    """Masters where the scheme keeps them, the entry's states, and in each step the entry's moments one after another.

    Nothing is computed: buffers of the entry's sizes are made, held and given up. A tensor that is processed in turn is live
    beside what the one before it left, and a list over all parameters is live whole, as in ``memcalc.optimizers.step``.
    """

    def __init__(self, recipe: Recipe, trained: Sequence[Trained]) -> None:
        self.recipe, self.trained = recipe, list(trained)
        self.notes = []
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
        """In place, by torch's own function."""
        torch.nn.utils.clip_grad_norm_(self.params, max_norm)
        return None

    def update(self) -> bool:
        """The states at the first step, the entry's moments at each."""
        described = [each.described(self._grad_dtype(each, param)) for each, param in zip(self.keyed, self.params, strict=True)]
        if not self.optimizer:
            self._bear(described)
        if self.recipe.scheme.step == "textbook" and self.recipe.implementation == "single":
            for param, told in zip(self.params, described, strict=True):
                cast = _cast(param)
                self._moments([told])
                del cast
        else:
            casts = [_cast(param) for param in self.params] if self.recipe.scheme.step == "textbook" else []
            self._moments(described)
            del casts
        return False

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

    def _moments(self, params: Sequence[Param]) -> None:
        """Each moment's lists, and beside them one parameter after another."""
        if self.recipe.entry.temporaries is None:  # nobody has measured them
            return
        told = [list(self.recipe.entry.temporaries(p, self.recipe.options, self.recipe.implementation)) for p in params]
        for moment in dict.fromkeys(term.moment for terms in told for term in terms):
            mine = [[term for term in terms if term.moment == moment] for terms in told]
            lists = [_space(term) for terms in mine for term in terms if term.over == "sum"]
            left: list[Any] = []
            for terms in mine:
                # what the one before left is live beside all of this one's, of which again a part is left
                own = [_space(term) for term in terms if term.over == "max"]
                del own, left
                left = [_space(term) for term in terms if term.over == "previous"]
            del lists, left


def _master(param: torch.Tensor) -> torch.Tensor | None:
    return None if param.dtype == torch.float32 else torch.nn.Parameter(param.detach().to(torch.float32))


def _cast(param: torch.Tensor) -> torch.Tensor | None:
    """The gradient as its master wants it; None where that is what it is."""
    return None if param.grad is None or param.dtype == torch.float32 else param.grad.to(torch.float32)


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


def _space(term: Temporary) -> list[torch.Tensor]:
    return [torch.empty(int(term.nbytes), dtype=torch.uint8, device=CUDA) for _ in range(int(term.count))]
