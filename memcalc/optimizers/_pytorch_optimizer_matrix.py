"""pytorch-optimizer 4.1.0, continued: what keeps matrices of a tensor's sides, or orthogonalises its update."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count, as_count, minimum, where
from memcalc.optimizers._parts import hidden_matrix, longer, shorter, whole
from memcalc.optimizers._pytorch_optimizer_parts import register
from memcalc.optimizers.base import Options, Param, State
from memcalc.optimizers.galore_torch import projected

OWN = {"rank": 128, "projection_type": "std", "target_modules": ("attn", "mlp")}
PROJECTIONS = ("std", "reverse_std", "right", "left", "full", "random")
_MUON = "lr momentum weight_decay weight_decouple nesterov ns_steps ns_coeffs use_adjusted_lr adamw_lr adamw_betas adamw_wd"


@register(
    "Shampoo",
    "shampoo.py",
    "a preconditioner and its inverse root for every dimension, biases included, and the last update",
    "lr momentum weight_decay weight_decouple fixed_decay preconditioning_compute_steps matrix_eps maximize",
)
def shampoo(p: Param, o: Options) -> Iterator[State]:
    """Two d x d matrices for each dimension of d; the update is kept as ``momentum_buffer`` though momentum be 0."""
    for side in p.shape:
        yield State("pre_cond", "preconditioner", p.grad_dtype, side * side)
        yield State("inv_pre_cond", "preconditioner", p.grad_dtype, side * side)
    yield whole(p, "momentum_buffer", "momentum", p.grad_dtype)


def _unmerged(o: Options) -> Iterator[tuple[str, str]]:
    if o.merge_dims:
        yield "merge_dims", "is not modelled as true"


@register(
    "SOAP",
    "soap.py",
    "Adam's two moments, and for every dimension up to max_precondition_dim a preconditioner and its eigenvectors",
    "lr betas shampoo_beta weight_decay precondition_frequency correct_bias normalize_gradient data_format eps maximize",
    {"max_precondition_dim": 10000, "merge_dims": False, "precondition_1d": False},
    refuses=_unmerged,
)
def soap(p: Param, o: Options) -> Iterator[State]:
    """Everything in the gradient's dtype; one dimension is preconditioned only with ``precondition_1d``."""
    yield whole(p, "exp_avg", "momentum", p.grad_dtype)
    yield whole(p, "exp_avg_sq", "variance", p.grad_dtype)
    if p.ndim >= 2 or o.precondition_1d:
        for side in p.shape:
            present = as_count(side <= o.max_precondition_dim)
            yield State("GG", "preconditioner", p.grad_dtype, side * side, count=present)
            yield State("Q", "preconditioner", p.grad_dtype, side * side, count=present)


def _projections(o: Options) -> Iterator[tuple[str, str]]:
    if o.projection_type not in PROJECTIONS:
        yield "projection_type", f"is not a projection; use {', '.join(PROJECTIONS)}"


def _projector(p: Param, o: Options, rank: Count, dtype: str) -> Iterator[State]:
    """The chosen singular vectors, cloned or cast: nothing of the whole factors is kept (optimizer/utils/galore.py:75-108)."""
    m, n = p.shape
    side = {"right": n, "left": m, "reverse_std": longer(p), "full": m}.get(o.projection_type, shorter(p))
    yield State("projector.ortho_matrix", "preconditioner", dtype, rank * side)
    if o.projection_type == "full":
        yield State("projector.ortho_matrix", "preconditioner", dtype, rank * n)


def _low_rank(p: Param, o: Options, rank: Count) -> Count:
    """Elements of a projected gradient; ``random`` is ``std``, for no class asks for a random matrix."""
    m, n = p.shape
    fixed = {"right": m * rank, "left": rank * n, "full": rank * rank}
    if o.projection_type in fixed:
        return fixed[o.projection_type]
    right = m < n if o.projection_type == "reverse_std" else m >= n
    return where(right, m * rank, rank * n)


@register(
    "GaLore",
    "galore.py",
    "Adam's two moments at rank r for projected weights, and the projection; whole moments for the rest",
    "lr betas weight_decay eps maximize foreach",
    OWN,
    own=frozenset(OWN),
    refuses=_projections,
)
def galore(p: Param, o: Options) -> Iterator[State]:
    """Rank and projection belong to parameter groups; the moments follow the projected gradient's dtype."""
    if projected(p, o):
        rank = minimum(o.rank, shorter(p))
        for key, part in (("exp_avg", "momentum"), ("exp_avg_sq", "variance")):
            yield State(key, part, p.grad_dtype, _low_rank(p, o, rank))
        yield from _projector(p, o, rank, p.grad_dtype)
    else:
        yield whole(p, "exp_avg", "momentum")
        yield whole(p, "exp_avg_sq", "variance")


@register(
    "Conda",
    "conda.py",
    "Adam's two moments, and for matrices the singular vectors of the momentum",
    "lr betas weight_decay update_proj_gap scale eps maximize foreach",
    {"projection_type": "std"},
    refuses=_projections,
)
def conda(p: Param, o: Options) -> Iterator[State]:
    """The projection has the shorter side's full rank, so std leaves the variance whole."""
    yield whole(p, "exp_avg", "momentum")
    if p.ndim != 2:
        yield whole(p, "exp_avg_sq", "variance")
        return
    rows, columns = p.shape
    if o.projection_type in ("left", "full", "reverse_std"):
        rows = shorter(p)
    if o.projection_type in ("right", "full", "reverse_std"):
        columns = shorter(p)
    yield State("exp_avg_sq", "variance", p.dtype, rows * columns)
    yield from _projector(p, o, shorter(p), p.dtype)


def _adam(p: Param) -> Iterator[State]:
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


@register(
    "Muon",
    "muon/muon.py",
    "one momentum for hidden matrices, Adam's two moments for embeddings, the output head and everything below 2-D",
    f"{_MUON} adamw_eps maximize foreach ns_method ns_reset_steps",
)
def muon(p: Param, o: Options) -> Iterator[State]:
    """Groups say ``use_muon``; they are taken to be hidden matrices, and the rest."""
    if hidden_matrix(p):
        yield whole(p, "momentum_buffer", "momentum")
    else:
        yield from _adam(p)


@register(
    "NorMuon",
    "muon/normuon.py",
    "one momentum and a variance for each row for hidden matrices, Adam's two moments for the rest",
    f"{_MUON} adamw_eps beta2 update_scale eps maximize foreach",
)
def normuon(p: Param, o: Options) -> Iterator[State]:
    """Rows are those of the first dimension."""
    if hidden_matrix(p):
        yield whole(p, "momentum_buffer", "momentum")
        yield State("second_momentum_buffer", "variance", p.dtype, p.shape[0])
    else:
        yield from _adam(p)


@register(
    "AdaMuon",
    "muon/adamuon.py",
    "two moments, for hidden matrices and for the rest alike",
    "lr betas weight_decay weight_decouple ns_steps ns_coeffs use_adjusted_lr adamw_lr adamw_betas adamw_wd eps maximize",
    {"foreach": False},
)
def adamuon(p: Param, o: Options) -> Iterator[State]:
    """Muon's variance is kept flat; as many elements as Adam's."""
    yield whole(p, "m" if hidden_matrix(p) else "exp_avg", "momentum")
    yield whole(p, "v" if hidden_matrix(p) else "exp_avg_sq", "variance")
