"""galore-torch 1.0: Adam's moments in a subspace of rank r, and the subspace itself.

For a projected gradient of m x n (m >= n) the default ``std`` projection keeps moments of m x r and a matrix of r x n. With
float32 gradients that matrix is a slice of the SVD's whole output, whose storage it keeps alive: n x n elements whatever r
is. Half-precision gradients are cast back, which copies the slice alone.

Rank and projection belong to parameter groups, not to the constructor; ``target_modules`` are the words that choose the
weights of linear layers to project (galore's torchrun_main.py: attn and mlp). The moments' subspace is renewed every
``update_proj_gap`` steps; the SVD's workspace of those steps is not part of the temporaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from memcalc.arrays import Condition, Count, as_count, ceil_div, maximum, minimum, not_, where
from memcalc.optimizers._parts import copies, factor_sides, factored, live, longer, scalar, shorter, upcast, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer
from memcalc.tensors import itemsize

OWN: dict[str, Any] = {"rank": 128, "proj_type": "std", "target_modules": ("attn", "mlp")}
PROJECTIONS = ("std", "reverse_std", "right", "left", "full")
_PLAIN = copies(single=((1, 2), (2, 1)))  # denominator and quotient, each beside the previous tensor's


def projected(p: Param, o: Options) -> bool:
    """Whether a tensor's gradient is projected: the weight of a linear layer in one of the target modules."""
    return p.ndim == 2 and p.kind == "linear" and any(word in p.name for word in o.target_modules)


def refuse(options: Options) -> Iterator[tuple[str, str]]:
    """The projections the library knows (galore_torch/galore_projector.py, project)."""
    if options.proj_type not in PROJECTIONS:
        yield "proj_type", "is not a projection; use std, reverse_std, right, left or full"


def low_rank(p: Param, o: Options) -> tuple[Count, Count]:
    """The shape of a projected gradient (galore_torch/galore_projector.py:13-44)."""
    m, n = p.shape
    r = minimum(o.rank, shorter(p))
    fixed = {"right": (m, r), "left": (r, n), "full": (r, r)}
    if o.proj_type in fixed:
        return fixed[o.proj_type]
    # std projects the shorter side away, reverse_std the longer one
    right = m >= n if o.proj_type == "std" else m < n
    return where(right, m, r), where(right, r, n)


def projector(p: Param, o: Options, dtype: str) -> Iterator[State]:
    """The projection matrices: whole SVD factors in float32, the r chosen rows or columns in any other dtype.

    ``linalg.svd(full_matrices=False)`` of m x n gives U of m x k and Vh of k x n, k the shorter side
    (galore_torch/galore_projector.py:64-103, get_orthogonal_matrix).
    """
    m, n = p.shape
    k = shorter(p)
    width = k if dtype == "float32" else minimum(o.rank, k)
    side = {"right": n, "left": m, "std": k, "reverse_std": longer(p), "full": n}[o.proj_type]
    yield State("projector.ortho_matrix", "preconditioner", dtype, width * side)
    if o.proj_type == "full":
        yield State("projector.ortho_matrix", "preconditioner", dtype, width * m)


def moments(p: Param, o: Options) -> Iterator[State]:
    """Adam's two moments of the gradient as it comes out of the projection, in the gradient's dtype."""
    if projected(p, o):
        rows, columns = low_rank(p, o)
        yield State("exp_avg", "momentum", p.grad_dtype, rows * columns)
        yield State("exp_avg_sq", "variance", p.grad_dtype, rows * columns)
        yield from projector(p, o, p.grad_dtype)
    else:
        yield whole(p, "exp_avg", "momentum", p.grad_dtype)
        yield whole(p, "exp_avg_sq", "variance", p.grad_dtype)


def _adamw_temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    if projected(p, o):
        rows, columns = low_rank(p, o)
        # the projected gradient, the denominator and the quotient; the quotient projected back, and that scaled
        yield from live("back", 3 * rows * columns * itemsize(p.grad_dtype) + 2 * p.numel * itemsize(p.grad_dtype))
    else:
        yield from _PLAIN(p, o, implementation)


def _adafactor_temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    wide = itemsize(upcast(p.grad_dtype))
    own = int(upcast(p.dtype) != p.dtype)  # p.float()
    if not projected(p, o):
        of_grad = int(upcast(p.grad_dtype) != p.grad_dtype)
        yield from live("square", p.numel * wide, 2 + own + of_grad, 1 if o.beta1 is None else 0)
        yield from live("factors", ((2 + own + of_grad) * p.numel + factor_sides(p)) * wide)
        return
    rows, columns = low_rank(p, o)
    # the projected gradient and the update, unless that is exp_avg itself; projected back and scaled
    small = 2 if o.beta1 is None else 1
    yield from live("back", (small * rows * columns + (2 + own) * p.numel) * wide)


@optimizer(
    "galore-torch:GaLoreAdamW",
    cls="galore_torch.GaLoreAdamW",
    summary="both moments at rank r for projected weights, and the projection; Adam's two moments for the rest",
    source="galore-torch 1.0 galore_torch/adamw.py:AdamW.step, galore_torch/galore_projector.py",
    options=OWN,
    own=frozenset(OWN),
    constructor=words("lr betas eps weight_decay correct_bias no_deprecation_warning"),
    temporaries=_adamw_temporaries,
    refuses=refuse,
)
def galore_adamw(p: Param, o: Options) -> Iterator[State]:
    """Moments of the projected gradient, in its dtype."""
    yield from moments(p, o)


@optimizer(
    "galore-torch:GaLoreAdafactor",
    cls="galore_torch.GaLoreAdafactor",
    summary="an fp32 variance of the projected gradient, factored, and the whole SVD factor its projection keeps alive",
    source="galore-torch 1.0 galore_torch/adafactor.py:Adafactor.step, galore_torch/galore_projector.py",
    options={**OWN, "beta1": None},
    own=frozenset(OWN),
    constructor=words("lr eps clip_threshold decay_rate weight_decay scale_parameter relative_step warmup_init"),
    temporaries=_adafactor_temporaries,
    refuses=refuse,
)
def galore_adafactor(p: Param, o: Options) -> Iterator[State]:
    """Half-precision gradients are widened before they are projected, so the SVD's storage is always kept."""
    dtype = upcast(p.grad_dtype)
    inner = replace(p, shape=low_rank(p, o)) if projected(p, o) else p
    if o.beta1 is not None:
        yield whole(inner, "exp_avg", "momentum", dtype)
    yield from factored(inner, dtype)
    yield scalar("RMS", "scales", upcast(p.dtype))
    if projected(p, o):
        yield from projector(p, o, dtype)


def _bytes_of(p: Param, o: Options) -> tuple[Count, Condition]:
    """Elements the 8-bit states cover, and whether they reach the threshold."""
    rows, columns = low_rank(p, o) if projected(p, o) else (p.numel, 1)
    return rows * columns, rows * columns >= o.min_8bit_size


def _tables(params: Sequence[Param], o: Options) -> Iterator[State]:
    used: Count = 0
    for p in params:
        used = maximum(used, as_count(_bytes_of(p, o)[1]))
    yield State("qmap1", "scales", "float32", 256, count=used)
    yield State("qmap2", "scales", "float32", 256, count=used)


@optimizer(
    "galore-torch:GaLoreAdamW8bit",
    cls="galore_torch.GaLoreAdamW8bit",
    summary="both moments at rank r and in 8 bit for projected weights, and the projection",
    source="galore-torch 1.0 galore_torch/adamw8bit.py:AdamW8bit.step; bitsandbytes 0.50.2 Optimizer2State.init_state",
    options={**OWN, "min_8bit_size": 4096, "percentile_clipping": 100},
    own=frozenset(OWN),
    constructor=words("lr betas eps weight_decay amsgrad optim_bits args block_wise is_paged"),
    shared=_tables,
    temporaries=None,
    refuses=refuse,
)
def galore_adamw8bit(p: Param, o: Options) -> Iterator[State]:
    """The block-wise states of bitsandbytes for the projected gradient: codes and a maximum for each 256, fp32 below 4096.

    The class passes ``percentile_clipping`` by position, where bitsandbytes 0.50 has come to expect ``max_unorm``: any value
    above 0, so its default of 100, keeps the norm of the update.
    """
    numel, small = _bytes_of(p, o)
    large = not_(small)
    for index, part in ((1, "momentum"), (2, "variance")):
        yield State(f"state{index}", part, "uint8", numel, count=as_count(small))
        yield State(f"absmax{index}", "scales", "float32", ceil_div(numel, 256), count=as_count(small))
        yield State(f"state{index}", part, "float32", numel, count=as_count(large))
    if o.percentile_clipping > 0:
        yield scalar("unorm_vec", "scales", "float32")
    if projected(p, o):
        yield from projector(p, o, p.grad_dtype)
