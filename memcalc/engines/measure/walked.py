"""Component bytes from real tensors: every parameter, buffer, master, gradient and state, one row a storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from memcalc.measurement import Tensor
from memcalc.optimizers.base import Optimizer, Options, Param, State
from memcalc.runtime.inputs import Input
from memcalc.runtime.optimizers import Trained
from memcalc.runtime.stepping import Step
from memcalc.runtime.walk import plain_parts, storage_key, storages_of

HOST = "host_optimizer_states"
"""The component of optimizer states in CPU memory, which a device's total never includes."""


class Rows:
    """Rows in the order they are found; a storage met again adds a name to its row."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, Any]] = {}

    def add(self, component: str, name: str, tensor: torch.Tensor, owner: str | None = None, part: str = "") -> None:
        """The storages of one tensor; a wrapper's inner tensors are rows of their own."""
        for each in plain_parts(tensor.detach()):
            storage, key = each.untyped_storage(), storage_key(each)
            if not storage.nbytes():
                continue
            if key in self.found:
                row = self.found[key]
                if name not in (row["name"], *row["also"]):
                    row["also"].append(name)
                continue
            self.found[key] = {
                "component": component, "name": name, "part": part, "owner": owner,
                "dtype": str(each.dtype).removeprefix("torch."), "shape": list(each.shape), "nbytes": storage.nbytes(),
                "device": storage.device.type, "also": [],
            }  # fmt: skip

    def tensors(self) -> list[Tensor]:
        """Them, as a record has them."""
        return [Tensor(**row) for row in self.found.values()]


def kept_rows(module: Any, step: Step | None, names: Sequence[str]) -> Rows:
    """What is there from the start: parameters, buffers, masters, and GradScaler's scalars."""
    rows = Rows()
    for name, param in module.named_parameters(remove_duplicate=False):
        rows.add("parameters", name, param, name)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        rows.add("buffers", name, buffer)
    if step is not None:
        for name, master in zip(names, step.masters, strict=True):
            if master is not None:
                rows.add("master_parameters", f"{name} (master)", master, name)
        for found in storages_of(step.scaler, step.params):
            rows.found[found.key] = _row("temporaries", f"GradScaler {found.path}", "scaler", None, found)
    return rows


def gradient_rows(named: Iterable[tuple[str, torch.Tensor]], *, in_buckets: bool) -> Rows:
    """Every ``p.grad`` there is; views of data-parallel buckets count as those."""
    rows = Rows()
    for name, param in named:
        if param.grad is not None:
            rows.add("communication" if in_buckets else "gradients", f"{name}.grad", param.grad, name)
    return rows


def input_rows(batch: dict[str, torch.Tensor]) -> Rows:
    """The batch."""
    rows = Rows()
    for name, tensor in batch.items():
        rows.add("inputs", name, tensor)
    return rows


def state_rows(
    step: Step, trained: Sequence[Trained], entry: Optimizer, options: Options, known: Iterable[int], grad_dtypes: Sequence[str]
) -> Rows:
    """What the optimizer holds beyond what is ``known``, each with the part the registry gives it.

    On a CPU device and host are one memory: which of the two a state would be in is then the registry's word.
    """
    rows, seen = Rows(), set(known)
    described = list(_described(step, trained, grad_dtypes))
    promised = [_Promised(entry.states(param, options)) for param in described]
    shared = _Promised(entry.shared(described, options) if entry.shared else ())
    on_cpu = all(part.device.type == "cpu" for each in trained for part in plain_parts(each.tensor))
    for found in storages_of(step.optimizer, step.keyed_by):
        if found.key in seen:
            continue
        state = (shared if found.owner is None else promised[found.owner]).like(found)
        owner = None if found.owner is None else trained[found.owner].name
        label = state.name if state else found.path or "?"
        host = (state is not None and state.place == "host") if on_cpu else found.device == "cpu"
        part = state.part if state else "other"
        component = HOST if host else "master_parameters" if part == "master" else "optimizer_states"
        name = f"{owner} {label}" if owner else label
        rows.found[found.key] = _row(component, name, part, owner, found)
    return rows


def _described(step: Step, trained: Sequence[Trained], grad_dtypes: Sequence[str]) -> Iterator[Param]:
    for each, updated, dtype in zip(trained, step.keyed_by, grad_dtypes, strict=True):
        master = str(updated.dtype).removeprefix("torch.") if step.masters and updated.dtype != each.tensor.dtype else dtype
        yield each._replace(tensor=updated).described(master)


def _row(component: str, name: str, part: str, owner: str | None, found: Any) -> dict[str, Any]:
    return {
        "component": component, "name": name, "part": part, "owner": owner, "dtype": found.dtype,
        "shape": list(found.shape), "nbytes": found.nbytes, "device": found.device, "also": [],
    }  # fmt: skip


class _Promised:
    """The registry's states of one parameter, each given out once."""

    def __init__(self, states: Iterable[State]) -> None:
        self.left = [state for state in states for _ in range(int(state.count)) if int(state.nbytes)]

    def like(self, found: Any) -> State | None:
        """The state that a storage is: by its key and bytes, else by its bytes, else by its key."""
        tail = found.path.rpartition(".")[2]
        same_size = [state for state in self.left if int(state.nbytes) == found.nbytes]
        same_name = [state for state in self.left if state.name in (found.path, tail)]
        both = [state for state in same_size if state in same_name]
        typed = [state for state in same_size if state.dtype == found.dtype]
        for candidates in (both, typed, same_size, same_name):
            if candidates:
                self.left.remove(candidates[0])
                return candidates[0]
        return None


def names_of_inputs(inputs: Iterable[Input], floating: str) -> list[str]:
    """The batch as ``--input`` would spell it."""
    return [each.text(floating) for each in inputs]
