"""torch.optim 2.13. On CUDA every class but Adafactor, Muon, SparseAdam and LBFGS takes its foreach path by default.

State follows the parameter's dtype, except where it is made from the gradient (SGD, Rprop's step sizes, Adafactor, Muon);
``step`` scalars are float32 and live on the host unless the fused or capturable path keeps them beside the parameter
(torch/optim/optimizer.py:210, adam.py:139-202). What a step needs for a moment is in ``_torch_steps.py``. ``tensor_betas``
is not a constructor's argument: it says that ``betas`` are given as tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memcalc.optimizers import _torch_steps as steps
from memcalc.optimizers.base import Options, Param, State, optimizer, variant
from memcalc.tensors import itemsize

SOURCE = "torch 2.13.0 torch/optim/"
COMMON: dict[str, Any] = {"foreach": None, "maximize": False, "differentiable": False}
FUSED: dict[str, Any] = {**COMMON, "fused": None}
CAPTURABLE: dict[str, Any] = {**COMMON, "capturable": False}


def refusals(o: Options) -> Iterator[tuple[str, str]]:
    """What the constructors raise for, and the one thing memcalc does not model."""
    if o.get("fused") and o.get("foreach"):
        yield "fused", "and foreach cannot both be true"
    if o.get("differentiable"):
        yield "differentiable", "keeps the step's graph, which is not modelled"
    if o.get("tensor_betas") and o.get("foreach") is not False and not o.fused and not o.capturable:
        yield "tensor_betas", "needs capturable=true, fused=true or foreach=false"


def scalar(name: str, *, on_device: bool) -> State:
    """A 0-dim float32 that the library keeps on the host unless a kernel reads it."""
    return State(name, "step", "float32", 1, place="device" if on_device else "host")


def step_scalar(o: Options) -> State:
    """The step counter: host memory unless the fused or capturable path keeps it beside the parameter."""
    return scalar("step", on_device=bool(o.get("fused")) or bool(o.get("capturable")))


def like(p: Param, name: str, part: str, dtype: str = "") -> State:
    """A tensor of the parameter's shape and, unless told, dtype."""
    return State(name, part, dtype or p.dtype, p.numel)


@optimizer(
    "torch:SGD",
    cls="torch.optim.SGD",
    summary="nothing; with momentum one buffer in the gradient's dtype",
    source=SOURCE + "sgd.py:84-107, 359-362",
    options={**FUSED, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    constructor={"lr"},
    implementations=("foreach", "fused", "single"),
    script=steps.sgd,
    refuses=lambda o: [
        *refusals(o),
        *([("nesterov", "needs momentum above 0 and dampening 0")] if o.nesterov and (not o.momentum or o.dampening) else []),
    ],
)
def sgd(p: Param, o: Options) -> Iterator[State]:
    """A clone of the first gradient, after the decay has been added to it (which promotes its dtype) unless fused."""
    if o.momentum:
        wider = itemsize(p.dtype) > itemsize(p.grad_dtype) and bool(o.weight_decay) and not o.fused
        yield like(p, "momentum_buffer", "momentum", p.dtype if wider else p.grad_dtype)


ADAM = {**FUSED, "capturable": False, "amsgrad": False, "tensor_betas": False}


@optimizer(
    "torch:AdamW",
    cls="torch.optim.AdamW",
    summary="momentum and variance in the parameter's dtype",
    source=SOURCE + "adam.py:139-202, adamw.py:26-60",
    options={**ADAM, "weight_decay": 0.01},
    own=frozenset({"tensor_betas"}),
    constructor={"lr", "betas", "eps"},
    implementations=("foreach", "fused", "single"),
    script=steps.adamw,
    refuses=refusals,
)
@optimizer(
    "torch:Adam",
    cls="torch.optim.Adam",
    summary="momentum and variance in the parameter's dtype",
    source=SOURCE + "adam.py:139-202",
    options={**ADAM, "weight_decay": 0.0, "decoupled_weight_decay": False},
    own=frozenset({"tensor_betas"}),
    constructor={"lr", "betas", "eps"},
    implementations=("foreach", "fused", "single"),
    script=steps.adam,
    refuses=refusals,
)
def adam(p: Param, o: Options) -> Iterator[State]:
    """Two moments (three with amsgrad) and a step counter."""
    yield step_scalar(o)
    yield like(p, "exp_avg", "momentum")
    yield like(p, "exp_avg_sq", "variance")
    if o.amsgrad:
        yield like(p, "max_exp_avg_sq", "variance")


@optimizer(
    "torch:Adagrad",
    cls="torch.optim.Adagrad",
    summary="the sum of squares in the parameter's dtype, born with the optimizer",
    source=SOURCE + "adagrad.py:70-100",
    options={**FUSED, "weight_decay": 0.0},
    constructor={"lr", "lr_decay", "eps", "initial_accumulator_value"},
    implementations=("foreach", "fused", "single"),
    script=steps.adagrad,
    refuses=refusals,
    born="init",
)
def adagrad(p: Param, o: Options) -> Iterator[State]:
    """One accumulator and a step counter."""
    yield step_scalar(o)
    yield like(p, "sum", "variance")


@optimizer(
    "torch:Adadelta",
    cls="torch.optim.Adadelta",
    summary="two running averages in the parameter's dtype",
    source=SOURCE + "adadelta.py:84-124",
    options={**CAPTURABLE, "weight_decay": 0.0},
    constructor={"lr", "rho", "eps"},
    implementations=("foreach", "single"),
    script=steps.adadelta,
    refuses=refusals,
)
def adadelta(p: Param, o: Options) -> Iterator[State]:
    """Squared gradients and squared updates."""
    yield step_scalar(o)
    yield like(p, "square_avg", "variance")
    yield like(p, "acc_delta", "variance")


@optimizer(
    "torch:RMSprop",
    cls="torch.optim.RMSprop",
    summary="a running average of squares; with momentum and centred one more each",
    source=SOURCE + "rmsprop.py:93-139",
    options={**CAPTURABLE, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
    constructor={"lr", "alpha", "eps"},
    implementations=("foreach", "single"),
    script=steps.rmsprop,
    refuses=refusals,
)
def rmsprop(p: Param, o: Options) -> Iterator[State]:
    """One to three buffers and a step counter."""
    yield step_scalar(o)
    yield like(p, "square_avg", "variance")
    if o.momentum:
        yield like(p, "momentum_buffer", "momentum")
    if o.centered:
        yield like(p, "grad_avg", "momentum")


DECAYING = {**CAPTURABLE, "weight_decay": 0.0, "decoupled_weight_decay": False}


@optimizer(
    "torch:NAdam",
    cls="torch.optim.NAdam",
    summary="momentum and variance in the parameter's dtype, and a product of momenta",
    source=SOURCE + "nadam.py:106-155",
    options=DECAYING,
    constructor={"lr", "betas", "eps", "momentum_decay"},
    implementations=("foreach", "single"),
    script=steps.nadam,
    refuses=refusals,
)
def nadam(p: Param, o: Options) -> Iterator[State]:
    """Adam's moments and two scalars."""
    yield step_scalar(o)
    yield scalar("mu_product", on_device=bool(o.capturable))
    yield like(p, "exp_avg", "momentum")
    yield like(p, "exp_avg_sq", "variance")


@optimizer(
    "torch:RAdam",
    cls="torch.optim.RAdam",
    summary="momentum and variance in the parameter's dtype",
    source=SOURCE + "radam.py:92-126",
    options=DECAYING,
    constructor={"lr", "betas", "eps"},
    implementations=("foreach", "single"),
    script=steps.radam,
    refuses=refusals,
)
def radam(p: Param, o: Options) -> Iterator[State]:
    """Adam's moments and a step counter."""
    yield step_scalar(o)
    yield like(p, "exp_avg", "momentum")
    yield like(p, "exp_avg_sq", "variance")


variant("torch:SGD+momentum", momentum=0.9)
variant("torch:Adam+amsgrad", amsgrad=True)
variant("torch:AdamW+amsgrad", amsgrad=True)
variant("torch:RMSprop+momentum+centered", momentum=0.9, centered=True)

from memcalc.optimizers import _torch_more  # noqa: E402, F401  the rest of the library, registered as this file is read
