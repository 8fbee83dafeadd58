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
from typing import Any

from memcalc.arrays import Condition, Count, as_count, ceil_div, maximum, minimum, not_, where
from memcalc.optimizers._parts import factored, longer, scalar, shorter, upcast, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer
from memcalc.optimizers.script import Op, Section, in_turn
from memcalc.optimizers.transformers import RATE, adafactor_turn, master, update
from memcalc.records import replace
from memcalc.tensors import itemsize

OWN: dict[str, Any] = {"rank": 128, "proj_type": "std", "target_modules": ("attn", "mlp")}
PROJECTIONS = ("std", "reverse_std", "right", "left", "full")


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


def low(p: Param, o: Options) -> Param:
    """The gradient as it comes out of the projection."""
    return replace(p, shape=low_rank(p, o))


def _back(p: Param, o: Options) -> Iterator[Op]:
    """Projected back, and that scaled, in the projected name's stead (galore_torch/galore_projector.py:46-61)."""
    m, r = p.shape[0], minimum(o.rank, shorter(p))
    half = ("+half:half", "-half") if o.proj_type == "full" else ("", "")
    turn = f"{half[0]} +back:ng {half[1]} +full:ng -back =update:full"
    yield from in_turn(turn, half=lambda q: m * r * itemsize(q.grad_dtype)).body(p)


def _projected_gradient(p: Param, o: Options) -> Iterator[Op]:
    """The gradient's projection under the gradient's name (galore_torch/galore_projector.py:13-44)."""
    n, r = p.shape[1], minimum(o.rank, shorter(p))
    if o.proj_type == "full":
        yield from in_turn("+half:half", half=lambda q: n * r * itemsize(q.grad_dtype)).body(p)
    yield from in_turn("+projected:ng =grad:projected -half").body(low(p, o))


PLAIN = "+denom:ng +update:ng"
"""The denominator and the quotient of an Adam that is written out (adamw.py:AdamW.step)."""


def _adamw_script(o: Options, form: Implementation) -> list[Section]:
    def turn(p: Param) -> Iterator[Op]:
        if not projected(p, o):
            yield from in_turn(PLAIN).body(p)
            return
        yield from _projected_gradient(p, o)
        yield from in_turn(PLAIN).body(low(p, o))
        yield from _back(p, o)
        yield from in_turn("-grad").body(p)

    return [Section(True, turn)]


def _adafactor_script(o: Options, form: Implementation) -> list[Section]:
    def turn(p: Param) -> Iterator[Op]:
        beta1 = o.beta1 is not None
        if not projected(p, o):
            yield from in_turn(adafactor_turn(p, beta1=beta1)).body(p)
            return
        wide = replace(p, grad_dtype=upcast(p.grad_dtype))
        yield from in_turn("+grad:nw" if wide.grad_dtype != p.grad_dtype else "").body(p)
        yield from _projected_gradient(wide, o)
        yield from in_turn(f"{master(p)} {RATE}").body(p)
        yield from in_turn(update(p, beta1=beta1)).body(low(wide, o))
        yield from _back(wide, o)
        yield from in_turn("+step:nw -step -grad").body(p)

    return [Section(True, turn)]


def chosen_first(p: Param, o: Options) -> int:
    """Projected weights are a group of their own, before the rest (galore's torchrun_main.py)."""
    return 0 if projected(p, o) else 1


@optimizer(
    "galore-torch:GaLoreAdamW",
    cls="galore_torch.GaLoreAdamW",
    summary="both moments at rank r for projected weights, and the projection; Adam's two moments for the rest",
    source="galore-torch 1.0 galore_torch/adamw.py:AdamW.step, galore_torch/galore_projector.py",
    options=OWN,
    own=frozenset(OWN),
    constructor=words("lr betas eps weight_decay correct_bias no_deprecation_warning"),
    script=_adamw_script,
    group=chosen_first,
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
    script=_adafactor_script,
    group=chosen_first,
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
    group=chosen_first,
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
