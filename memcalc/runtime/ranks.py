"""Real data parallelism: the process group of ``torchrun``, and a module wrapped as its backend asks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from memcalc.errors import InputError, MissingPackageError, NotModelledError
from memcalc.precision import Scheme
from memcalc.runtime.checkpointing import repeated_layers

WAIT = timedelta(seconds=120)
"""How long a rank waits for the others: a killed one must not keep them for ever."""


class World(NamedTuple):
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local: int = 0


def world() -> World:
    """As ``torchrun`` says in the environment; one process without it.

    Raises:
        InputError: the variables contradict each other.
    """
    try:
        found = World(*(int(os.environ.get(key, default)) for key, default in _VARIABLES))
    except ValueError:
        raise InputError(
            "WORLD_SIZE", os.environ.get("WORLD_SIZE"), "is not a number of ranks", "start with torchrun"
        ) from None
    if not 0 <= found.rank < found.size:
        raise InputError("RANK", found.rank, f"is not below WORLD_SIZE = {found.size}", "start with torchrun")
    return found


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextlib.contextmanager
def process_group(here: World, device: str, *, always: bool = False) -> Iterator[None]:
    """Gloo on CPUs, NCCL on GPUs; nothing for one rank, unless an engine wants a group of one; the group there is, if any."""
    import torch.distributed as dist

    if (here.size == 1 and not always) or (dist.is_available() and dist.is_initialized()):
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(here.local)
    kind = "nccl" if device == "cuda" else "gloo"
    if here.size == 1:
        stores: Any = dist
        dist.init_process_group(kind, store=stores.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(kind, timeout=WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def gathered(value: Any, here: World) -> list[Any]:
    """Every rank's value, on rank 0; on the others their own alone."""
    if here.size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] | None = [None] * here.size if here.rank == 0 else None
    dist.gather_object(value, values, dst=0)
    return values if values is not None else [value]


def wrapped(module: Any, backend: str, stage: int, args: Mapping[str, Any], scheme: Scheme, here: World) -> Any:
    """The module under its data-parallel backend; itself on one rank.

    Raises:
        NotModelledError: a backend that cannot be run here.
    """
    if here.size == 1 or backend == "deepspeed":  # whose engine takes the bare module
        return module
    if backend == "torch":
        return torch.nn.parallel.DistributedDataParallel(module, **args)
    if backend == "fsdp2":
        return _fully_sharded(module, stage, scheme, args)
    raise NotModelledError("parallelism.zero_backend", backend, "cannot be run by this loop", "use torch, fsdp2 or deepspeed")


def _fully_sharded(module: Any, stage: int, scheme: Scheme, args: Mapping[str, Any]) -> Any:
    """Each layer one group and the root the last, as ``torch.distributed.fsdp.fully_shard`` is meant to be called.

    Of what it is not told it has its own defaults: layers are resharded after forward, to all ranks, and the root is not.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    told: dict[str, Any] = {} if stage == 3 else {"reshard_after_forward": False}
    reduced: dict[str, Any] = {"reduce_dtype": torch.float32} if args.get("reduce_in_float32") else {}
    if scheme.copy is not None or reduced:
        gathered = None if scheme.copy is None else getattr(torch, scheme.copy)
        told["mp_policy"] = MixedPrecisionPolicy(param_dtype=gathered, **reduced)
    after: dict[str, Any] = {"reshard_after_forward": int(args.get("reshard_after_forward", 0)) or True} if stage == 3 else {}
    for layer in repeated_layers(module):
        if any(True for _ in layer.parameters()):
            fully_shard(layer, **told, **after)
    if args.get("reshard_root"):
        told |= after
    return fully_shard(module, **told)


def inner_module(module: Any) -> Any:
    """The module inside a wrapper that is a module itself (DistributedDataParallel, DeepSpeed's engine)."""
    return module.module if type(module).__name__ in ("DistributedDataParallel", "DeepSpeedEngine") else module


def require_cuda() -> None:
    """That there is a GPU torch can use.

    Raises:
        MissingPackageError: torch is built without CUDA, or finds no device.
    """
    if torch.cuda.is_available():
        return
    why = "finds no CUDA device" if torch.version.cuda else "is built without CUDA"
    raise MissingPackageError("--device", "cuda", f"cannot be used: torch {torch.__version__} {why}", "use --device cpu")
