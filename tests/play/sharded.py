"""Run under ``torchrun``: a small model under ``fully_shard`` on real ranks over gloo, every storage followed.

    torchrun --nproc-per-node 2 -m tests.play.sharded OUT.json [CASE ...]       # and once more with 4, and with 8

What rank 0 lives through in a steady iteration's forward, loss and backward stands in OUT.json: how high it is at each of
FSDP2's own allocations, at its highest, where backward begins and at its end.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_collectives

from memcalc.job import read_job
from memcalc.precision import SCHEMES
from memcalc.runtime.build import build, cast_parameters, with_lora
from memcalc.runtime.checkpointing import switch_on
from memcalc.runtime.inputs import make_batch
from memcalc.runtime.live import LiveBytes
from memcalc.runtime.ranks import World, wrapped
from memcalc.runtime.walk import plain_parts
from tests.play.sharded_cases import CASES, asked

STEADY = 4
"""Iterations behind the first."""


class Written(LiveBytes):
    """Writes each birth and death of a storage, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int, str]] = []
        self.operator = ""
        self.inside = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operator = str(func).removeprefix("aten.").removesuffix(".default")
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _met(self, tensor: torch.Tensor, *, cast: bool = False) -> None:
        for part in plain_parts(tensor):
            storage = part.untyped_storage()
            reference = weakref.ref(storage, self._died)
            if storage.device.type == "cpu" and reference not in self._sizes and not self.inside:
                self._sizes[reference] = storage.nbytes()
                self.write("+", storage.nbytes())

    def _died(self, reference: Any) -> None:
        self.write("-", self._sizes.pop(reference))

    def _resized(self, storage: torch.UntypedStorage) -> None:
        reference = weakref.ref(storage)
        if reference in self._sizes:
            before, self._sizes[reference] = self._sizes[reference], storage.nbytes()
            self.operator = "resize_"
            self.write("-", before)
            self.write("+", storage.nbytes())

    def write(self, sign: str, size: int) -> None:
        """An event; nothing of no bytes."""
        if size or sign not in "+-":
            self.events.append((sign, size, self.operator))

    def quiet(self, reduce: Any) -> Any:
        """A reduce-scatter without what gloo copies for it, which NCCL does not."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.inside += 1
            try:
                return reduce(*args, **kwargs)
            finally:
                self.inside -= 1

        return call


def told(events: list[tuple[str, int, str]]) -> dict[str, Any]:
    """How high memory is, from the start of the iteration."""
    live = top = saved = 0
    at = []
    for sign, size, operator in events:
        if sign == "backward":
            saved = live
        elif sign in "+-":
            live += size if sign == "+" else -size
            top = max(top, live)
            if sign == "+" and operator in ("empty.memory_format", "resize_"):
                at.append((size, live))
    return {"top": top, "saved": saved, "net": live, "at": at}


def lived(case: dict[str, Any]) -> dict[str, Any]:
    """A steady iteration."""
    job = read_job(asked(case))
    scheme = SCHEMES.get(case["precision"], "")
    built = build(job)
    module = built.module
    if "lora" in case:
        module = with_lora(module, {"target_modules": ["q_proj", "v_proj"], **case["lora"]})
    cast_parameters(module.train(), scheme)
    switch_on(module, case.get("activation_checkpointing", "none"))
    here = World(dist.get_rank(), dist.get_world_size())
    if "units" in case or case.get("dp_replicate", 1) > 1:
        module = in_units(module, scheme, case)
    else:
        module = wrapped(module, "fsdp2", case["zero_stage"], case.get("zero_args", {}), scheme, here)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, foreach=True)
    batch = make_batch(built.inputs, "cpu", scheme.parameter or "float32", seed=0)
    steps = case.get("gradient_accumulation_steps", 1)
    kinds: Any = _fsdp_collectives.DefaultReduceScatter
    reduce, found = kinds.__call__, []
    with Written() as written:
        kinds.__call__ = written.quiet(reduce)
        for _ in range(1 + STEADY):
            gc.collect()
            written.events = []
            for step in range(steps):
                if case.get("zero_args", {}).get("no_sync"):
                    module.set_requires_gradient_sync(step == steps - 1)
                written.write("forward", 0)
                out = module(**batch)
                written.write("loss", 0)
                loss = out.loss / steps if steps > 1 else out.loss
                del out
                written.write("backward", 0)
                loss.backward()
                del loss
            found.append(told(written.events))
            optimizer.step()
            optimizer.zero_grad()
        kinds.__call__ = reduce
    return least(found[1:])


def least(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of iterations alike the lowest at each point: gloo's own thread may be late to let go of what it reduced."""
    sizes = [[size for size, _ in each["at"]] for each in found]
    assert all(size == sizes[0] for size in sizes)
    least = {key: min(each[key] for each in found) for key in ("top", "saved", "net")}
    return {**least, "at": [min(points) for points in zip(*(each["at"] for each in found), strict=True)]}


def in_units(module: Any, scheme: Any, case: dict[str, Any]) -> Any:
    """Wrapped in groups, or over replicas none of which shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    replicas = case.get("dp_replicate", 1)
    shape = (replicas, dist.get_world_size() // replicas) if replicas > 1 else (dist.get_world_size(),)
    told: dict[str, Any] = {"mesh": init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])}
    reduced = torch.float32 if case.get("zero_args", {}).get("reduce_in_float32") else None
    if scheme.copy is not None:
        told["mp_policy"] = MixedPrecisionPolicy(param_dtype=getattr(torch, scheme.copy), reduce_dtype=reduced)
    units = case.get("units", {"groups": [["model.layers.*"]], "stays": []})
    after = int(case.get("zero_args", {}).get("reshard_after_forward", 0)) or True
    for paths in units["groups"]:
        stays = {"reshard_after_forward": False if paths in units["stays"] else after}
        if not paths[0].endswith("*"):
            fully_shard([module.get_submodule(path) for path in paths], **told, **stays)
            continue
        layers = list(module.get_submodule(paths[0][:-2]))
        for layer in layers:
            last = layer is layers[-1] and [f"{paths[0][:-1]}-1"] in units["stays"]
            fully_shard(layer, **told, reshard_after_forward=False if last else after)
    return fully_shard(module, **told)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    gc.disable()  # what only a cycle holds dies between steps, not whenever Python looks for it
    here = {name: case for name, case in CASES.items() if case["dp"] == dist.get_world_size()}
    found = {name: lived(case) for name, case in here.items() if name in (sys.argv[2:] or CASES)}
    if dist.get_rank() == 0:
        before = json.loads(Path(sys.argv[1]).read_text()) if Path(sys.argv[1]).exists() else {}
        Path(sys.argv[1]).write_text(json.dumps({**before, **found}))
    dist.destroy_process_group()
