"""torch.optim 2.13. On CUDA every class but Adafactor, Muon, SparseAdam and LBFGS takes its foreach path by default.

State follows the parameter's dtype (SGD's and Adafactor's follow the gradient's); ``step`` scalars are float32 and live on
the host unless fused or capturable (torch/optim/optimizer.py:_get_scalar_dtype, adam.py:_init_group).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer

FOREACH = {"foreach": None, "fused": None, "capturable": False}


def step_scalar(options: Options) -> State:
    """The float32 step counter: host memory unless the fused or capturable path keeps it beside the parameter."""
    on_device = bool(options.get("fused")) or bool(options.get("capturable"))
    return State("step", "step", "float32", 1, place="device" if on_device else "host")


def _adam_temporaries(param: Param, options: Options, implementation: Implementation) -> Iterable[Temporary]:
    if implementation == "foreach":
        # torch/optim/adam.py:_multi_tensor_adam, exp_avg_sq_sqrt list; weight_decay reuses it after device_grads is freed
        yield Temporary("exp_avg_sq_sqrt", param.nbytes, "sum")
    if implementation == "single":
        # torch/optim/adam.py:_single_tensor_adam, the previous parameter's denom survives beside sqrt and div
        yield Temporary("denom", 3 * param.nbytes, "max")


@optimizer(
    "torch:Adam",
    cls="torch.optim.Adam",
    summary="momentum and variance in the parameter's dtype",
    source="torch 2.13.0 torch/optim/adam.py:_init_group",
    options={**FOREACH, "amsgrad": False, "weight_decay": 0.0},
    ignored={"decoupled_weight_decay"},
    implementations=("foreach", "fused", "single"),
    temporaries=_adam_temporaries,
)
def adam(p: Param, o: Options) -> Iterator[State]:
    """Two moments (three with amsgrad) and a step counter."""
    yield step_scalar(o)
    yield State("exp_avg", "momentum", p.dtype, p.numel)
    yield State("exp_avg_sq", "variance", p.dtype, p.numel)
    if o.amsgrad:
        yield State("max_exp_avg_sq", "variance", p.dtype, p.numel)
