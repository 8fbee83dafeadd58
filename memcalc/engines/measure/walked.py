"""Component bytes from real tensors: every parameter, buffer, master, gradient and state, one row a storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memcalc.measurement import Tensor
from memcalc.optimizers.base import Optimizer, Options, State
from memcalc.runtime.step_base import Holding, Step
from memcalc.runtime.walk import plain_parts, storage_key, storages_of

if TYPE_CHECKING:
    import torch

HOST = "host_optimizer_states"
"""The component of optimizer states in CPU memory, which a device's total never includes."""


class Rows:
    """Rows in the order they are found; a storage met again adds a name to its row."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, Any]] = {}

    def add(self, held: Holding) -> None:
        """The storages of one tensor; a wrapper's inner tensors are rows of their own."""
        for each in plain_parts(held.tensor.detach()):
            storage, key = each.untyped_storage(), storage_key(each)
            if not storage.nbytes():
                continue
            if key in self.found:
                row = self.found[key]
                if held.name not in (row["name"], *row["also"]):
                    row["also"].append(held.name)
                continue
            piece = bool(held.flat) and storage.nbytes() > each.numel() * each.element_size()
            self.found[key] = {
                "component": held.component, "name": held.flat if piece else held.name, "part": "",
                "owner": None if piece else held.owner, "dtype": str(each.dtype).removeprefix("torch."),
                "shape": list(each.shape), "nbytes": storage.nbytes(), "device": storage.device.type,
                "also": [held.name] if piece and held.name != held.flat else [],
            }  # fmt: skip

    def tensors(self) -> list[Tensor]:
        """Them, as a record has them."""
        return [Tensor(**row) for row in self.found.values()]


def kept_rows(module: Any, step: Step) -> Rows:
    """What is there from the start: parameters, buffers, masters, and GradScaler's scalars."""
    rows = Rows()
    for held in step.kept(module):
        rows.add(held)
    for found in storages_of(step.scaler, step.params):
        rows.found[found.key] = _row("temporaries", f"GradScaler {found.path}", "scaler", None, found)
    return rows


def gradient_rows(step: Step, *, in_buckets: bool) -> Rows:
    """Every gradient there is; views of data-parallel buckets count as those."""
    rows = Rows()
    for held in step.gradients():
        rows.add(held._replace(component="communication") if in_buckets else held)
    return rows


def input_rows(batch: dict[str, torch.Tensor]) -> Rows:
    """The batch."""
    rows = Rows()
    for name, tensor in batch.items():
        rows.add(Holding("inputs", name, tensor))
    return rows


def state_rows(step: Step, entry: Optimizer, options: Options, known: Iterable[int], grad_dtypes: Mapping[int, str]) -> Rows:
    """What the optimizer holds beyond what is ``known``, each with the part the registry gives it.

    On a CPU device and host are one memory: which of the two a state would be in is then the registry's word.

    Args:
        step: whose optimizer.
        entry: the registry's word on it.
        options: its options.
        known: keys of the storages that are listed already.
        grad_dtypes: ``id`` of a parameter -> the dtype of its gradient; any other's follows its own.
    """
    rows, seen = Rows(), set(known)
    described = [each.described(grad_dtypes.get(id(each.tensor))) for each in step.keyed]
    promised = [_Promised(entry.states(param, options)) for param in described]
    shared = _Promised(entry.shared(described, options) if entry.shared else ())
    keys = [each.tensor for each in step.keyed]
    on_cpu = all(part.device.type == "cpu" for key in keys for part in plain_parts(key))
    for found in storages_of(step.optimizer, keys):
        if found.key in seen or found.device == "meta":
            continue
        state = (shared if found.owner is None else promised[found.owner]).like(found)
        owner = None if found.owner is None else step.keyed[found.owner].name
        label = state.name if state else found.path or "?"
        host = (state is not None and state.place == "host") if on_cpu else found.device == "cpu"
        part = state.part if state else "other"
        component = HOST if host else "master_parameters" if part == "master" else "optimizer_states"
        name = f"{owner} {label}" if owner else label
        rows.found[found.key] = _row(component, name, part, owner, found)
    return rows


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
