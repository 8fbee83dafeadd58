"""torch.distributed.optim.ZeroRedundancyOptimizer under DDP: whole tensors dealt to ranks, the largest first; uneven.

source: pytorch 2.13 torch/distributed/optim/zero_redundancy_optimizer.py:_partition_parameters
"""

from __future__ import annotations

import heapq

from memcalc.errors import InputError
from memcalc.optimizers.base import Param
from memcalc.parallelism import plain
from memcalc.parallelism.base import Holding, Layout, Setting, handed, scalar, step_casts
from memcalc.records import replace
from memcalc.tape.events import Buffer
from memcalc.tensors import Tensor, itemsize


def layouts(setting: Setting, ranks: int) -> list[Layout]:
    """The distinct layouts, the fullest first."""
    if setting.stage > 1:
        raise InputError(
            "parallelism.zero_stage",
            setting.stage,
            "is more than torch's ZeroRedundancyOptimizer does",
            "use 1, or zero_backend fsdp2",
        )
    (whole,) = plain.ddp(setting)
    resident = tuple(held for held in whole.resident if held.buffer.role != "master_parameter")
    dealt = deal(setting)
    seen: dict[tuple[tuple[int, int], ...], tuple[int, int]] = {}
    for rank, mine in enumerate(dealt):
        first, times = seen.get(mine, (rank, 0))
        seen[mine] = (first, times + 1)
    alike = sorted(seen.items(), key=lambda row: -_elements(setting, row[0]))
    return [
        replace(_rank(setting, whole, resident, mine), index=first, multiplicity=times * setting.replicas)
        for mine, (first, times) in alike
    ]


def deal(setting: Setting) -> list[tuple[tuple[int, int], ...]]:
    """For each rank, (position of a tensor among the trainable ones, how many of it).

    Largest first, each to the rank with fewest elements so far; the lowest rank wins a tie, as ``index(min(...))`` does.
    """
    ranks = scalar(setting.shards)
    singles = [(at, scalar(numel)) for at, numel in plain.in_order(setting.trainable)]
    order = sorted(singles, key=lambda single: -single[1])
    heap = [(0, rank) for rank in range(ranks)]
    mine: list[dict[int, int]] = [{} for _ in range(ranks)]
    for at, numel in order:
        load, rank = heapq.heappop(heap)
        mine[rank][at] = mine[rank].get(at, 0) + 1
        heapq.heappush(heap, (load + numel, rank))
    return [tuple(sorted(share.items())) for share in mine]


def _elements(setting: Setting, mine: tuple[tuple[int, int], ...]) -> int:
    return sum(scalar(setting.trainable[at].numel) * times for at, times in mine)


def _rank(setting: Setting, whole: Layout, resident: tuple[Holding, ...], mine: tuple[tuple[int, int], ...]) -> Layout:
    tensors: list[tuple[Tensor, int]] = [(setting.trainable[at], times) for at, times in mine]
    masters = tuple(
        Holding(Buffer(f"{tensor.name} (master)", tensor.numel * itemsize(master), "master_parameter"), times)
        for tensor, times in tensors
        if (master := setting.master(tensor)) is not None
    )
    params: tuple[Param, ...] = tuple(handed(setting, tensor, count=times) for tensor, times in tensors)
    casts = step_casts(setting, [(p.name, p.numel, p.count) for p in params if not p.idle])
    return replace(whole, resident=(*resident, *masters), params=params, step=tuple(casts))
