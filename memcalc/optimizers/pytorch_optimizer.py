"""pytorch-optimizer 4.1.0 (kozistr): its states follow the parameter's dtype unless said otherwise, and steps are plain ints.

``_pytorch_optimizer_matrix.py`` holds the classes that keep matrices, ``_pytorch_optimizer_more.py`` those that keep a few
buffers of the parameter's shape and nothing else. What ``**kwargs`` may add (``adanorm``, one element more) is not modelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memcalc.arrays import Count
from memcalc.optimizers._parts import factored, scalar, upcast, whole
from memcalc.optimizers._pytorch_optimizer_parts import register
from memcalc.optimizers.base import Options, Param, State

_DECAY = "weight_decay weight_decouple fixed_decay"
_NORMS = ("weight_norm", "adam_norm", "trust_ratio")


def _lamb_norms(params: Sequence[Param], o: Options) -> Iterator[State]:
    """Batched, each parameter's three norms are views of three tensors as long as the list (lamb.py:172-183)."""
    if o.foreach is False or o.rectify:
        return
    lists: dict[str, Count] = {}
    for p in params:
        lists[p.dtype] = lists.get(p.dtype, 0) + p.count
    for dtype, length in lists.items():
        for key in _NORMS:
            yield State(key, "scales", dtype, length)


@register(
    "Lamb",
    "lamb.py",
    "momentum, variance and three norms, in the parameter's dtype",
    f"lr betas {_DECAY} degenerated_to_sgd n_sma_threshold grad_averaging max_grad_norm adam pre_norm eps foreach maximize",
    {"rectify": False},
    shared=_lamb_norms,
)
def lamb(p: Param, o: Options) -> Iterator[State]:
    """The norms are the parameter's own only where it steps alone (lamb.py:267-269), as rectification makes it do."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
    if o.foreach is False or o.rectify:
        for key in _NORMS:
            yield scalar(key, "scales", p.dtype)


@register(
    "Adan",
    "adan.py",
    "momentum, variance, the gradients' mean difference and the previous gradient",
    "lr betas weight_decay weight_decouple max_grad_norm foreach eps maximize",
)
def adan(p: Param, o: Options) -> Iterator[State]:
    """Four buffers."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
    yield whole(p, "exp_avg_diff", "momentum")
    yield whole(p, "previous_grad", "previous_gradient", p.grad_dtype)


@register("Tiger", "tiger.py", "one momentum in the gradient's dtype", f"lr beta {_DECAY} foreach maximize")
def tiger(p: Param, o: Options) -> Iterator[State]:
    """The momentum alone."""
    yield whole(p, "exp_avg", "momentum", p.grad_dtype)


@register(
    "SophiaH",
    "sophia.py",
    "momentum, the Hessian diagonal's moving average and its newest estimate",
    f"lr betas {_DECAY} p update_period num_samples hessian_distribution eps maximize foreach",
)
def sophia_h(p: Param, o: Options) -> Iterator[State]:
    """The estimate stays between updates; it needs ``loss.backward(create_graph=True)``, whose graph no state here counts."""
    yield whole(p, "momentum", "momentum", p.grad_dtype)
    yield whole(p, "hessian_moment", "variance", p.grad_dtype)
    yield whole(p, "hessian", "hessian")


@register(
    "CAME",
    "came.py",
    "momentum, variance and residual factored over the last two dimensions, all in the parameter's dtype",
    f"lr betas {_DECAY} clip_threshold eps1 eps2 maximize foreach",
    {"ams_bound": False},
)
def came(p: Param, o: Options) -> Iterator[State]:
    """Half the bytes of came-pytorch's for half-precision parameters: no gradient is widened."""
    yield whole(p, "exp_avg", "momentum")
    yield from factored(p, p.grad_dtype)
    if p.ndim >= 2:
        yield from factored(p, p.grad_dtype, "exp_avg_res", "residual")
    if o.ams_bound:
        yield whole(p, "exp_avg_sq_hat", "variance", p.grad_dtype)
    yield scalar("RMS", "scales", p.dtype)


@register(
    "StableAdamW",
    "adamw.py",
    "Adam's two moments, and a Kahan compensation for half-precision parameters",
    "lr betas weight_decay weight_decouple eps foreach maximize",
    {"kahan_sum": True},
)
def stable_adamw(p: Param, o: Options) -> Iterator[State]:
    """The variance of float16 parameters is float32."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance", "float32" if p.dtype == "float16" else p.dtype)
    if o.kahan_sum and upcast(p.dtype) != p.dtype:
        yield whole(p, "kahan_comp", "residual")


@register(
    "FAdam",
    "fadam.py",
    "momentum and Fisher information, in dtypes of their own: float32 by default",
    "lr betas weight_decay clip p eps maximize eps_2 foreach",
    {"momentum_dtype": "float32", "fim_dtype": "float32"},
)
def fadam(p: Param, o: Options) -> Iterator[State]:
    """The step raises unless ``momentum_dtype`` is what the gradient's and the Fisher information's dtypes promote to."""
    yield whole(p, "momentum", "momentum", o.momentum_dtype)
    yield whole(p, "fim", "variance", o.fim_dtype)


@register(
    "AdaFactor",
    "adafactor.py",
    "a bfloat16 momentum, and a variance factored over the last two dimensions in the gradient's dtype",
    f"lr decay_rate {_DECAY} clip_threshold scale_parameter relative_step warmup_init eps1 eps2 foreach maximize",
    {"betas": (0.9, 0.999), "ams_bound": False, "momentum_dtype": "bfloat16"},
)
def adafactor(p: Param, o: Options) -> Iterator[State]:
    """A first beta of None drops the momentum; the RMS is a tensor only where parameters step one by one."""
    if o.betas[0] is not None:
        yield whole(p, "exp_avg", "momentum", o.momentum_dtype)
    yield from factored(p, p.grad_dtype)
    if o.ams_bound:
        yield whole(p, "exp_avg_sq_hat", "variance", p.grad_dtype)
    if o.foreach is False:
        yield scalar("RMS", "scales", p.dtype)


@register(
    "NovoGrad",
    "novograd.py",
    "a momentum and one number for the gradient's norm",
    f"lr betas {_DECAY} grad_averaging eps maximize foreach",
)
def novograd(p: Param, o: Options) -> Iterator[State]:
    """The second moment is a scalar for each tensor."""
    yield scalar("grads_ema", "variance", p.grad_dtype)
    yield whole(p, "moments", "momentum")


@register(
    "SM3",
    "sm3.py",
    "a momentum, whatever its factor, and one accumulator for each dimension, in the gradient's dtype",
    "lr momentum beta eps maximize foreach",
)
def sm3(p: Param, o: Options) -> Iterator[State]:
    """An accumulator has the elements of its dimension; a scalar has one."""
    yield whole(p, "momentum_buffer", "momentum", p.grad_dtype)
    for side in p.shape or (1,):
        yield State("accumulator", "variance", p.grad_dtype, side)


@register(
    "SCION",
    "scion.py",
    "one momentum in the gradient's dtype",
    "lr momentum constraint norm_type norm_kwargs scale weight_decay weight_decouple foreach maximize",
)
def scion(p: Param, o: Options) -> Iterator[State]:
    """The momentum alone."""
    yield whole(p, "d", "momentum", p.grad_dtype)


@register(
    "SCIONLight",
    "scion.py",
    "nothing: the momentum lives in the gradients, which must not be set to None",
    "lr momentum constraint norm_type norm_kwargs scale weight_decay weight_decouple foreach maximize",
    keeps_gradients=True,
)
def scion_light(p: Param, o: Options) -> Iterator[State]:
    """The step scales the gradients by ``1 - momentum`` and leaves them for the next backward pass to add to."""
    return iter(())


@register(
    "GrokFastAdamW",
    "grokfast.py",
    "Adam's two moments, and the gradients' slow average",
    f"lr betas grokfast_alpha grokfast_after_step {_DECAY} normalize_lr eps foreach maximize",
    {"grokfast": True, "grokfast_lamb": 2.0},
)
def grokfast_adamw(p: Param, o: Options) -> Iterator[State]:
    """The slow average starts as the first gradient."""
    yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
    if o.grokfast and o.grokfast_lamb > 0:
        yield whole(p, "grok_exp_avg", "average", p.grad_dtype)


import memcalc.optimizers._pytorch_optimizer_matrix  # noqa: E402
import memcalc.optimizers._pytorch_optimizer_more  # noqa: E402, F401  the rest, registered with the same helpers
