"""FSDP2 (torch.distributed.fsdp.fully_shard), each layer and the root one group: parameters split along their first dimension.

Storage is padded to equal pieces on every rank, empty ones included; the optimizer sees the unpadded piece. Rank 0 is the
fullest. source: pytorch 2.13 torch/distributed/fsdp/_fully_shard/_fsdp_param.py:298-316, _fsdp_collectives.py:592-616.
"""

from __future__ import annotations

from itertools import groupby

from memcalc.arrays import Count, ceil_div, is_array, maximum, minimum, where
from memcalc.errors import InputError
from memcalc.optimizers.base import Param
from memcalc.parallelism.base import (
    Holding,
    Layout,
    ScalarOnlyError,
    Setting,
    buffers_of,
    handed,
    scaler_scalars,
    step_casts,
    steps_in_turn,
)
from memcalc.parallelism.fsdp2_members import outermost
from memcalc.parallelism.fsdp2_sharding import sharding_of
from memcalc.records import replace
from memcalc.tape.events import Buffer, Role
from memcalc.tensors import Tensor, itemsize


def layouts(setting: Setting, ranks: int) -> list[Layout]:
    """The distinct layouts, rank 0's first."""
    if setting.stage < 2:
        raise InputError(
            "parallelism.zero_stage", setting.stage, "is not something FSDP2 does", "use 3, or 2 to keep gathered parameters"
        )
    sharding_of(setting)
    for tensor in setting.trainable:
        if not tensor.shape:
            raise InputError("model", tensor.name, "has no dimension to shard", "use zero_backend deepspeed or megatron")
    if is_array(setting.shards):
        return [replace(_rank(setting, 0, setting.replicas), lesser=_rests(setting))]
    assert isinstance(setting.shards, int)
    pieces = [
        (rank, tuple(_local(tensor, setting, rank) for tensor in setting.model.parameters)) for rank in range(setting.shards)
    ]
    if any(is_array(rows) for _, locals_ in pieces[:1] for rows in locals_):
        return [replace(_rank(setting, 0, setting.shards * setting.replicas), lesser=_rests(setting))]
    distinct = [list(group) for _, group in groupby(pieces, key=lambda piece: piece[1])]
    return [_rank(setting, group[0][0], len(group) * setting.replicas) for group in distinct]


def _local(tensor: Tensor, setting: Setting, rank: int) -> Count:
    """Rows of the first dimension this rank really holds (torch.chunk's split)."""
    rows = ceil_div(tensor.shape[0], setting.shards)
    return maximum(0, minimum(rows, tensor.shape[0] - rank * rows))


def _rests(setting: Setting) -> tuple[Param, ...]:
    """Each trainable tensor's last piece, where it is smaller than the others; else the piece they all are."""

    def rest(tensor: Tensor) -> Count:
        rows = ceil_div(tensor.shape[0], setting.shards)
        left = tensor.shape[0] % maximum(rows, 1)
        return where(left > 0, left, rows)

    return tuple(handed(setting, tensor, shape=(rest(tensor), *tensor.shape[1:])) for tensor in setting.trainable)


def _padded(tensor: Tensor, setting: Setting) -> Count:
    """Elements of the storage every rank keeps for it."""
    total = ceil_div(tensor.shape[0], setting.shards)
    for size in tensor.shape[1:]:
        total = total * size
    return total


def _rank(setting: Setting, rank: int, multiplicity: Count) -> Layout:
    scheme = setting.scheme

    def shard(tensor: Tensor, dtype: str, role: Role, suffix: str = "") -> Holding:
        return Holding(Buffer(tensor.name + suffix, _padded(tensor, setting) * itemsize(dtype), role), tensor.count)

    resident = [
        *(shard(tensor, setting.dtype(tensor), "parameter") for tensor in setting.model.parameters),
        *buffers_of(setting),
        *(shard(t, m, "master_parameter", " (master)") for t in setting.trainable if (m := setting.master(t)) is not None),
        *scaler_scalars(setting),
    ]
    gathered = scheme.copy
    forward = []
    if setting.stage == 2:
        # reshard_after_forward=False: every group stays gathered from forward to backward
        forward = [
            Holding(Buffer(f"{t.name} (gathered)", t.numel * itemsize(gathered or setting.dtype(t)), "parameter_copy"), t.count)
            for t in setting.model.parameters
        ]
    params = tuple(
        handed(setting, tensor, shape=(_local(tensor, setting, rank), *tensor.shape[1:])) for tensor in setting.trainable
    )
    sizes = [
        (p.name, p.numel, p.count) for p, t in zip(params, setting.trainable, strict=True) if setting.master(t) and not p.idle
    ]
    return Layout(
        resident=tuple(resident),
        forward=tuple(forward),
        backward=(),
        gradients=tuple(_gradients(setting)),
        step=tuple(step_casts(setting, sizes)),
        params=params,
        index=rank,
        multiplicity=multiplicity,
        in_turn=steps_in_turn(setting),
        notes=("parameters gathered for one group at a time, and reductions, are not part of the states",),
        partial=frozenset({"communication", "parameter_copy"}) if setting.stage == 3 else frozenset({"communication"}),
    )


def _gradients(setting: Setting) -> list[Holding]:
    """One reduce-scatter output a group, of which the parameters' gradients are views: a layer each, and the root.

    Raises:
        ScalarOnlyError: numbers are arrays, and which layers form a group cannot be told from them.
    """
    groups: dict[object, tuple[str, Count, Count]] = {}
    for tensor in setting.reached:
        unit = outermost(tensor.name) if tensor.spans else "root"
        outer = tensor.spans[0] if unit.endswith("*") else None
        prefix = unit.removesuffix("*")
        inner = tensor.count if outer is None else tensor.count // maximum(outer.count, 1)
        times: Count = 1 if outer is None else outer.count
        key = (prefix, None if outer is None or outer.indices is None else tuple(outer.indices))
        bytes_ = inner * _padded(tensor, setting) * itemsize(setting.grad_dtype(tensor))
        _, so_far, as_many = groups.get(key, (prefix, 0, times))
        if as_many is not times and (is_array(times) or is_array(as_many)):
            # of many jobs, layers of two kinds in one list do not say which they are
            raise ScalarOnlyError
        groups[key] = (prefix, so_far + bytes_, times)
    return [Holding(Buffer(f"{prefix} reduced gradients", size, "gradient"), times) for prefix, size, times in groups.values()]
