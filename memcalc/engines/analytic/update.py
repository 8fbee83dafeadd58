"""Clipping and the optimizer's step as a tape: what both make and let go of beyond what is kept, in the order it happens.

The events are those of the step that memcalc runs and traces: torch's ``clip_grad_norm_`` and GradScaler around a library's
own step, or the textbook's step on masters. Numbers may be arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.arrays import Count
from memcalc.engines.analytic.order import in_order
from memcalc.models import Model
from memcalc.optimizers.player import Node, Player, chosen, foreach_norm, leaves
from memcalc.optimizers.script import in_turn, together
from memcalc.optimizers.step import step_events as library_events
from memcalc.optimizers.textbook import textbook_events
from memcalc.parallelism.base import Layout
from memcalc.plan import Plan
from memcalc.reductions import Chip
from memcalc.tape.events import Alloc, Buffer, Event, Free, within
from memcalc.tensors import itemsize

FOUND_INF = Buffer("GradScaler found_inf", 4, "temporary")
"""Born as gradients are unscaled, gone when the scale is updated (pytorch torch/amp/grad_scaler.py:update)."""
OWN_STEP = frozenset({"torch", "fsdp2"})
"""Data-parallel engines under which memcalc's own textbook step updates the masters; others bring theirs."""


def clip_events(
    plan: Plan, layout: Layout, model: Model, max_norm: float | None, *, chip: Chip | None = None
) -> list[Event]:
    """Clipping the gradients of one step, from backward's end to the optimizer's step; nothing without a ``max_norm``.

    Under GradScaler the gradients are unscaled first, and what it has found is alive until the step's end.

    Args:
        plan: the job with every name resolved.
        layout: what a rank holds.
        model: the model whose tensors they are.
        max_norm: what gradients are clipped to.
        chip: the GPU, which decides what reductions need for a moment; an H100 unless told.
    """
    if max_norm is None:
        return []
    nodes = in_order(model, layout.params)
    if plan.scheme.step == "textbook":
        return [*_norms(plan, model, nodes, None, chip), *_norms(plan, model, nodes, "float32", chip)]
    return [*(_unscaled() if plan.scheme.scaler else []), *_clipped(plan, model, nodes)]


def step_events(
    plan: Plan, layout: Layout, model: Model, *, clipped: bool = False, chip: Chip | None = None
) -> list[Event]:
    """One step of the optimizer in a run that is under way.

    Nothing is said of the tensors of a model whose shapes are not known.

    Args:
        plan: the job with every name resolved.
        layout: what a rank holds.
        model: the model whose tensors they are.
        clipped: whether ``clip_events`` came before, which unscales, or looks for overflow, in the step's stead.
        chip: the GPU, which decides what reductions need for a moment; an H100 unless told.
    """
    nodes = in_order(model, layout.params) if model.shapes_known else ()
    optimizer, options, form = plan.optimizer, plan.options, plan.implementation
    if plan.scheme.step == "textbook" and plan.backend in OWN_STEP:
        looked = [] if clipped else _norms(plan, model, nodes, None, chip)
        return [*looked, *textbook_events(optimizer, nodes, options, form, _lowered(plan, model), chip)]
    own = library_events(optimizer, nodes, options, form, chip)
    if not plan.scheme.scaler:
        return own
    if form != "fused":
        return [*([] if clipped else _unscaled()), *own, Free(FOUND_INF)]
    # the kernel is handed both and unscales: _step_supports_amp_scaling (torch/amp/grad_scaler.py:step)
    handed = [(Buffer("sum of found_inf", 4, "temporary"), 1), (Buffer("grad_scale", 4, "temporary"), 1)]
    return [*([] if clipped else _checked()), *within(handed[: 1 if clipped else 2], own), Free(FOUND_INF)]


def _norms(plan: Plan, model: Model, nodes: Sequence[Node], dtype: str | None, chip: Chip | None) -> list[Event]:
    """One norm of each gradient after another, as the textbook's step looks for overflow (its dtype) and clips (float32).

    source: memcalc/runtime/mixed_precision.py:all_finite, total_norm
    """
    setting = plan.setting(model)
    sizes = {tensor.name: itemsize(dtype or setting.grad_dtype(tensor)) for tensor in setting.trainable}
    norm = in_turn("+norm:own %n -norm", own=lambda param: sizes[param.name])
    return Player(chip).run([norm], nodes)


def _lowered(plan: Plan, model: Model) -> frozenset[str]:
    """Names of the parameters that have a master."""
    setting = plan.setting(model)
    return frozenset(tensor.name for tensor in setting.trainable if setting.master(tensor))


def _unscaled() -> list[Event]:
    """The scale inverted in float64, and what is found (torch/amp/grad_scaler.py:unscale_, _unscale_grads_)."""
    double, inverse = Buffer("scale in float64", 8, "temporary"), Buffer("its inverse", 8, "temporary")
    scale = Buffer("inverse scale", 4, "temporary")
    return [
        Alloc(double), Alloc(inverse), Free(double), Alloc(scale), Free(inverse), *_replicated(), Free(scale),
    ]  # fmt: skip


def _checked() -> list[Event]:
    """Overflow looked for, nothing unscaled (torch/amp/grad_scaler.py:_check_inf_per_device)."""
    dummy = Buffer("inverse scale of 1", 4, "temporary")
    return [Alloc(dummy), *_replicated(), Free(dummy)]


def _replicated() -> list[Event]:
    """found_inf, and the copies of both scalars that a device is handed (torch/amp/grad_scaler.py:_MultiDeviceReplicator)."""
    found, scale = Buffer("found_inf", 4, "temporary"), Buffer("inverse scale of the device", 4, "temporary")
    return [Alloc(found), Alloc(FOUND_INF), Alloc(scale), Free(scale), Free(found)]


def _clipped(plan: Plan, model: Model, nodes: Sequence[Node]) -> list[Event]:
    """torch.nn.utils.clip_grad_norm_ over lists, as it is on CUDA (pytorch 2.13 torch/nn/utils/clip_grad.py).

    Norms are taken dtype by dtype, stacked and reduced to one; its inverse, scaled and clamped, multiplies in place.
    """
    setting = plan.setting(model)
    dtypes = {tensor.name: setting.grad_dtype(tensor) for tensor in setting.trainable}
    player, events = Player(), []
    for number, dtype in enumerate(dict.fromkeys(dtypes.values())):
        alike = chosen(nodes, lambda param, dtype=dtype: dtypes[param.name] == dtype)  # type: ignore[misc]
        size = itemsize(dtype)
        norm = together(f"+norm{number}:own", own=lambda param, size=size: size)  # type: ignore[misc]
        events += [*player.run([norm], alike), *foreach_norm(alike)]
    widest = max((itemsize(dtype) for dtype in dtypes.values()), default=4)
    count: Count = sum((times for times, _ in leaves(nodes)), 0)
    stack, total, coefficient, clamped = (
        Buffer(site, size, "temporary")
        for site, size in (("norms", count * widest), ("total norm", widest), ("coefficient", widest), ("clamped", widest))
    )
    inside = [(Buffer(site, widest, "temporary"), 1) for site in ("norm + 1e-6", "its inverse")]
    born, died = within(inside)[:2], within(inside)[2:]
    return [
        *events, Alloc(stack), Alloc(total), Free(stack), *player.end(), *born, Alloc(coefficient), *died, Alloc(clamped),
        Free(coefficient), Free(clamped), Free(total),
    ]  # fmt: skip
