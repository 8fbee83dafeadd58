"""What a real forward saves for backward, counted on the CPU, and what a trace holds at the same instant."""

from __future__ import annotations

import torch

from memcalc.job import Job
from memcalc.runtime.build import build
from memcalc.runtime.inputs import called, make_batch
from memcalc.runtime.losses import make_loss
from memcalc.tape.events import Alloc, Free, Mark


def really_saved(job: Job, loss: str | None = None, inputs: tuple[str, ...] = ()) -> int:
    """Bytes of the storages autograd holds at the end of a real forward on the CPU, the model's and the batch's own apart.

    The loss itself is among them: whoever calls backward holds it.
    """
    built = build(job, inputs=inputs)
    module = built.module
    batch = make_batch(built.inputs, "cpu", "float32", 0)
    own = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers(), *batch.values()]}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    placed, named = called(batch)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*placed, **named, **built.extra)
        value = make_loss(loss)[1](output)
    saved[value.untyped_storage()._cdata] = value.untyped_storage()
    return sum(storage.nbytes() for storage in saved.values())


def live_at(tape, phase: str, iteration: int) -> list:
    """The buffers on the device when that phase of that iteration begins."""
    live = {}
    for event in tape:
        if isinstance(event, Mark):
            if (event.phase, event.iteration) == (phase, iteration):
                return list(live.values())
        elif isinstance(event, Alloc) and event.buffer.place == "device":
            live[id(event.buffer)] = event.buffer
        elif isinstance(event, Free):
            live.pop(id(event.buffer), None)
    raise AssertionError(f"no {phase} {iteration}")


KEPT = ("parameter", "buffer", "input", "optimizer_state", "master_parameter", "gradient", "workspace")


def traced_activations(tape, iteration: int = 1) -> int:
    """Bytes on the device when backward begins, all that outlives the step apart."""
    return sum(b.requested for b in live_at(tape, "backward", iteration) if b.role not in KEPT)
