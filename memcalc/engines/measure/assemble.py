"""From a loop that has run to a rank's record: components by walking and by counting, and why the two differ."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import rounded
from memcalc.engines.measure.loop import Loop
from memcalc.engines.measure.meter import main_counter
from memcalc.engines.measure.walked import HOST
from memcalc.measurement import Attention, Component, Iteration, Phase, Rank, Tensor, component_sums
from memcalc.units import MIB


def assemble(loop: Loop) -> Rank:
    """The record of one rank, as far as the loop came."""
    question = loop.question
    tensors = loop.rows.tensors()
    parts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.component == "optimizer_states":
            parts[tensor.part] = parts.get(tensor.part, 0) + tensor.nbytes
    return Rank(
        index=question.here.rank, device=question.place, init=loop.init, iterations=loop.iterations, tensors=tensors,
        components=components(loop, tensors), optimizer_states=parts,
        attention=attention(loop), warnings=list(warnings(loop)),
    )  # fmt: skip


def components(loop: Loop, tensors: list[Tensor]) -> dict[str, Component]:
    """Every component found or counted."""
    walked = component_sums(tensors)
    counted = _counted(loop, walked)
    names = dict.fromkeys([*walked, *counted])
    if tensors:
        for kept in ("parameters", "gradients", "master_parameters", "optimizer_states", "buffers"):
            names.setdefault(kept)
            walked.setdefault(kept, 0)
    shown = {name: Component(walked=walked.get(name), counted=c, allocated=a) for name in names
             for c, a in [counted.get(name, (None, None))]}  # fmt: skip
    return {
        name: each.model_copy(update={"reason": _reason(loop, name, shown), "unsplit": unsplit(name, each, tensors)})
        for name, each in shown.items()
    }


def unsplit(name: str, component: Component, tensors: Iterable[Tensor]) -> str:
    """What ``allocated`` has beyond each tensor rounded to 512 B, and which tensors can have it.

    A block over 1 MiB keeps a rest of at most 1 MiB that is not worth splitting off, so only tensors above that size have one.

    source: pytorch c10/cuda/CUDACachingAllocator.cpp:should_split (kSmallSize = 1 MiB)
    """
    mine = [tensor for tensor in tensors if tensor.component == name]
    if component.allocated is None or component.counted is None or component.counted != component.walked:
        return ""
    beyond = component.allocated - sum(int(rounded(tensor.nbytes)) for tensor in mine)
    if not beyond:
        return ""
    large = sorted((tensor for tensor in mine if tensor.nbytes > MIB), key=lambda tensor: -tensor.nbytes)
    names = ", ".join(tensor.name for tensor in large[:MOST]) + (f" and {len(large) - MOST} more" if len(large) > MOST else "")
    within = "within" if 0 < beyond <= MIB * len(large) else "NOT within"
    said = f"{beyond:,} B beyond rounding, {within} 1 MiB for each of {len(large)} tensors over 1 MiB"
    return f"{said}: {names}" if names else said


MOST = 8
"""Tensors named before the rest are counted."""


Pair = tuple[int | None, int | None]
"""(the main counter, whole blocks)."""


def _counted(loop: Loop, walked: dict[str, int]) -> dict[str, Pair]:
    """What the counters say of each stretch in which something is born, less what is born with it and was walked."""
    on_cpu = loop.question.device == "cpu"
    host = walked.get(HOST, 0) if on_cpu else 0  # a CPU's counter cannot tell a host state from any other
    found: dict[str, Pair] = {}
    made_of: dict[str, tuple[str, ...]] = {"parameters": ("model",), "inputs": ("inputs",), "communication": ("data_parallel",)}
    if loop.question.here.size == 1:
        del made_of["communication"]
    elif loop.question.plan.backend == "fsdp2":
        made_of = {"parameters": ("model", "data_parallel"), "inputs": ("inputs",)}  # whole first, and then one piece of it
    for component, parts in made_of.items():
        phases = [phase for phase in loop.init if phase.what in parts]
        if len(phases) == len(parts):
            found[component] = _less(change(phases), walked.get("buffers", 0) if component == "parameters" else 0)
    made, stepped = _init(loop.init, "optimizer"), _first_step(loop.iterations)
    if made is not None and stepped is not None:
        masters = walked.get("master_parameters", 0)
        if loop.question.plan.optimizer.born == "init":
            found["optimizer_states"] = _less(change([made, stepped]), masters + host)
        else:
            found["master_parameters"] = change([made])
            # born inside the first backward, beside gradients that are gone by its end
            where = span(loop.iterations[0].phases) if loop.question.plan.in_backward else change([stepped])
            found["optimizer_states"] = _less(where, host)
    steady = _steady(loop)
    if steady is not None:
        found["gradients"] = span([p for p in steady.phases if p.phase in ("forward", "loss", "backward")])
        first = [p for p in steady.phases if p.phase in ("forward", "loss") and not p.micro_batch]
        found["activations"] = _less(span(first), loop.copies or 0)
    if loop.copies is not None and loop.question.plan.scheme.copy is not None:
        found["parameter_copies"] = (loop.copies, None)
    return found


def change(phases: Iterable[Phase]) -> Pair:
    """How the counters changed over stretches that need not follow each other."""
    pairs = [span([phase]) for phase in phases]
    return _sum(first for first, _ in pairs), _sum(second for _, second in pairs)


def span(phases: list[Phase]) -> Pair:
    """How the counters changed from the start of the first phase to the end of the last."""
    start, end = phases[0].start, phases[-1].end
    return _difference(main_counter(start), main_counter(end)), _difference(start.allocated, end.allocated)


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _difference(start: int | None, end: int | None) -> int | None:
    return None if start is None or end is None else end - start


def _less(pair: Pair, amount: int) -> Pair:
    return (None if pair[0] is None else pair[0] - amount, None if pair[1] is None else pair[1] - amount)


def _init(phases: Iterable[Phase], what: str) -> Phase | None:
    return next((phase for phase in phases if phase.what == what), None)


def _first_step(iterations: Iterable[Iteration]) -> Phase | None:
    """The optimizer's step in the first iteration that took it."""
    for iteration in iterations:
        if not iteration.skipped:
            return next((phase for phase in iteration.phases if phase.phase == "optimizer_step"), None)
    return None


def _steady(loop: Loop) -> Iteration | None:
    """The last iteration; the first where gradients are zeroed rather than dropped, for they are born there."""
    if not loop.iterations:
        return None
    return loop.iterations[-1 if loop.question.settings.set_to_none else 0]


def _reason(loop: Loop, name: str, shown: dict[str, Component]) -> str:
    """Why walking and counting differ, where that is known."""
    off = _off(shown.get(name))
    if not off:
        return ""
    plan, settings, on_cuda = loop.question.plan, loop.question.settings, loop.question.device == "cuda"
    if name in ("master_parameters", "optimizer_states"):
        other = _off(shown.get("optimizer_states" if name == "master_parameters" else "master_parameters"))
        if other == -off:
            return "tables that all parameters share are born with the optimizer, not in its first step"
    if plan.scheme.scaler and abs(off) <= SCALARS:
        return "GradScaler's own scalars are born and freed in between"
    if name == "optimizer_states" and on_cuda:
        return "the step's first call also allocates what its kernels and reductions keep for later"
    if name == "gradients" and on_cuda and not settings.set_to_none:
        return "the first backward also allocates cuBLAS workspaces"
    if plan.backend == "deepspeed":
        return "DeepSpeed makes its flat buffers with the engine, and gives gradients up inside its step"
    if plan.backend == "fsdp2" and loop.question.here.size > 1:
        return "gathered and reduced copies are born and freed around each group"
    if name == "parameters":
        return "building the model keeps more than its parameters and buffers"
    return "not explained"


SCALARS = 12
"""Bytes of GradScaler's scale, growth tracker and found_inf."""


def _off(component: Component | None) -> int:
    """Counted less walked; 0 where one of them is not known."""
    if component is None or component.walked is None or component.counted is None:
        return 0
    return component.counted - component.walked


def attention(loop: Loop) -> Attention | None:
    """The kernel that ran; None before anything did."""
    if not loop.iterations:
        return None
    asked, seen = loop.question.job.training.attention, loop.meter.attention()
    kernels = {
        kernel
        for name in seen
        for word, kernel in (("flash", "flash"), ("efficient", "efficient"), ("cudnn", "cudnn"), ("math", "math"))
        if f"attention_{word}" in name or (word == "flash" and "flash_attention" in name)
    }
    taken = "+".join(sorted(kernels)) or None
    if taken is None and asked in ("eager", "math"):
        taken = asked
    elif taken is None and loop.kernels is not None:
        taken = "math" if loop.kernels == "sdpa" else loop.kernels  # sdpa without a kernel of its own is plain operators
    return Attention(asked=asked, taken=taken, operators=seen)


def warnings(loop: Loop) -> Iterable[str]:
    """What a reader of the record should know."""
    if hasattr(loop, "step"):
        yield from loop.step.notes
    if loop.without_gradient:
        names = ", ".join(loop.without_gradient[:3])
        more = len(loop.without_gradient) - 3
        yield f"the loss does not depend on {names}{f' and {more} more' if more > 0 else ''}: no gradient and no state"
    lost = [iteration.index for iteration in loop.iterations if iteration.loss is None]
    if lost:
        yield f"the loss was not finite in iteration {', '.join(map(str, lost))}"
    skipped = [iteration.index for iteration in loop.iterations if iteration.skipped]
    if skipped:
        yield f"loss scaling left out the step of iteration {', '.join(map(str, skipped))}"
