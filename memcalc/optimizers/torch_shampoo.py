"""Meta's distributed Shampoo (github.com/facebookresearch/optimizers, project torch-shampoo 1.0.0 at commit f606606).

A tensor's neighbouring axes are joined while they stay within ``max_preconditioner_dim``, then cut into blocks of that size
along every axis; each block keeps for each of its axes a factor and what the step needs of its inverse. Symmetric matrices are
packed: d(d+1)/2 elements. Counted on one device, where every block is kept, and for one parameter group.

The configuration objects are asked for by the names of their classes; ``target_parameter_dimensionality`` belongs to
``distributed_config`` and ``use_symmetric_packing`` to ``preconditioner_config``. Factors keep their default dtype, float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product as cartesian
from typing import Any

from memcalc.arrays import Condition, Count, as_count, both, ceil_div, not_, product, where
from memcalc.optimizers._parts import scalar, words
from memcalc.optimizers.base import Options, Param, State, optimizer

ROOT_INVERSE = ("RootInvShampooPreconditionerConfig", "RootInvKLShampooPreconditionerConfig")
EIGENDECOMPOSED = ("EigendecomposedShampooPreconditionerConfig", "EigendecomposedKLShampooPreconditionerConfig")
CORRECTED = ("EigenvalueCorrectedShampooPreconditionerConfig",)
STATELESS = ("SignDescentPreconditionerConfig",)
GRAFTING = ("AdaGradPreconditionerConfig", "RMSpropPreconditionerConfig", "AdamPreconditionerConfig")
PRIMAL = ("GeneralizedPrimalAveragingConfig", "ScheduleFreeConfig")
AVERAGING = ("ClassicMomentumConfig", *PRIMAL)
CHOICES: dict[str, tuple[str | None, ...]] = {
    "preconditioner_config": (*ROOT_INVERSE, *EIGENDECOMPOSED, *CORRECTED, *STATELESS),
    "grafting_config": (None, "SGDPreconditionerConfig", *GRAFTING),
    "iterate_averaging_config": (None, *AVERAGING),
}
OWN: dict[str, Any] = {"target_parameter_dimensionality": 1, "use_symmetric_packing": True}
CONSTRUCTOR = (
    "lr beta3 epsilon weight_decay weight_decay_type precondition_frequency start_preconditioning_step use_bias_correction "
    "use_pin_memory shampoo_pt2_compile_config shampoo_runtime_config concurrency_config"
)
Axis = tuple[Count, Condition]
"""An axis of a merged tensor: its length, and whether it is there."""


def refuse(options: Options) -> Iterator[tuple[str, str]]:
    """Names of configurations that are not the library's, or whose states are not counted here."""
    for key, known in CHOICES.items():
        if options[key] not in known:
            yield key, f"is not one of {', '.join(name for name in known if name)}"


def merged(shape: Sequence[Count], limit: int, target: int) -> list[Axis]:
    """The axes after joining, from the last to the first, as long as more than ``target`` would be left.

    Axes of 1 are dropped first (utils/shampoo_utils.py:87-121, merge_small_dims).

    >>> [length for length, there in merged((32, 3, 64, 64), 8192, 1) if there]
    [4096, 96]
    """
    found: list[Axis] = []
    left: Count = 0
    for length in shape:
        left = left + as_count(length != 1)
    current: Count = 1
    closed: Count = 0
    started: Condition = False
    for length in reversed(shape):
        counts = length != 1
        left = left - as_count(counts)
        joins = both(closed + 2 + left > target, current * length <= limit)
        closes = both(both(counts, started), not_(joins))
        found.append((current, closes))
        closed = closed + as_count(closes)
        # before the first axis that counts, current is 1: that axis is then joined to nothing
        current = where(counts, where(closes, length, current * length), current)
        started = as_count(started) + as_count(counts) > 0
    return [*found[1:], (current, True)]  # nothing is closed at the first


def cuts(axis: Axis, limit: int) -> Iterator[tuple[Count, Count]]:
    """(length, how many) of an axis's whole pieces and of its ragged one; an absent axis is one piece of length 1."""
    length, there = axis
    yield where(there, limit, 1), where(there, length // limit, 1)
    yield length % limit, as_count(both(there, length % limit > 0))


def blocks(p: Param, o: Options) -> Iterator[State]:
    """The filtered gradient, the grafting and the averaging buffer: a tensor of each block's shape in the parameter's dtype."""
    kept = []
    if o.betas[0] > 0:
        kept.append(("filtered_grad", "momentum", p.dtype))
    if o.grafting_config in GRAFTING:
        kept.append(("adagrad", "variance", p.dtype))
    if o.iterate_averaging_config in AVERAGING:
        primal = o.iterate_averaging_config in PRIMAL
        kept.append(("weight_buffer", "average", p.dtype) if primal else ("momentum_buffer", "momentum", p.dtype))
    if o.preconditioner_config in CORRECTED:
        kept.append(("shampoo.corrected_eigenvalues", "variance", "float32"))
    limit = o.max_preconditioner_dim
    axes = merged(p.shape, limit, o.target_parameter_dimensionality)
    for pieces in cartesian(*(tuple(cuts(axis, limit)) for axis in axes)):
        numel, count = product(length for length, _ in pieces), product(many for _, many in pieces)
        for name, part, dtype in kept:
            yield State(name, part, dtype, numel, count=count)


def matrices(o: Options) -> tuple[str, ...]:
    """What is kept beside a factor: its inverse root, or its eigenvectors and perhaps their eigenvalues."""
    if o.preconditioner_config in STATELESS:
        return ()
    if o.preconditioner_config in ROOT_INVERSE:
        return ("factor_matrices", "inv_factor_matrices")
    if o.preconditioner_config in EIGENDECOMPOSED:
        return ("factor_matrices", "factor_matrices_eigenvectors", "factor_matrices_eigenvalues")
    return ("factor_matrices", "factor_matrices_eigenvectors")


def factors(p: Param, o: Options) -> Iterator[State]:
    """One set of matrices for each axis of each block (preconditioner/shampoo_preconditioner_list.py, the from_block's)."""
    limit = o.max_preconditioner_dim
    axes = merged(p.shape, limit, o.target_parameter_dimensionality)
    for index, axis in enumerate(axes):
        others = product(where(there, ceil_div(length, limit), 1) for length, there in (*axes[:index], *axes[index + 1 :]))
        for length, many in cuts(axis, limit):
            square, packed = length * length, length * (length + 1) // 2
            symmetric = packed if o.use_symmetric_packing else square
            sizes = {"factor_matrices_eigenvectors": square, "factor_matrices_eigenvalues": length}
            count = many * others * as_count(axis[1])
            for name in matrices(o):
                yield State(f"shampoo.{name}", "preconditioner", "float32", sizes.get(name, symmetric), count=count)


def _group(params: Sequence[Param], o: Options) -> Iterator[State]:
    """A group's counter, its rate on both sides, two coefficients, and the bias corrections of its preconditioners."""
    yield scalar("step", "step", "int64", "host")
    yield scalar("lr_cpu_pinned", "step", "float32", "host")
    for name in ("lr_tensor", "train_interp_coeff", "eval_interp_coeff"):
        yield scalar(name, "step", "float32")
    if o.preconditioner_config not in STATELESS:
        yield scalar("shampoo.bias_correction2", "step", "float32", "host")
    if o.grafting_config in GRAFTING:
        yield scalar("grafting.bias_correction2", "step", "float32", "host")
    if o.iterate_averaging_config in PRIMAL:
        yield scalar("lr_sum", "step", "float32")
        yield scalar("train_mode", "step", "bool", "host")


@optimizer(
    "torch-shampoo:DistributedShampoo",
    cls="distributed_shampoo.DistributedShampoo",
    summary="blocks of 1024: packed fp32 factors and inverse roots for each axis, a vector's too, and a filtered gradient",
    source="facebookresearch/optimizers f606606 (torch-shampoo 1.0.0) distributed_shampoo/distributed_shampoo.py:659-975, "
    "distributor/shampoo_distributor.py:174-225, preconditioner/shampoo_preconditioner_list.py",
    options={
        "betas": (0.9, 1.0),
        "max_preconditioner_dim": 1024,
        "preconditioner_config": ROOT_INVERSE[0],
        "grafting_config": None,
        "iterate_averaging_config": None,
        **OWN,
    },
    own=frozenset(OWN),
    constructor=words(CONSTRUCTOR),
    ignored={"distributed_config"},
    born="init",
    shared=_group,
    temporaries=None,
    refuses=refuse,
)
def distributed_shampoo(p: Param, o: Options) -> Iterator[State]:
    """Everything is made in the constructor."""
    yield from factors(p, o)
    yield from blocks(p, o)
