"""The ranks that a job asks for: how many shard, how many replicate, and which kinds of parallelism are refused."""

from __future__ import annotations

from memcalc.arrays import Condition, Count, maximum, where
from memcalc.errors import InputError, NotModelledError
from memcalc.job import Parallelism


def refuse_unmodelled(parallelism: Parallelism) -> None:
    """Refuse kinds of parallelism that no engine here lays out.

    Raises:
        NotModelledError: more than one tensor, pipeline, context or expert rank.
    """
    names = {"tp": "tensor", "pp": "pipeline", "cp": "context", "ep": "expert"}
    for key, word in names.items():
        if (ranks := getattr(parallelism, key)) > 1:
            raise NotModelledError(
                f"parallelism.{key}", ranks, f"asks for {word} parallelism, which is not modelled yet", "use 1"
            )


def mesh(parallelism: Parallelism) -> tuple[int, int]:
    """(shards, replicas) from ``dp`` or from ``dp_shard`` and ``dp_replicate``.

    Raises:
        InputError: they contradict each other, or shard nothing.
    """
    dp, shard, replicate = parallelism.dp or 0, parallelism.dp_shard or 0, parallelism.dp_replicate or 0
    shards, replicas, contradicted, idle = spread(dp, shard, replicate, parallelism.zero_stage)
    if contradicted:
        raise InputError("parallelism.dp", dp, f"is not dp_shard × dp_replicate = {shards * replicas}", "leave dp out")
    if idle:
        raise InputError("parallelism.dp_shard", shard, "shards nothing under zero_stage 0", "set zero_stage to 1, 2 or 3")
    return int(shards), int(replicas)


def spread(dp: Count, shard: Count, replicate: Count, stage: int) -> tuple[Count, Count, Condition, Condition]:
    """(shards, replicas, whether ``dp`` contradicts them, whether they shard nothing); 0 stands for what is not given.

    >>> spread(8, 0, 0, 1), spread(8, 0, 0, 0), spread(8, 2, 2, 1)
    ((8, 1, False, False), (1, 8, False, False), (2, 2, True, False))
    """
    apart = (shard > 0) | (replicate > 0)
    ranks, sharded = maximum(dp, 1), stage > 0
    shards = where(apart, maximum(shard, 1), ranks if sharded else 1)
    replicas = where(apart, maximum(replicate, 1), 1 if sharded else ranks)
    contradicted = apart & (dp > 0) & (dp != shards * replicas)
    return shards, replicas, contradicted, (shard > 1) & (not sharded)
