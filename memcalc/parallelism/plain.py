"""Every rank holds everything: one GPU, or plain data parallelism under torch's DDP, DeepSpeed's stage 0 or Megatron-LM's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from memcalc.arrays import Condition, Count, is_array, moved_up, where
from memcalc.parallelism.base import (
    Holding,
    Layout,
    ScalarOnlyError,
    Setting,
    autocast_copies,
    buffers_of,
    each,
    engine_args,
    handed,
    scalar,
    scaler_scalars,
    step_casts,
    steps_in_turn,
)  # fmt: skip
from memcalc.records import replace
from memcalc.tape.events import Buffer
from memcalc.tensors import Tensor, itemsize

FIRST_BUCKET = 2**20
"""Bytes after which DDP closes its first bucket (pytorch torch/csrc/distributed/c10d/reducer.hpp:kDefaultFirstBucketBytes)."""
DDP_ARGS = {"bucket_cap_mb": 25, "gradient_as_bucket_view": False}
"""pytorch torch/nn/parallel/distributed.py:DistributedDataParallel.__init__."""

UNUSED = "DistributedDataParallel is told find_unused_parameters=True, without which its second step fails"
"""Said where a parameter gets no gradient (pytorch torch/csrc/distributed/c10d/reducer.cpp:ensure_prior_reduction_finished)."""


def layouts(setting: Setting) -> list[Layout]:
    """The one layout all ranks share."""
    scheme = setting.scheme
    resident = [
        *each(setting.model.parameters, setting.dtype, "parameter"),
        *buffers_of(setting),
        *each(setting.trainable, setting.master, "master_parameter", " (master)"),
        *scaler_scalars(setting),
    ]
    gradients = [] if scheme.gradient_lives == "layer" else each(setting.reached, setting.grad_dtype, "gradient", ".grad")
    always = scheme.main_gradient_lives == "always"  # a buffer of them is made for all that might come
    main = main_gradients(setting, setting.trainable if always else setting.reached)
    if always:
        resident += main
    else:
        gradients += main
    return [
        Layout(
            resident=tuple(resident),
            forward=tuple(autocast_copies(setting)),
            backward=(),
            gradients=tuple(gradients),
            step=tuple(step_casts(setting, [(t.name, t.numel, t.count) for t in setting.reached if setting.master(t)])),
            params=tuple(handed(setting, tensor) for tensor in setting.trainable),
            multiplicity=setting.shards * setting.replicas,
            in_turn=steps_in_turn(setting),
        )
    ]


def main_gradients(setting: Setting, tensors: Iterable[Tensor]) -> list[Holding]:
    """The second set of gradients, of what has a master alone; nothing under a scheme that has none."""
    return each(
        tensors, lambda tensor: setting.scheme.main_gradient if setting.master(tensor) else None, "gradient", ".main_grad"
    )


def ddp(setting: Setting) -> list[Layout]:
    """Under torch's DistributedDataParallel: the same, and buckets as large as the gradients, made in its constructor.

    source: pytorch 2.13 torch/csrc/distributed/c10d/reducer.cpp:Reducer::initialize_buckets
    """
    args = engine_args(setting.args, DDP_ARGS, "torch's DistributedDataParallel")
    (layout,) = layouts(setting)
    held = [
        Holding(Buffer("DDP bucket", size, "communication")) for size in ddp_buckets(setting, args["bucket_cap_mb"] * 2**20)
    ]
    gradients = layout.gradients
    if args["gradient_as_bucket_view"]:
        # p.grad is then a view of its bucket and holds no memory of its own; a master's gradient does
        gradients = tuple(main_gradients(setting, setting.reached)) if setting.scheme.unscales_to_masters else ()
    notes = layout.notes if setting.reached == setting.trainable else (*layout.notes, UNUSED)
    return [replace(layout, resident=(*layout.resident, *held), gradients=gradients, notes=notes)]


def ddp_buckets(setting: Setting, cap: int) -> list[Count]:
    """Bytes of each bucket: gradients in the reverse of their order, closed once a bucket reaches its limit.

    source: pytorch 2.13 torch/csrc/distributed/c10d/reducer.cpp:compute_bucket_assignment_by_size (one list a dtype)
    """
    totals: list[Count] = []
    for dtype in sorted({setting.grad_dtype(tensor) for tensor in setting.trainable}):
        mine = [tensor for tensor in setting.trainable if setting.grad_dtype(tensor) == dtype]
        totals += _closed(mine, itemsize(dtype), cap)
    return totals


def in_order(tensors: Sequence[Tensor]) -> list[tuple[int, Count]]:
    """(position in ``tensors``, elements) of every single tensor in the order of registration: layer by layer, not by kind.

    Raises:
        ScalarOnlyError: how many there are is an array, so that there is no one list.
    """
    if any(is_array(tensor.count) for tensor in tensors):
        raise ScalarOnlyError
    single: list[tuple[tuple[int, int], int]] = []
    stacks: dict[str, int] = {}
    for position, tensor in enumerate(tensors):
        # a stack stands where its first tensor stood
        first = stacks.setdefault(tensor.name.split("*")[0] if tensor.spans else tensor.name, position)
        outer = tensor.spans[0].labels() if tensor.spans and tensor.count else [0] * bool(tensor.count)
        inner = scalar(tensor.count) // max(len(outer), 1)
        single += [((first, index), position) for index in outer for _ in range(inner)]
    return [(position, tensors[position].numel) for _, position in sorted(single)]


def closed(sizes: Iterable[Count], full: Callable[[Count, Condition], Condition]) -> list[Count]:
    """Sizes gathered in order into groups, each closed once it is full; over arrays, jobs with fewer groups end in zeros.

    ``full(filled, later)`` says whether a group is full; ``later`` holds once one has been closed before.

    >>> closed([3, 4, 5, 1], lambda filled, later: filled >= 6)
    [7, 6]
    """
    groups: list[Count] = []
    filled: Count = 0
    later: Condition = False
    for size in sizes:
        filled = filled + size
        done = full(filled, later)
        groups.append(where(done, filled, 0))
        filled = where(done, 0, filled)
        later = later | done
    return moved_up([*groups, filled])


def _closed(tensors: Sequence[Tensor], size: int, cap: int) -> list[Count]:
    sizes = (numel * size for _, numel in reversed(in_order(tensors)))
    return closed(sizes, lambda filled, later: filled >= where(later, cap, min(FIRST_BUCKET, cap)))
