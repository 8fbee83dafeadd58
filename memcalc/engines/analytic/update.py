"""Clipping and the optimizer's step as a tape: what both make and let go of beyond what is kept, in the order it happens.

The events are those of the step that memcalc runs and traces: torch's ``clip_grad_norm_`` and GradScaler around a library's
own step, or the textbook's step on masters. Numbers may be arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memcalc.arrays import Count
from memcalc.engines.analytic.order import in_order
from memcalc.kernels.reduction import Chip
from memcalc.models import Model
from memcalc.optimizers.base import Param
from memcalc.optimizers.player import Left, Node, Player, chosen, leaves
from memcalc.optimizers.script import in_turn, together
from memcalc.optimizers.step import sections
from memcalc.optimizers.step import step_events as library_events
from memcalc.optimizers.textbook import one_by_one, textbook_events
from memcalc.parallelism.base import Layout, handed
from memcalc.plan import Plan
from memcalc.records import replace
from memcalc.tape.events import Alloc, Buffer, Event, Free, Repeat, allocs, frees, within
from memcalc.tensors import itemsize

FOUND_INF = Buffer("GradScaler found_inf", 4, "temporary")
"""Born as gradients are unscaled, gone when the scale is updated (pytorch torch/amp/grad_scaler.py:update)."""
USUAL = Chip()
"""An H100, whose kernels a step is told with unless the GPU is named."""
OWN_STEP = frozenset({"torch", "fsdp2"})
"""Data-parallel engines under which memcalc's own textbook step updates the masters; others bring theirs."""


def clip_events(plan: Plan, layout: Layout, model: Model, *, chip: Chip = USUAL) -> list[Event]:
    """Clipping the gradients of one step, from backward's end to the optimizer's step; nothing where it clips none.

    Under GradScaler the gradients are unscaled first, and what it has found is alive until the step's end.

    Args:
        plan: the job with every name resolved.
        layout: what a rank holds.
        model: the model whose tensors they are.
        chip: the GPU, which decides what reductions need for a moment; an H100 unless told.
    """
    if not plan.clips or not model.shapes_known:
        return []
    gradients = _gradients(plan, layout, model)
    if own_masters(plan):
        return [*_norms(plan, gradients, None, chip), *_norms(plan, gradients, "float32", chip)]
    return [*(_unscaled() if plan.scheme.scaler else []), *_clipped(gradients)]


def step_events(
    plan: Plan,
    layout: Layout,
    model: Model,
    *,
    chip: Chip = USUAL,
    flattened: Iterable[Event] = (),
) -> list[Event]:
    """One step of the optimizer in a run that is under way; nothing of one that updates each parameter inside backward.

    Where gradients are clipped, ``clip_events`` came before and unscaled, or looked for overflow, in the step's stead.

    Args:
        plan: the job with every name resolved.
        layout: what a rank holds.
        model: the model whose tensors they are.
        chip: the GPU, which decides what reductions need for a moment; an H100 unless told.
        flattened: what happens once an engine has cast and flattened the gradients (``layout.early``: they go).
    """
    if plan.frees_gradients:
        return []  # what its hooks need, update_events says of each parameter in turn
    update = update_events(plan, layout, model, chip)
    if own_masters(plan):
        looked = [] if plan.clips else _norms(plan, _gradients(plan, layout, model), None, chip)
        return [*looked, *flattened, *update]
    cast, step = ([(held.buffer, held.times) for held in some] for some in (layout.cast, layout.step))
    opened = [allocs(*held) for held in (*cast, *step)]
    own = [*opened, *(frees(*held) for held in cast), *flattened, *update, *(frees(*held) for held in reversed(step))]
    return _scaled(plan, own, []) if plan.scheme.scaler else own


def kernels_events(plan: Plan, layout: Layout, model: Model) -> list[Event]:
    """``step_events`` without the casts around it and reductions' staging, and with no clipping's events before it."""
    if plan.steps_alone and model.shapes_known:
        return _each_with_gradient(plan, layout, model)
    update = update_events(plan, layout, model)
    return _scaled(plan, update, [Alloc(FOUND_INF)]) if plan.scheme.scaler and not own_masters(plan) else update


def _each_with_gradient(plan: Plan, layout: Layout, model: Model) -> list[Event]:
    """Every parameter's step inside backward, beside its own gradient and no other."""

    def visit(param: Param, left: Left, key: object) -> tuple[list[Event], Left]:
        born, events, gone = step_alone(plan, param, None)
        return [born, *events, *(() if any(event is gone for event in events) else (gone,))], left

    return Player().walk(stepped(in_order(model, layout.params)), {}, visit, ())[0]


def step_alone(plan: Plan, param: Param, chip: Chip | None) -> tuple[Alloc, list[Event], Free]:
    """(its gradient's birth, what its own step makes and lets go, the gradient's end, which a script may say among these)."""
    gradient = Buffer(f"{param.name} grad", param.numel * itemsize(param.grad_dtype), "gradient")
    born, gone = Alloc(gradient), Free(gradient)
    player = Player(chip)
    player.left[GRADIENT] = (born, gone)
    events = player.run(sections(plan.optimizer, [param], plan.options, plan.implementation), ((1, param),))
    return born, [*events, *player.end()], gone


GRADIENT = "gradient"
"""The name under which a script finds the gradient it is given, so that it may let go of it early."""


def _scaled(plan: Plan, own: Iterable[Event], unscaled: list[Event]) -> list[Event]:
    """GradScaler around an optimizer's step; ``unscaled`` is what clipping, which unscales before it, has left."""
    fused = plan.implementation == "fused"
    looking = unscaled if plan.clips else _checked() if fused else _unscaled()
    # the kernel is handed both and unscales: _step_supports_amp_scaling (torch/amp/grad_scaler.py:step)
    given = [(Buffer("sum of found_inf", 4, "temporary"), 1), (Buffer("grad_scale", 4, "temporary"), 1)] if fused else []
    return [*looking, *within(given[: 1 if plan.clips else 2], own), Free(FOUND_INF)]


def update_events(plan: Plan, layout: Layout, model: Model, chip: Chip | None = None) -> list[Event]:
    """The optimizer's own part of a step, with the casts of gradients that memcalc's textbook step makes around it.

    Without a ``chip`` what reductions need for a moment is left out. Of a model whose shapes are not known one tensor stands
    for many, so that only lists over all of them are told.
    """
    nodes, known = _updated(plan, in_order(model, layout.params)), model.shapes_known
    optimizer, options, form = plan.optimizer, plan.options, plan.implementation
    if plan.in_backward:
        return _one_each(plan, nodes, chip, known=known)
    if own_masters(plan):
        return textbook_events(optimizer, nodes, options, form, _lowered(plan, model), known=known, chip=chip)
    if layout.in_turn:
        return one_by_one(optimizer, nodes, options, form, known=known, chip=chip)
    return library_events(optimizer, nodes, options, form, known=known, chip=chip)


def fills(plan: Plan) -> bool:
    """Whether the optimizer's step gives parameters without a gradient one of zeros; Apex's masters are not looked into."""
    return plan.optimizer.fills and plan.backend in OWN_STEP and not plan.in_backward and not plan.scheme.unscales_to_masters


def _updated(plan: Plan, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """What the step updates: all, where it makes the gradients that are missing, else what has one.

    Where ``zero_grad`` keeps gradients, those of earlier steps are there, and nothing is missing.
    """
    if not fills(plan):
        return stepped(nodes)
    return _given(nodes) if plan.keeps_gradients and not own_masters(plan) else nodes


def _given(nodes: Sequence[Node]) -> tuple[Node, ...]:
    return tuple((times, replace(what, idle=False) if isinstance(what, Param) else _given(what)) for times, what in nodes)


def stepped(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Those that have a gradient: steps and clipping pass over others."""
    return chosen(nodes, lambda param: not param.idle) if any(param.idle for _, param in leaves(nodes)) else nodes


def _one_each(plan: Plan, nodes: Sequence[Node], chip: Chip | None, *, known: bool) -> list[Event]:
    """An instance of the optimizer for every parameter: each takes its step alone."""
    found: list[Event] = []
    for times, what in nodes:
        if isinstance(what, Param):
            own = library_events(plan.optimizer, ((1, what),), plan.options, plan.implementation, known=known, chip=chip)
        else:
            own = _one_each(plan, what, chip, known=known)
        if own:
            found.append(Repeat(times, tuple(own)))
    return found


def own_masters(plan: Plan) -> bool:
    """Whether memcalc's own textbook step updates masters; an engine brings its own, and its layout says what that needs."""
    return plan.scheme.step == "textbook" and plan.backend in OWN_STEP


def _gradients(plan: Plan, layout: Layout, model: Model) -> tuple[Node, ...]:
    """What a rank clips: every gradient of the model in its own dtype, or its pieces of them."""
    setting = plan.setting(model)
    # the masters' own where they have some (apex docs/source/advanced.rst: clip_grad_norm_(amp.master_params(optimizer)))
    main = setting.scheme.main_gradient
    dtypes = {t.name: main if main and setting.master(t) else setting.grad_dtype(t) for t in setting.trainable}
    params = [handed(setting, tensor) for tensor in setting.trainable] if plan.backend == "torch" else list(layout.params)
    found = in_order(model, [replace(param, grad_dtype=dtypes.get(param.name, param.grad_dtype)) for param in params])
    return _updated(plan, found) if plan.keeps_gradients and not own_masters(plan) else stepped(found)


def _norms(plan: Plan, gradients: Sequence[Node], dtype: str | None, chip: Chip | None) -> list[Event]:
    """One norm of each gradient after another, as the textbook's step looks for overflow (its dtype) and clips (float32).

    source: memcalc/runtime/mixed_precision.py:all_finite, total_norm
    """
    return Player(chip).run([in_turn(f"+norm:1{'g' if dtype is None else 'f'} %n -norm")], gradients)


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


def _clipped(gradients: Sequence[Node]) -> list[Event]:
    """torch.nn.utils.clip_grad_norm_ over lists, as it is on CUDA (pytorch 2.13 torch/nn/utils/clip_grad.py).

    Norms are taken dtype by dtype, stacked and reduced to one; its inverse, scaled and clamped, multiplies in place.
    """
    player, events = Player(), []
    dtypes = dict.fromkeys(param.grad_dtype for _, param in leaves(gradients))
    for number, dtype in enumerate(dtypes):
        alike = chosen(gradients, lambda param, dtype=dtype: param.grad_dtype == dtype)  # type: ignore[misc]
        events += player.run([together(f"+norm{number}:1g %norm")], alike)
    size = max((itemsize(dtype) for dtype in dtypes), default=4)
    count: Count = sum((times for times, _ in leaves(gradients)), 0)
    stack, total, added, inverse, coefficient, clamped = (
        Buffer(site, bytes_, "temporary")
        for site, bytes_ in (
            ("norms", count * size), ("total norm", size), ("norm + 1e-6", size), ("its inverse", size), ("coefficient", size),
            ("clamped coefficient", size),
        )
    )  # fmt: skip
    return [
        *events, Alloc(stack), Alloc(total), Free(stack), *player.end(), Alloc(added), Alloc(inverse), Alloc(coefficient),
        Free(inverse), Free(added), Alloc(clamped), Free(coefficient), Free(clamped), Free(total),
    ]  # fmt: skip
