"""A played step as DeepSpeed's ZeRO-1 and -2 and its bf16 optimizer run it: the reduction in backward, and the engine's step.

source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py:step, scaled_global_norm, unscale_and_clip_grads;
runtime/bf16_optimizer.py:step, backward_epilogue; runtime/engine.py:backward, allreduce_gradients. The all-gather of updated
partitions is in place (runtime/utils.py:all_gather_into_tensor_dp_groups), whatever allgather_bucket_size says. Scalars (the
looks for overflow, the clipping factor) are left out: a copy of the tensor they are about stands beside them, before or after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from memcalc.arrays import Count, maximum
from memcalc.engines.analytic.buckets import Placed, Reducer, Reduction
from memcalc.engines.analytic.moments import END, is_moment, written
from memcalc.engines.analytic.tapes import Around, Played
from memcalc.engines.analytic.update import update_events
from memcalc.kernels.reduction import Chip, contiguous
from memcalc.models import Model
from memcalc.parallelism.base import Layout, Setting, engine_args, scalar
from memcalc.parallelism.deepspeed import ARGS, flat_order, padded_elements
from memcalc.parallelism.plain import in_order
from memcalc.plan import Plan
from memcalc.play.adapting import counted
from memcalc.records import replace
from memcalc.tape.events import Alloc, Buffer, Event, Free, within
from memcalc.tensors import itemsize

DOUBLE = 8
"""Bytes of an element of the copy a gradient's norm is taken of (deepspeed runtime/zero/utils.py:get_norm_dtype)."""


def under_zero(
    plan: Plan, model: Model, layout: Layout, around: Around, played: Played, chip: Chip
) -> list[tuple[Around, Played]]:
    """The step of every rank that may be the highest: what stands around it, and forward and backward as the engine has them.

    Raises:
        ScalarOnlyError: ranks or tensors are arrays.
    """
    setting = plan.setting(model)
    found = []
    for reduction in _ranks(setting):
        reducer = Reducer(reduction, played.gradients)
        events = tuple(reducer.rewritten(played.events))
        update = update_events(plan, layout, model, chip)
        early, update = _step(reduction, reducer.left, update, chip)
        found.append((replace(around, clip=(), early=early, update=update), replace(played, events=events, gradients=())))
    return found


def _ranks(setting: Setting) -> list[Reduction]:
    """One for each rank that no other is above at every instant.

    What a rank keeps is made at once, as the first of its gradients is reduced: the last rank's first in stage 2 and under
    overlap_comm, the first rank's else. Of those that keep as much, or less, none but the earliest can be the highest.
    """
    args = engine_args(setting.args, ARGS, "DeepSpeed")
    single = in_order(setting.trainable)
    order = flat_order(len(single), setting, args)
    placed, start = [], 0
    for place in order:
        position, numel = single[place]
        placed.append(Placed(counted(setting.trainable[position].name), start, scalar(numel)))
        start += scalar(numel)
    registered = sorted(range(len(order)), key=order.__getitem__)
    shards, partition = scalar(setting.shards), scalar(padded_elements(setting)) // scalar(setting.shards)
    early_last = setting.stage == 2 or args["overlap_comm"]
    ranks = range(shards - 1, -1, -1) if early_last and not args["round_robin_gradients"] else range(shards)
    kept: Counter[int] = Counter()  # elements that each rank keeps whole
    for each in placed:
        for rank in {rank for rank, _ in each.slices(partition)}:
            kept[rank] += each.numel
    found: list[Reduction] = []
    most = -1
    for rank in ranks:
        if kept[rank] > most or args["round_robin_gradients"]:
            found.append(
                Reduction(
                    stage=setting.stage,
                    rank=rank,
                    partition=partition,
                    dtype=setting.uniform(),
                    bucket=args["reduce_bucket_size"],
                    overlap=args["overlap_comm"],
                    copies=args["reduce_scatter"],
                    placed=placed,
                    order=registered,
                )
            )
        most = max(most, kept[rank])
    return found


def _step(reduction: Reduction, left: Sequence[Buffer], update: Iterable[Event], chip: Chip) -> tuple[list[Event], list[Event]]:
    """(what comes before the optimizer's own step, that step and what follows): norm, flat gradients, update."""
    size, partition = itemsize(reduction.dtype), reduction.partition
    pieces = reduction.pieces()
    early = norm_events(pieces, chip)
    tensors = len(pieces) + bool(reduction.rest())
    flat = Buffer("flattened gradients", partition * size, "temporary")
    single = Buffer("fp32 gradients", partition * 4, "temporary")
    gone = [Free(buffer) for buffer in left]
    own = flat if reduction.dtype == "float32" else single
    if tensors == 1 and reduction.dtype == "float32":  # a view of what was kept, under another name
        return early, [*update, *gone]
    if tensors > 1:
        early.append(Alloc(flat))
    if own is single:
        early.append(Alloc(single))
        early += [Free(flat)] if tensors > 1 else []
    return [*early, *gone], [*update, Free(own)]


def norm_events(pieces: Sequence[int], chip: Chip) -> list[Event]:
    """Each piece's norm is taken of a copy in float64, and kept until all are added up (get_grad_norm_direct)."""
    events: list[Event] = []
    norms: list[Buffer] = []
    for numel in pieces:
        double = Buffer("gradient in float64", numel * DOUBLE, "temporary")
        norms.append(Buffer("its norm", DOUBLE, "temporary"))
        partials, semaphores = contiguous((numel,), None, DOUBLE, chip)
        staged = [Buffer(name, nbytes, "temporary") for name, nbytes in _named(partials, semaphores) if nbytes]
        events += [Alloc(double), Alloc(norms[-1]), *within([(one, 1) for one in staged]), Free(double)]
    stack = Buffer("norms", len(pieces) * DOUBLE, "temporary")
    return [*events, Alloc(stack), Free(stack), *(Free(norm) for norm in norms)]


def _named(partials: Count, semaphores: Count) -> list[tuple[str, Count]]:
    return [("partial results of the norm", partials), ("semaphores of the norm", semaphores)]


def under_bf16(plan: Plan, model: Model, layout: Layout, around: Around, played: Played, chip: Chip) -> tuple[Around, Played]:
    """The step of BF16_Optimizer: every gradient is cast and added to the FP32 buffer after backward, which is then reduced.

    The reduction is in the parameters' dtype, in a copy of the whole buffer (runtime/engine.py:allreduce_bucket,
    communication_data_type).
    """
    setting = plan.setting(model)
    largest: Count = 0
    for tensor in setting.trainable:
        largest = maximum(largest, tensor.numel)
    cast = Buffer("gradient in float32", largest * 4, "temporary")
    copy = Buffer("gradients to reduce", padded_elements(setting) * itemsize(setting.uniform()), "communication")
    batches = sum(is_moment(event, END) for event in played.events)
    ended = 0

    def told(event: Event) -> Sequence[Event]:
        nonlocal ended
        if not is_moment(event, END):
            return (event,)
        ended += 1
        return within([(cast, 1)]) + (within([(copy, 1)]) if ended == batches else [])

    events = tuple(written(played.events, frozenset({END}), told))
    update = update_events(plan, layout, model, chip)
    return replace(around, clip=(), early=(), update=update), replace(played, events=events)
