"""Megatron-LM: contiguous buffers for parameters and main gradients, and the distributed optimizer (its ZeRO-1).

source: Megatron-LM d98e8a64 core/distributed/param_and_grad_buffer.py, core/optimizer/param_layout.py:24-42,
core/optimizer/distrib_optimizer.py. One bucket is assumed (no overlap of the reduction), as its defaults give.
"""

from __future__ import annotations

from math import lcm

from memcalc.errors import InputError
from memcalc.optimizers.base import Param
from memcalc.parallelism import plain
from memcalc.parallelism.base import Holding, Layout, Setting, buffers_of, each, engine_args, scalar, step_casts
from memcalc.tape.events import Buffer
from memcalc.tensors import itemsize

START = 64
"""Elements a parameter's start is aligned to in the buffer (core/optimizer/param_layout.py:24-42)."""
ARGS = {"pad_buckets_for_high_nccl_busbw": False}


def layouts(setting: Setting, ranks: int) -> list[Layout]:
    """The distinct layouts, the fullest first."""
    args = engine_args(setting.args, ARGS, "Megatron-LM")
    if setting.stage > 1:
        raise InputError(
            "parallelism.zero_stage", setting.stage, "is not what Megatron-LM's distributed optimizer does", "use 1"
        )
    if setting.stage == 0:
        return plain.layouts(setting)
    shards = scalar(setting.shards)
    dtype = setting.uniform()
    placed, end = placements(setting)
    multiple = lcm(shards, 128, 65536) if args["pad_buckets_for_high_nccl_busbw"] else lcm(shards, 128)
    padded = -(-end // multiple) * multiple
    local = [(rank, _pieces(placed, rank * padded // shards, (rank + 1) * padded // shards)) for rank in range(shards)]
    ranked = _alike(local)
    return [_rank(setting, dtype, padded, pieces, rank, times * setting.replicas) for rank, times, pieces in ranked]


def placements(setting: Setting) -> tuple[list[tuple[int, int]], int]:
    """((start, elements) of every parameter in the buffer, laid in reverse order, and the buffer's end)."""
    placed: list[tuple[int, int]] = []
    end = 0
    for _, numel in reversed(plain.in_order(setting.trainable)):
        start = -(-end // START) * START
        placed.append((start, scalar(numel)))
        end = start + scalar(numel)
    return placed, end


def _pieces(placed: list[tuple[int, int]], low: int, high: int) -> tuple[int, ...]:
    """Elements of each parameter that fall into one rank's range: one main parameter and its states each."""
    return tuple(piece for start, numel in placed if start < high and (piece := min(high, start + numel) - max(low, start)) > 0)


def _alike(local: list[tuple[int, tuple[int, ...]]]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(first rank, how many alike, pieces), the fullest first; order within a rank moves no byte."""
    seen: dict[tuple[int, ...], tuple[int, int]] = {}
    for rank, pieces in local:
        key = tuple(sorted(pieces))
        first, times = seen.get(key, (rank, 0))
        seen[key] = (first, times + 1)
    return sorted(((first, times, key) for key, (first, times) in seen.items()), key=lambda row: -sum(row[2]))


def _rank(setting: Setting, dtype: str, padded: int, pieces: tuple[int, ...], rank: int, times: object) -> Layout:
    scheme = setting.scheme
    main = scheme.main_gradient or setting.grad_dtype(setting.trainable[0])
    counts: dict[int, int] = {}
    for piece in pieces:
        counts[piece] = counts.get(piece, 0) + 1
    masters = [
        Holding(Buffer("main parameter shard", piece * itemsize(scheme.master), "master_parameter"), count)
        for piece, count in counts.items()
        if scheme.master and scheme.master != dtype
    ]
    updated = scheme.master or dtype
    return Layout(
        resident=(
            *each(setting.frozen, setting.dtype, "parameter"),
            *buffers_of(setting),
            Holding(Buffer("param_data", padded * itemsize(dtype), "parameter")),
            Holding(Buffer("grad_data", padded * itemsize(main), "gradient")),
            *masters,
        ),
        forward=(),
        backward=(),
        gradients=(),
        step=tuple(step_casts(setting, [("shard", piece, count) for piece, count in counts.items()])),
        params=tuple(
            Param((piece,), updated, scheme.master or main, "shard", "other", count) for piece, count in counts.items()
        ),
        index=rank,
        multiplicity=times,  # type: ignore[arg-type]
    )
