"""The textbook's step around an optimizer: which updates go tensor by tensor, and what each makes and lets go."""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.kernels.reduction import Chip
from memcalc.optimizers.base import Implementation, Optimizer, Options, Param
from memcalc.optimizers.player import Left, Node, Player
from memcalc.optimizers.script import in_turn, together
from memcalc.optimizers.step import step_events
from memcalc.tape.events import Event, frees, outliving

ADAMS = frozenset({"torch.optim.Adam", "torch.optim.AdamW"})
ALL_AT_ONCE = frozenset({"muon.SingleDeviceMuon", "muon.SingleDeviceMuonWithAuxAdam"})
"""Classes whose step fails on a parameter without a gradient, or makes one up, so that their masters cannot take turns."""


def is_textbook_adam(entry: Optimizer, options: Options, form: Implementation) -> bool:
    """Whether a job's Adam is the textbook's: one tensor at a time, no option beyond rates and decoupled decay."""
    plain = not any(options.get(key) for key in ("amsgrad", "maximize", "capturable", "tensor_betas", "foreach", "fused"))
    decoupled = entry.cls == "torch.optim.AdamW" or bool(options.get("decoupled_weight_decay"))
    return entry.cls in ADAMS and form == "single" and plain and (decoupled or not options.weight_decay)


def told_to_take_one(entry: Optimizer) -> bool:
    """Whether the class is one of torch's, told not to choose lists of tensors; others make a list of the one they get."""
    return entry.cls.startswith("torch.optim.") and "foreach" in entry.options


def textbook_events(
    entry: Optimizer,
    nodes: Sequence[Node],
    options: Options,
    form: Implementation,
    lowered: frozenset[str],
    *,
    known: bool = True,
    chip: Chip | None = None,
) -> list[Event]:
    """The update of masters: each gradient cast to its master's dtype, in turn or all at once, and the optimizer's own step.

    source: memcalc/runtime/mixed_precision.py:MixedPrecisionAdam._update, memcalc/runtime/masters.py:MasterWeights._update

    Args:
        entry: the optimizer.
        nodes: the masters, in the model's order.
        options: the resolved options.
        form: the form of the step.
        lowered: names of the parameters that have a master; others are their own, and their gradient is used as it is.
        known: whether each of them is one tensor; else it stands for many of unknown shapes.
        chip: the GPU, as in ``step_events``.
    """
    player = Player(chip)
    if is_textbook_adam(entry, options, form):
        # g, sqrt(v), its quotient; the call's names die with it, the cast before the denominator
        adam = in_turn(lambda param: f"{_cast(param, lowered)} +root +denominator -root -cast -denominator")
        return player.run([adam], nodes) if known else []
    if form == "single" and entry.cls not in ALL_AT_ONCE:
        inner = "single" if told_to_take_one(entry) else entry.implementation(options)
        return one_by_one(entry, nodes, options, inner, lowered, known=known, chip=chip)
    casts = player.run([together(lambda param: _cast(param, lowered))], nodes)
    step = step_events(entry, nodes, options, form, known=known, chip=chip, zeros="temporary")
    filled = [frees(*one) for one in outliving(step, "temporary")]  # of masters: the update gives up their gradients
    return [*casts, *step, *filled, *player.end()]


def one_by_one(
    entry: Optimizer,
    nodes: Sequence[Node],
    options: Options,
    form: Implementation,
    lowered: frozenset[str] = frozenset(),
    *,
    known: bool = True,
    chip: Chip | None = None,
) -> list[Event]:
    """The optimizer's step called for one tensor after another: nothing is left from one to the next, a list is one of one."""
    if not known:
        return []
    player = Player(chip)

    def visit(param: Param, left: Left, key: object) -> tuple[list[Event], Left]:
        born, own = player.turn(in_turn(_cast(param, lowered)).body(param), param, {}, (key, 0))
        died, _ = player.turn(in_turn("-cast").body(param), param, own, (key, 1))
        return [*born, *step_events(entry, ((1, param),), options, form, chip=chip), *died], left

    return player.walk(nodes, {}, visit, ())[0]


def _cast(param: Param, lowered: frozenset[str]) -> str:
    """The gradient in its master's dtype, where one has come."""
    return "+cast" if param.name in lowered and not param.idle else ""
