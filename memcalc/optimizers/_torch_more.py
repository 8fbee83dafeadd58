"""The rest of torch.optim 2.13: the classes without a fused path, and those with a rule of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from memcalc.arrays import Count
from memcalc.optimizers import _torch_steps as steps
from memcalc.optimizers.base import Options, Param, State, optimizer
from memcalc.optimizers.torch import CAPTURABLE, SOURCE, like, refusals, scalar, step_scalar
from memcalc.tensors import itemsize


@optimizer(
    "torch:Adamax",
    cls="torch.optim.Adamax",
    summary="momentum and an infinity norm in the parameter's dtype",
    source=SOURCE + "adamax.py:87-120",
    options={**CAPTURABLE, "weight_decay": 0.0},
    constructor={"lr", "betas", "eps"},
    implementations=("foreach", "single"),
    script=steps.adamax,
    refuses=refusals,
)
def adamax(p: Param, o: Options) -> Iterator[State]:
    """Two buffers and a step counter."""
    yield step_scalar(o)
    yield like(p, "exp_avg", "momentum")
    yield like(p, "exp_inf", "variance")


@optimizer(
    "torch:Rprop",
    cls="torch.optim.Rprop",
    summary="the last gradient and a step size for each element",
    source=SOURCE + "rprop.py:80-117",
    options=CAPTURABLE,
    constructor={"lr", "etas", "step_sizes"},
    implementations=("foreach", "single"),
    script=steps.rprop,
    refuses=refusals,
)
def rprop(p: Param, o: Options) -> Iterator[State]:
    """The step sizes are made from the gradient and take its dtype."""
    yield step_scalar(o)
    yield like(p, "prev", "momentum")
    yield like(p, "step_size", "variance", p.grad_dtype)


@optimizer(
    "torch:ASGD",
    cls="torch.optim.ASGD",
    summary="the average of the parameter, and three scalars beside it on the device",
    source=SOURCE + "asgd.py:87-128",
    options={**CAPTURABLE, "weight_decay": 0.0, "t0": 1e6},
    constructor={"lr", "lambd", "alpha"},
    implementations=("foreach", "single"),
    script=steps.asgd,
    refuses=refusals,
)
def asgd(p: Param, o: Options) -> Iterator[State]:
    """The scalars live on the parameter's device whatever the options."""
    for name in ("step", "eta", "mu"):
        yield scalar(name, on_device=True)
    yield like(p, "ax", "average")


@optimizer(
    "torch:Adafactor",
    cls="torch.optim.Adafactor",
    summary="row and column statistics of the last two dimensions; vectors keep a whole variance; no momentum",
    source=SOURCE + "_adafactor.py:71-117",
    options={"foreach": None, "maximize": False},
    constructor={"lr", "beta2_decay", "eps", "d", "weight_decay"},
    implementations=("single", "foreach"),
    script=steps.adafactor,
    alike=lambda p: p.ndim > 1,
)
def adafactor(p: Param, o: Options) -> Iterator[State]:
    """(…, rows, columns) keeps (…, rows, 1) and (…, 1, columns), in the gradient's dtype."""
    yield step_scalar(o)
    if p.ndim > 1:
        rows, columns = steps.factors(p)
        yield State("row_var", "variance", p.grad_dtype, rows)
        yield State("col_var", "variance", p.grad_dtype, columns)
    else:
        yield like(p, "variance", "variance", p.grad_dtype)


@optimizer(
    "torch:Muon",
    cls="torch.optim.Muon",
    summary="momentum in the gradient's dtype, for matrices only",
    source=SOURCE + "_muon.py:127-160",
    options={"nesterov": True, "ns_steps": 5},
    constructor={"lr", "weight_decay", "momentum", "ns_coefficients", "eps", "adjust_lr_fn"},
    script=steps.muon,
    refuses=lambda o: [("ns_steps", "is not below 100")] if o.ns_steps >= 100 else [],
    needs="two dimensions",
    accepts=lambda p: p.ndim == 2,
)
def muon(p: Param, o: Options) -> Iterator[State]:
    """One buffer, no step counter."""
    yield like(p, "momentum_buffer", "momentum", p.grad_dtype)


@optimizer(
    "torch:SparseAdam",
    cls="torch.optim.SparseAdam",
    summary="dense momentum and variance, although the gradients are sparse",
    source=SOURCE + "sparse_adam.py:95-115; its step needs about five times the rows touched, which is not modelled",
    constructor={"lr", "betas", "eps", "maximize"},
    temporaries=None,
    needs="a sparse gradient, as of nn.Embedding(sparse=True)",
    accepts=lambda p: p.kind == "embedding",
)
def sparse_adam(p: Param, o: Options) -> Iterator[State]:
    """The step is a Python number."""
    yield like(p, "exp_avg", "momentum")
    yield like(p, "exp_avg_sq", "variance")


def _history(params: Sequence[Param], o: Options) -> Iterable[State]:
    """Flat vectors over all parameters at once, in the widest of their dtypes, the history full."""
    size: Count = 0
    for p in params:
        size = size + p.numel * p.count
    dtype = max((p.grad_dtype for p in params), key=itemsize, default="float32")
    yield State("d", "direction", dtype, size)
    yield State("old_dirs", "history", dtype, size, count=o.history_size)
    yield State("old_stps", "history", dtype, size, count=o.history_size)
    yield State("ro", "step", dtype, 1, count=o.history_size)
    yield State("H_diag", "step", dtype, 1)
    yield State("prev_flat_grad", "momentum", dtype, size)
    yield State("al", "step", dtype, 1, count=o.history_size)


@optimizer(
    "torch:LBFGS",
    cls="torch.optim.LBFGS",
    summary="a direction, a gradient, and two vectors for each of the remembered updates, each as long as the model",
    source=SOURCE + "lbfgs.py:340-527; as it stands once the history is full, history_size + 1 iterations in",
    options={"history_size": 100},
    constructor={"lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "line_search_fn"},
    temporaries=None,
    shared=_history,
    regardless=True,  # zeros stand for a missing gradient (lbfgs.py:_gather_flat_grad)
)
def lbfgs(p: Param, o: Options) -> Iterator[State]:
    """Nothing for a parameter alone: all of it is kept once, under the first one."""
    yield from ()
