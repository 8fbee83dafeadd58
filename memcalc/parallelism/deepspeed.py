"""DeepSpeed: stage 0's flat wrappers, ZeRO-1, -2 and -3, and the bf16 optimizer with an fp32 accumulation buffer.

source: deepspeed 0.19.8, read and run on CPU under gloo; one parameter group is assumed, as DeepSpeed builds by default.
"""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import Condition, Count, as_count, ceil_div, maximum, round_up
from memcalc.errors import InputError
from memcalc.optimizers.base import Param
from memcalc.parallelism import plain
from memcalc.parallelism.base import (
    Holding,
    Layout,
    Setting,
    autocast_copies,
    buffers_of,
    each,
    engine_args,
    scalar,
)  # fmt: skip
from memcalc.parallelism.cuts import most_touched, touched
from memcalc.records import replace
from memcalc.tape.events import Buffer
from memcalc.tensors import itemsize

ALIGNMENT = 2
"""Elements a rank that flat buffers are padded to (deepspeed runtime/zero/stage_1_and_2.py:387 nccl_start_alignment_factor)."""
ARGS = {
    "reduce_bucket_size": 500_000_000,
    "overlap_comm": False,
    "reduce_scatter": True,
    "round_robin_gradients": False,
    "allgather_bucket_size": 500_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "sub_group_size": 1_000_000_000,
}
"""deepspeed runtime/zero/config.py:113-245. overlap_comm is on by default in stage 3 alone, where it makes no second bucket.
allgather_bucket_size changes nothing: the all-gather is in place (runtime/utils.py:all_gather_into_tensor_dp_groups)."""
FLAT_STEP = ("deepspeed:", "apex:")
"""Libraries whose fused optimizers stage 0 wraps in FP16_Optimizer (deepspeed runtime/engine.py:_configure_fp16_optimizer)."""


def layouts(setting: Setting, ranks: int) -> list[Layout]:
    """The layout of every rank; all are alike, for the flat buffers are padded to split evenly."""
    args = engine_args(setting.args, ARGS, "DeepSpeed")
    if setting.scheme.copy is not None:
        raise InputError(
            "training.precision",
            setting.scheme.name,
            "is not modelled under DeepSpeed",
            "use fp16, bf16, fp32 or zero_backend torch",
        )
    if setting.scheme.name == "deepspeed-bf16":
        if setting.stage > 1:
            raise InputError(
                "parallelism.zero_stage", setting.stage, "is above what BF16_Optimizer offers", "use 0 or 1, or precision bf16"
            )
        return [_bf16_optimizer(setting)]
    if setting.stage == 0:
        return [_stage_0(setting, args, ranks)]
    return [_stage_3(setting, args)] if setting.stage == 3 else _stages_1_and_2(setting, args)


def elements(setting: Setting) -> Count:
    """Elements of all trainable parameters."""
    return sum((tensor.elements for tensor in setting.trainable), 0)


def padded_elements(setting: Setting) -> Count:
    """The same, padded so that it splits evenly."""
    return round_up(elements(setting), ALIGNMENT * setting.shards)


def flat_order(count: int, setting: Setting, args: dict[str, int]) -> list[int]:
    """Positions of ``count`` parameters, in order of registration, as they lie in ZeRO-1's and -2's flat buffer.

    source: deepspeed runtime/zero/stage_1_and_2.py:_round_robin_reorder

    Raises:
        ScalarOnlyError: parameters are dealt out to a number of ranks that is an array.
    """
    if not args["round_robin_gradients"]:
        return list(range(count))
    ranks = scalar(setting.shards)
    return [place for rank in range(ranks) for place in range(rank, count, ranks)]


def _flat(name: str, numel: Count, dtype: str, role: str) -> Holding:
    return Holding(Buffer(name, numel * itemsize(dtype), role))  # type: ignore[arg-type]


def _unsharded(setting: Setting) -> list[Holding]:
    return [*each(setting.frozen, setting.dtype, "parameter"), *buffers_of(setting)]


def _stage_0(setting: Setting, args: dict[str, int], ranks: int) -> Layout:
    """Plain data parallelism; gradients are flattened for the all-reduce, up to a bucket at a time.

    source: deepspeed runtime/engine.py:allreduce_bucket; runtime/fp16/fused_optimizer.py:FP16_Optimizer
    """
    (layout,) = plain.layouts(setting)
    layout = replace(layout, backward=tuple(_reduced(setting, args) if ranks > 1 else ()))
    if setting.scheme.step != "flat":
        return layout
    dtype, total = setting.uniform(), elements(setting)
    cast = each(setting.trainable, lambda _: "float32", "temporary", " (gradient cast)")
    if not setting.optimizer.name.startswith(FLAT_STEP):
        # FP16_UnfusedOptimizer: masters and casts tensor by tensor, no flat buffer
        return replace(layout, step=tuple(cast))
    return Layout(
        resident=(
            *_unsharded(setting),
            _flat("fp16_groups_flat", total, dtype, "parameter"),
            _flat("fp32_groups_flat", total, "float32", "master_parameter"),
        ),
        forward=(),
        backward=layout.backward,
        gradients=layout.gradients,
        cast=tuple(cast),
        step=(_flat("flattened fp32 gradients", total, "float32", "temporary"),),
        early=True,
        params=(_flat_param(total),),
        multiplicity=layout.multiplicity,
    )


def _reduced(setting: Setting, args: dict[str, int]) -> list[Holding]:
    """The flattened bucket an all-reduce works on, at its largest: gradients in order, closed once over the bucket size.

    source: deepspeed runtime/engine.py:allreduce_no_retain, allreduce_bucket
    """
    limit = args["reduce_bucket_size"]
    size = itemsize(setting.uniform())
    largest = elements(setting)
    if _any(largest > limit):
        sizes = plain.closed((numel for _, numel in plain.in_order(setting.trainable)), lambda filled, _: filled > limit)
        largest = largest_of(sizes)
    return [Holding(Buffer("all-reduce bucket", largest * size, "communication"))]


def _flat_param(numel: Count, count: Count = 1) -> Param:
    return Param((numel,), "float32", "float32", "flat partition", "other", count)


def largest_of(sizes: Iterable[Count]) -> Count:
    """The largest size, element by element."""
    largest: Count = 0
    for size in sizes:
        largest = maximum(largest, size)
    return largest


def _stages_1_and_2(setting: Setting, args: dict[str, int]) -> list[Layout]:
    """Flat parameters whole, masters and states by partition, gradients given up but for those the partition touches.

    source: deepspeed runtime/zero/stage_1_and_2.py:387,441,924,3266
    """
    padded = padded_elements(setting)
    partition = padded // setting.shards
    return [
        _partitioned(setting, args, padded, kept, rank, times * setting.replicas)
        for kept, rank, times in _kept_gradients(setting, args, partition)
    ]


def _kept_gradients(setting: Setting, args: dict[str, int], partition: Count) -> list[tuple[Count, int, Count]]:
    """(elements of gradients kept, first rank, how many such ranks): every tensor the partition touches, whole.

    Of many jobs at once only the fullest rank's are told.

    Raises:
        ScalarOnlyError: the jobs' models differ, and with them where the cuts fall.

    source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py:get_partition_info, copy_grads_in_partition (grads_in_partition)
    """
    if not setting.model.shapes_known:
        return [(partition, 0, setting.shards)]
    sizes = [scalar(numel) for _, numel in plain.in_order(setting.trainable)]
    sizes = [sizes[place] for place in flat_order(len(sizes), setting, args)]
    if isinstance(partition, int) and isinstance(setting.shards, int):
        return [*touched(sizes, partition, setting.shards)]
    assert not isinstance(partition, int), "a partition is an array where the ranks are"
    return [(most_touched(sizes, partition), 0, setting.shards)]


def _partitioned(setting: Setting, args: dict[str, int], padded: Count, kept: Count, rank: int, times: Count) -> Layout:
    dtype = setting.uniform()
    partition = padded // setting.shards
    buckets = 2 if args["overlap_comm"] else 1
    # under overlap_comm each goes into a bucket as it comes, with the last micro-batch
    whole = setting.stage == 1 and not args["overlap_comm"]
    grads = each(setting.reached, setting.grad_dtype, "gradient", ".grad") if whole else []
    return Layout(
        resident=(
            *_unsharded(setting),
            _flat("bit16_groups_flat", padded, dtype, "parameter"),
            _flat("single_partition_of_fp32_groups", partition, "float32", "master_parameter"),
        ),
        forward=tuple(autocast_copies(setting)),
        backward=(*grads, Holding(_bucket(args, dtype), buckets)),
        gradients=(_flat("grads_in_partition", kept, dtype, "gradient"),),
        # FP32 gradients are flattened and need no cast
        cast=() if dtype == "float32" else (_flat("flattened gradients", partition, dtype, "temporary"),),
        step=(_flat("fp32 gradients", partition, "float32", "temporary"),),
        early=True,
        params=(_flat_param(partition),),
        index=rank,
        multiplicity=times,
    )


def _bucket(args: dict[str, int], dtype: str) -> Buffer:
    return Buffer("ipg bucket", args["reduce_bucket_size"] * itemsize(dtype), "communication")


def _stage_3(setting: Setting, args: dict[str, int]) -> Layout:
    """Everything by partition, each parameter padded alone; the reduce bucket and the small parameters stay for good.

    source: deepspeed runtime/zero/stage3.py:778-800, runtime/zero/partition_parameters.py:_partition_param
    """
    dtype = setting.uniform()
    pieces = [(tensor, ceil_div(tensor.numel, setting.shards)) for tensor in setting.trainable]
    partition = sum((piece * tensor.count for tensor, piece in pieces), 0)
    threshold = args["stage3_param_persistence_threshold"]
    kept = [
        Holding(
            Buffer(f"{tensor.name} (persistent)", tensor.numel * itemsize(dtype), "parameter_copy"),
            tensor.count * as_count(tensor.numel <= threshold),
        )
        for tensor in setting.trainable
    ]
    groups = _sub_groups(setting, partition, args["sub_group_size"])
    largest = largest_of(groups)
    return Layout(
        resident=(
            *_unsharded(setting),
            _flat("fp16_partitioned_groups_flat", partition, dtype, "parameter"),
            _flat("fp32_partitioned_groups_flat", partition, "float32", "master_parameter"),
            _flat("grad_partitions_flat_buffer", partition, dtype, "gradient"),
            Holding(_bucket(args, dtype)),
            *kept,
        ),
        forward=(),
        backward=(),
        gradients=(),
        cast=(_flat("flattened gradients", largest, dtype, "temporary"),),
        step=(_flat("fp32 gradients", largest, "float32", "temporary"),),
        in_turn=True,
        params=tuple(_flat_param(group, as_count(group > 0)) for group in groups),
        multiplicity=setting.shards * setting.replicas,
        notes=("parameters gathered for a layer's use (up to max_live_parameters) are not part of the states",),
        partial=frozenset({"parameter_copy"}),
    )


def _sub_groups(setting: Setting, partition: Count, limit: int) -> list[Count]:
    """Elements of each sub-group the step goes through: parameters in order, closed once ``limit`` is reached.

    source: deepspeed runtime/zero/stage3.py:_create_fp16_sub_groups
    """
    if not _any(partition > limit):
        return [partition]
    pieces = (ceil_div(numel, setting.shards) for _, numel in plain.in_order(setting.trainable))
    return plain.closed(pieces, lambda filled, _: filled >= limit)


def _any(condition: Condition) -> bool:
    return condition if isinstance(condition, bool) else bool(condition.any())


def _bf16_optimizer(setting: Setting) -> Layout:
    """BF16 gradients, an fp32 accumulation buffer that is whole on every rank, masters and states by partition.

    source: deepspeed runtime/bf16_optimizer.py:140-235
    """
    dtype = setting.uniform()
    padded = padded_elements(setting)
    partition = padded // setting.shards
    return Layout(
        resident=(
            *_unsharded(setting),
            _flat("bf16_groups_flat", padded, dtype, "parameter"),
            _flat("fp32_groups_gradients_flat", padded, "float32", "gradient"),
            _flat("fp32_groups_flat_partition", partition, "float32", "master_parameter"),
        ),
        forward=(),
        backward=(),
        gradients=tuple(each(setting.reached, setting.grad_dtype, "gradient", ".grad")),
        step=(),
        params=(_flat_param(partition),),
        multiplicity=setting.shards * setting.replicas,
    )
