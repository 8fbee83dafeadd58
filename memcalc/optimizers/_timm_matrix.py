"""timm 1.0.31, continued: Muon, which chooses its matrices by shape, and Kron, with a factor for each dimension."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Condition, Count, as_count, both, minimum, not_, product, where
from memcalc.optimizers._parts import whole, words
from memcalc.optimizers.base import Implementation, Options, Param, Place, State, Temporary, optimizer
from memcalc.optimizers.timm import register
from memcalc.records import replace
from memcalc.tensors import ITEMSIZE

SMALLEST_SIDE = 4
LARGEST_RATIO = 128


def takes_muon(p: Param) -> Condition:
    """Whether a tensor goes to Muon, as (out, the rest), or to AdamW (timm/optim/muon.py:265-334, _is_suitable_for_muon)."""
    if p.ndim < 2:
        return False
    sides: Count = 0
    for side in p.shape:
        sides = sides + as_count(side > 1)
    tall, wide = p.shape[0], product(p.shape[1:])
    short, long = minimum(tall, wide), tall + wide - minimum(tall, wide)
    shaped = both(both(sides >= 2, p.shape[0] != 1), p.shape[1] != 1)
    return both(shaped, both(short >= SMALLEST_SIDE, long <= LARGEST_RATIO * short))


def _muon_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """A clone of the momentum; in bfloat16, X and its successor beside two squares of the shorter side.

    Convolutions are flattened to (out, the rest), or a batch of (out, in) with ``conv_mode="batched"``. AdamW's fallback runs
    over its own list.
    """
    does, bf16 = as_count(takes_muon(p)), ITEMSIZE["bfloat16"]
    batched = o.conv_mode == "batched" and p.ndim > 2
    rest = p.shape[1] if batched else product(p.shape[1:])
    side = minimum(p.shape[0], rest) if p.ndim >= 2 else 0
    batch = product(p.shape[2:]) if batched else 1
    yield Temporary("momentum", p.nbytes * does, "max", moment="muon")
    yield Temporary("X", p.numel * bf16 * does, "max", count=2, moment="muon")
    yield Temporary("A", batch * side * side * bf16 * does, "max", count=2, moment="muon")
    yield Temporary("update", p.numel * bf16 * does, "previous", moment="muon")
    current = 3 if o.nesterov else 2
    yield Temporary("denominator", p.nbytes * (1 - does), "max", count=current, moment="adamw")
    yield Temporary("denominator", p.nbytes * (1 - does), "previous", moment="adamw")


_MUON = {"algo": "muon", "nesterov": False, "capturable": False, "conv_mode": "flatten"}
_MUON_REST = (
    "lr weight_decay momentum ns_steps ns_coefficients eps safety_factor adjust_lr_fn normalize_spatial adamw_lr "
    "fallback_lr_scale betas scale_eps verbose"
)
_MUON_SUMMARY = "one momentum where the shape suits Muon, AdamW's two moments and a step elsewhere"


def _refuse_adamuon(options: Options) -> Iterator[tuple[str, str]]:
    if options.algo != "muon":
        yield "algo", "is not muon; name the variant timm:Muon+adamuon"


@register("Muon", "muon.py", _MUON_SUMMARY, _MUON, _MUON_REST, _muon_steps, refuses=_refuse_adamuon)
def muon(p: Param, o: Options) -> Iterator[State]:
    """The choice is by shape alone: two sides above one, the shorter at least 4, the longer at most 128 times that."""
    takes = takes_muon(p)
    does, does_not = as_count(takes), as_count(not_(takes))
    place: Place = "device" if o.capturable else "host"
    stepped = does_not if o.algo == "muon" else 1
    yield State("momentum_buffer", "momentum", p.dtype, p.numel, count=does)
    yield State("step", "step", "float32", 1, count=stepped, place=place)
    yield State("exp_avg", "momentum", p.dtype, p.numel, count=does_not)
    yield State("exp_avg_sq", "variance", p.dtype, p.numel, count=stepped)


optimizer(
    "timm:Muon+adamuon",
    cls="timm.optim.muon.Muon",
    summary="Muon's momentum, a variance of its update and a step; AdamW's two moments and a step elsewhere",
    source="timm 1.0.31 timm/optim/muon.py:Muon.step, _single_tensor_adamuon",
    options={**_MUON, "algo": "adamuon"},
    preset={"algo": "adamuon"},
    constructor=words(_MUON_REST),
    temporaries=None,
)(muon)


def _diagonal(p: Param, o: Options) -> list[Condition]:
    """Which dimensions get a diagonal factor (timm/optim/kron.py, _init_Q_exprs)."""
    if o.memory_save_mode == "all_diag" or p.ndim < o.min_ndim_triangular:
        return [True] * p.ndim
    most: Count = o.max_size_triangular
    diagonal: list[Condition] = [(side == 1) | (side > most) for side in p.shape]
    if o.memory_save_mode in ("one_diag", "smart_one_diag"):
        # the largest dimension; among equals the last one, or none
        smart = o.memory_save_mode == "smart_one_diag"
        for index, side in enumerate(p.shape):
            largest: Condition = not smart or p.ndim >= 2
            for other, against in enumerate(p.shape):
                if other != index:
                    largest = both(largest, side > against if smart or other > index else side >= against)
            diagonal[index] = diagonal[index] | largest
    return diagonal


def _refuse_kron(options: Options) -> Iterator[tuple[str, str]]:
    if options.memory_save_mode not in (None, "one_diag", "smart_one_diag", "all_diag"):
        yield "memory_save_mode", "is none of one_diag, smart_one_diag and all_diag"
    if options.flatten_start_dim < 0:
        yield "flatten_start_dim", "is negative, which is not modelled"


def _flattened(p: Param, o: Options) -> Param:
    """The tensor with dimensions start to end made one (timm/optim/kron.py, safe_flatten)."""
    start = o.flatten_start_dim
    end = o.flatten_end_dim if o.flatten_end_dim >= 0 else p.ndim + o.flatten_end_dim
    end = min(end, p.ndim - 1)
    if not o.flatten or p.ndim <= start or start > end:
        return p
    return replace(p, shape=(*p.shape[:start], product(p.shape[start : end + 1]), *p.shape[end + 1 :]))


@register(
    "Kron",
    "kron.py",
    "a momentum and, for each dimension, a triangular factor of the preconditioner, or a diagonal one above a size",
    {
        "max_size_triangular": 2048,
        "min_ndim_triangular": 2,
        "memory_save_mode": None,
        "mu_dtype": None,
        "precond_dtype": None,
        "flatten": False,
        "flatten_start_dim": 2,
        "flatten_end_dim": -1,
    },
    "lr momentum weight_decay preconditioner_update_probability momentum_into_precond_update precond_lr precond_init_scale "
    "decoupled_decay corrected_weight_decay stochastic_weight_decay deterministic",
    None,
    refuses=_refuse_kron,
)
def kron(p: Param, o: Options) -> Iterator[State]:
    """A scalar keeps one factor of one element."""
    flat = _flattened(p, o)
    dtype = o.precond_dtype or p.grad_dtype
    yield whole(p, "momentum_buffer", "momentum", o.mu_dtype or p.grad_dtype)
    if flat.ndim == 0:
        yield State("Q", "preconditioner", dtype, 1)
    for side, diagonal in zip(flat.shape, _diagonal(flat, o), strict=True):
        yield State("Q", "preconditioner", dtype, where(diagonal, side, side * side))
