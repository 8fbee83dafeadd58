"""What a storage is for, told by who holds it: the module, the batch, autograd or the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memcalc.engines.trace.tracker import Life, Tracker
from memcalc.optimizers.base import Param
from memcalc.plan import Plan
from memcalc.runtime.optimizers import Trained
from memcalc.runtime.step_base import Step
from memcalc.runtime.walk import plain_parts, storages_of
from memcalc.tape.events import Role

SCALER = "GradScaler"
"""What the names of its tensors begin with; they are kept, though temporary by role, as in the analytic engine."""


def claim_kept(tracker: Tracker, module: Any) -> None:
    """Parameters and buffers."""
    for name, param in module.named_parameters(remove_duplicate=False):
        _claim(tracker, param, "parameter", name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        _claim(tracker, buffer, "buffer", name)


def claim_gradients(tracker: Tracker, step: Step) -> None:
    """What backward has left."""
    for held in step.gradients():
        _claim(tracker, held.tensor, "gradient", held.name)


def claim_as_they_come(tracker: Tracker, trained: Sequence[Trained]) -> None:
    """Gradients that an optimizer uses and drops inside backward, each as it is left at its parameter."""
    for each in trained:

        def claim(param: torch.Tensor, name: str = each.name) -> None:
            if param.grad is not None:
                _claim(tracker, param.grad, "gradient", f"{name}.grad")

        each.tensor.register_post_accumulate_grad_hook(claim)  # type: ignore[no-untyped-call]


def claim_states(tracker: Tracker, step: Step, plan: Plan) -> dict[str, int]:
    """Masters and optimizer states; the states' device bytes by part."""
    for each, master in zip(step.trained, step.masters, strict=True):
        if master is not None:
            _claim(tracker, master, "master_parameter", f"{each.name} (master)")
    for found in storages_of(step.scaler, step.params):
        _name(tracker.live.get(found.key), "temporary", f"{SCALER} {found.path}")
    parts: dict[str, int] = {}
    described = [each.described() for each in step.keyed]
    for found in storages_of(step.optimizer, [each.tensor for each in step.keyed]):
        life = tracker.live.get(found.key)
        if life is None or life.role not in (None, "optimizer_state"):
            continue
        states = _promised(plan, described, found.owner)
        known = [found.path, found.path.rstrip("._0123456789"), *reversed(found.path.split("."))]
        only = next(iter(states.values())) if found.owner is None and len(set(states.values())) == 1 else "other"
        part = next((states[name] for name in known if name in states), only)
        owner = "" if found.owner is None else f"{step.keyed[found.owner].name} "
        what = next((word for word in known[2:] if not word.isdigit()), "?")
        _name(life, "master_parameter" if part == "master" else "optimizer_state", f"{owner}{what}")
        if life.place == "device" and life.role == "optimizer_state":
            parts[part] = parts.get(part, 0) + life.nbytes
    return parts


def _promised(plan: Plan, described: Sequence[Param], owner: int | None) -> dict[str, str]:
    """The registry's states of one parameter, or of all of them together: name -> part."""
    entry = plan.optimizer
    if owner is not None:
        return {state.name: state.part for state in entry.states(described[owner], plan.options)}
    return {state.name: state.part for state in entry.shared(described, plan.options)} if entry.shared else {}


def _claim(tracker: Tracker, tensor: torch.Tensor, role: Role, name: str) -> None:
    for part in plain_parts(tensor.detach()):
        life = tracker.life_of(part)
        if life is not None and life.role is None:
            _name(life, role, name)


def _name(life: Life | None, role: Role, name: str) -> None:
    if life is not None and life.role is None:
        life.role, life.name = role, name
        owner = name.split(" ")[0].removesuffix(".grad").rpartition(".")[0]
        if role not in ("input", "temporary"):
            life.module = owner or life.module
