"""The footprint of a model that is run and not trained: its parameters, its cache, and what a forward holds besides."""

from __future__ import annotations

from dataclasses import asdict

from memcalc.allocator.settings import asked_settings
from memcalc.arrays import Count, rounded
from memcalc.behaving import Assumed, behaviour_of
from memcalc.engines.analytic.evaluating import Forwards, play_forwards, tape_of
from memcalc.engines.analytic.explain import PLAYED, held_by_role
from memcalc.engines.analytic.peak import read_tapes
from memcalc.engines.analytic.static import Account
from memcalc.engines.analytic.step import family_of
from memcalc.engines.analytic.whole import Whole
from memcalc.errors import NotModelledError
from memcalc.families.base import load_family
from memcalc.footprint import Components, Footprint, Held, Peak, Rank
from memcalc.inference import Asked, asked_of, check_inference, told_of
from memcalc.job import Job
from memcalc.models import Model
from memcalc.parallelism.base import Layout
from memcalc.parallelism.engines import layouts
from memcalc.plan import Plan, make_plan
from memcalc.plan_checks import check_settings
from memcalc.positions import check_positions
from memcalc.records import replace
from memcalc.tape.events import COMPONENTS, Mark, Role, allocs
from memcalc.tape.fold import fold
from memcalc.units import checked_bytes

HELD: tuple[Role, ...] = ("parameter", "buffer")
"""What of a layout for training is there where nothing trains."""
ITERATIONS = 2


def estimate_forward(job: Job, model: Model, *, replayed: bool = True, explained: bool = False) -> Whole:
    """The footprint of one forward; see :func:`memcalc.engines.analytic.estimate.estimate_whole`.

    Raises:
        InputError: keys of training, or of another mode.
        NotModelledError: several ranks.
    """
    from memcalc.engines.analytic.estimate import component_bytes, number, phases_of, states_of, summary_of

    check_inference(job)
    plan = make_plan(job)
    ignored = check_settings(job, model)
    check_positions(job, model)
    both = model.config is not None and "source_length" in load_family(model.family).inputs
    asked = asked_of(job, model.config, both=both)
    account = kept(plan, model)
    checked_bytes(number(account.by_bound.stretch.top), "states")
    components = Components(**{**component_bytes(account), "cache": None if asked.kind else 0})
    footprint = Footprint(
        model=summary_of(model),
        job=told_of(job, asked, plan), engine="analytic", components=components, optimizer_states={},
        peak=Peak(low=number(account.by_rounded.stretch.top)), states=states_of(account), phases=phases_of(account),
        host={"optimizer_states": 0},
        ranks=(Rank(account.layout.index, 1, None, number(account.by_rounded.stretch.top)),),
        assumptions=(*model.assumptions, *account.layout.notes, *asked.assumptions), warnings=tuple(ignored),
        buffers=tuple(_kept_buffers(account)),
    )  # fmt: skip
    if job.scope == "states":
        return Whole(_per_parameter(footprint))
    whole = _whole(job, asked, plan, model, account, footprint, replayed=replayed, explained=explained)
    return replace(whole, footprint=_per_parameter(whole.footprint))


def kept(plan: Plan, model: Model) -> Account:
    """Parameters and buffers, for good."""
    layout: Layout = layouts(plan.setting(model), plan.backend, 1)[0]
    resident = tuple(held for held in layout.resident if held.buffer.role in HELD)
    layout = Layout(resident, (), (), (), (), (), notes=layout.notes)
    tape = [Mark("forward"), *(allocs(held.buffer, held.times) for held in resident)]
    return Account(layout, tape, ())


def forwards_of(job: Job, plan: Plan, model: Model, *, count: int = 1) -> tuple[Forwards, Assumed]:
    """The forwards of a job, and what they were assumed to run on.

    Raises:
        NotModelledError: they cannot be played.
    """
    if model.root is None or model.architecture is None:
        raise NotModelledError(
            "model", model.name, "is known by its tensors alone", "name an architecture, or use engine trace"
        )
    assumed = behaviour_of(job, read=False)
    asked = asked_of(job, model.config)
    return play_forwards(job, asked, plan, model, family_of(model, trains=False), assumed.behaviour, count=count), assumed


def top_of(job: Job, plan: Plan, model: Model, account: Account) -> Count:
    """The forward's peak in blocks of 512 B, of a job or of many."""
    forwards, _ = forwards_of(job, plan, model)
    return fold(tape_of(account.layout.resident, forwards), rounded).stretch.top


def _whole(
    job: Job, asked: Asked, plan: Plan, model: Model, account: Account, footprint: Footprint, *, replayed: bool, explained: bool
) -> Whole:
    """With the peak, where the forward can be played; else as it is, with the reason."""
    try:
        forwards, assumed = forwards_of(job, plan, model)
        steps = tape_of(account.layout.resident, forwards_of(job, plan, model, count=ITERATIONS)[0])
    except NotModelledError as error:
        said = f"the peak of the forward is not modelled: {error}; peak.low is what the parameters alone take"
        return Whole(replace(footprint, warnings=(*footprint.warnings, said)))
    tape = tape_of(account.layout.resident, forwards)
    if explained:
        listed = {COMPONENTS[role] for role in PLAYED}
        kept_for_good = (held for held in footprint.buffers if held.component not in listed)
        footprint = replace(footprint, buffers=(*kept_for_good, *held_by_role(tape)))
    return read_tapes(footprint, tape, steps, assumed, forwards.assumed, asked_settings(job), replayed=replayed)


def _kept_buffers(account: Account) -> list[Held]:
    return [
        Held(COMPONENTS[held.buffer.role], held.buffer.site, int(held.buffer.requested), int(held.times), "device", "always")
        for held in account.layout.resident
        if int(held.times) and int(held.buffer.requested)
    ]


def _per_parameter(footprint: Footprint) -> Footprint:
    count = footprint.model.num_parameters
    sizes = asdict(footprint.components)
    each = {name: None if size is None else round(size / count, 6) for name, size in sizes.items()}
    return replace(footprint, bytes_per_parameter=each)
