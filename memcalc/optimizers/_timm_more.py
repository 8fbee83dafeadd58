"""timm 1.0.31, continued: the classes that widen half precision, and those without a step over lists."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import asked, live, scalar, upcast, whole
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary
from memcalc.optimizers.timm import CAUTION, LISTS, register, stepped
from memcalc.tensors import itemsize


def _half(dtype: str) -> bool:
    return upcast(dtype) != dtype


def _adabelief_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    # half precision steps on float32 copies of the parameter and the gradient
    wide, more = p.numel * itemsize(upcast(p.dtype)), 2 if _half(p.dtype) else 0
    if implementation == "foreach":
        yield Temporary("update", wide, "sum", count=2 + more)
    else:
        yield from live("update", wide, 3 + more, 1)


@register(
    "AdaBelief",
    "adabelief.py",
    "momentum and variance of the surprise, float32 for half-precision parameters",
    {**LISTS, "amsgrad": False},
    "lr betas eps weight_decay decoupled_decay fixed_decay rectify degenerated_to_sgd",
    _adabelief_steps,
)
def adabelief(p: Param, o: Options) -> Iterator[State]:
    """Two moments (three with amsgrad), never in half precision."""
    yield whole(p, "exp_avg", "momentum", upcast(p.dtype))
    yield whole(p, "exp_avg_var", "variance", upcast(p.dtype))
    if o.amsgrad:
        yield whole(p, "max_exp_avg_var", "variance", upcast(p.dtype))


def _rmsprop_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    decayed = int(asked(o, "weight_decay"))
    if implementation == "foreach":
        yield Temporary("update", p.nbytes, "sum", count=2 + decayed + int(o.centered))
    else:
        yield from live("update", p.nbytes, 2 + decayed, 1)


@register(
    "RMSpropTF",
    "rmsprop_tf.py",
    "a square average that starts at one, in the parameter's dtype",
    {**LISTS, **CAUTION, "momentum": 0.0, "centered": False, "weight_decay": 0.0},
    "lr alpha eps decoupled_decay corrected_weight_decay lr_in_momentum",
    _rmsprop_steps,
)
def rmsprop_tf(p: Param, o: Options) -> Iterator[State]:
    """The square average and a step scalar; momentum and centered add one buffer each."""
    yield scalar("step", "step", "float32", "host")
    yield whole(p, "square_avg", "variance")
    if o.momentum > 0:
        yield whole(p, "momentum_buffer", "momentum")
    if o.centered:
        yield whole(p, "grad_avg", "momentum")


@register(
    "SGDW",
    "sgdw.py",
    "nothing without momentum; the gradient's clone with it",
    {**LISTS, **CAUTION, "momentum": 0.0, "nesterov": False, "maximize": False},
    "lr dampening weight_decay corrected_weight_decay differentiable",
    stepped(
        single=(),
        adds={"maximize": 1, "nesterov": 1},
        when={"maximize": ((1, 1),), "nesterov": ((1, 0),), "maximize nesterov": ((2, 0),)},
    ),
)
def sgdw(p: Param, o: Options) -> Iterator[State]:
    """SGD's momentum."""
    if o.momentum != 0:
        yield whole(p, "momentum_buffer", "momentum", p.grad_dtype)


def _madgrad_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    # the cube root and the new iterate beside the last one, and a copy of the gradient that takes the decay
    decayed = int(asked(o, "weight_decay") and not o.decoupled_decay)
    if o.momentum == 0:
        yield from live("iterate", p.nbytes, 3 + decayed)
    else:
        yield from live("root", p.nbytes, 1 + decayed, 2)
        yield from live("iterate", p.nbytes, 2 + decayed, 1)


@register(
    "MADGRAD",
    "madgrad.py",
    "a sum of gradients, one of squares and the initial weights, in the parameter's dtype",
    {"momentum": 0.9, "weight_decay": 0.0, "decoupled_decay": False},
    "lr eps",
    _madgrad_steps,
)
def madgrad(p: Param, o: Options) -> Iterator[State]:
    """Three buffers, two without momentum."""
    yield whole(p, "grad_sum_sq", "variance")
    yield whole(p, "s", "momentum")
    if o.momentum != 0:
        yield whole(p, "x0", "initial")


def _mars_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    corrected = (p.ndim >= 2 or o.optimize_1d) and o.mars_type == "adamw"
    yield from live("update", p.nbytes, 5 if corrected else 4)


@register(
    "Mars",
    "mars.py",
    "momentum, variance and the previous gradient, in the parameter's dtype",
    {**CAUTION, "optimize_1d": False, "mars_type": "adamw"},
    "lr betas eps weight_decay gamma lr_1d_factor betas_1d",
    _mars_steps,
)
def mars(p: Param, o: Options) -> Iterator[State]:
    """Three buffers, for every type and every dimension."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "last_grad", "previous_gradient")
    yield whole(p, "exp_avg_sq", "variance")


@register(
    "NAdamLegacy",
    "nadam.py",
    "momentum and variance in the parameter's dtype",
    {"weight_decay": 0.0},
    "lr betas eps schedule_decay",
    stepped(single=((2, 1),), when={"weight_decay": ((3, 1),)}),
)
def nadam_legacy(p: Param, o: Options) -> Iterator[State]:
    """Two moments; step and schedule are Python numbers."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


def _radam_steps(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    wide = p.numel * itemsize(upcast(p.dtype))
    if _half(p.dtype):  # float32 copies of parameter and gradient, and the previous tensor's
        yield from live("copies", wide, 1, 3)
        yield from live("update", wide, 3, 1)
    else:
        yield from live("update", wide, 1, 1)


@register(
    "RAdamLegacy",
    "radam.py",
    "momentum and variance, float32 for half-precision parameters",
    {},
    "lr betas eps weight_decay",
    _radam_steps,
)
def radam_legacy(p: Param, o: Options) -> Iterator[State]:
    """Two moments, never in half precision."""
    yield whole(p, "exp_avg", "momentum", upcast(p.dtype))
    yield whole(p, "exp_avg_sq", "variance", upcast(p.dtype))


@register(
    "NvNovoGrad",
    "nvnovograd.py",
    "one momentum in the parameter's dtype and a float32 scalar for the whole tensor's variance",
    {"amsgrad": False},
    "lr betas eps weight_decay grad_averaging decoupled_decay corrected_weight_decay",
    stepped(single=((1, 1),)),
)
def nv_novograd(p: Param, o: Options) -> Iterator[State]:
    """The momentum and the squared norm, which is moved to the device."""
    yield whole(p, "exp_avg", "momentum")
    yield scalar("exp_avg_sq", "variance", "float32")
    if o.amsgrad:
        yield scalar("max_exp_avg_sq", "variance", "float32")


@register(
    "AdamP",
    "adamp.py",
    "momentum and variance in the parameter's dtype",
    {**CAUTION},
    "lr betas eps weight_decay delta wd_ratio nesterov",
    None,  # whether the update is projected depends on its values
)
def adamp(p: Param, o: Options) -> Iterator[State]:
    """Two moments."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")


@register(
    "SGDP",
    "sgdp.py",
    "one momentum in the parameter's dtype, whatever momentum is",
    {**CAUTION},
    "lr momentum dampening weight_decay nesterov eps delta wd_ratio",
    None,  # whether the update is projected depends on its values
)
def sgdp(p: Param, o: Options) -> Iterator[State]:
    """The momentum."""
    yield whole(p, "momentum", "momentum")


@register(
    "Adahessian",
    "adahessian.py",
    "momentum, variance of the Hessian diagonal and the diagonal itself, kept on the parameter",
    {},
    "lr betas eps weight_decay hessian_power update_each n_samples avg_conv_kernel",
    None,  # the Hessian's own backward pass runs inside the step
)
def adahessian(p: Param, o: Options) -> Iterator[State]:
    """``p.hess`` is an attribute of the parameter; its random signs are float32 and widen half precision."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_hessian_diag_sq", "variance")
    yield whole(p, "hess", "hessian", upcast(p.dtype))
