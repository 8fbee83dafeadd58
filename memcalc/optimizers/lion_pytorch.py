"""lion-pytorch 0.2.5: one momentum in the parameter's dtype, and no step counter."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import asked, live, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer
from memcalc.optimizers.script import Section, in_turn, together
from memcalc.tensors import ITEMSIZE


def _cautious(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """The update, a mask of bools, a table of ones and the scale; the last tensor's update, mask and scale stay bound."""
    mask = p.numel * ITEMSIZE["bool"]
    if o.cautious_factor < 1:
        yield from live("scale", p.nbytes, 3, 1)
        yield Temporary("mask", mask, "max", moment="scale")
        yield from live("momentum", p.nbytes, 2, 2)  # lion's own clone and sum
        yield Temporary("mask", mask, "previous", moment="momentum")
    else:
        yield from live("scale", p.nbytes, 2, 1)
    if o.cautious_wd and asked(o, "weight_decay") and o.cautious_factor < 1:
        # the decay's own mask as float32, scaled, and taken from one
        yield from live("decay", 2 * p.nbytes + mask + 3 * p.numel * ITEMSIZE["float32"])
    elif o.cautious_wd and asked(o, "weight_decay"):
        yield from live("decay", p.nbytes + 3 * p.numel * ITEMSIZE["float32"])


def _cautious_script(o: Options, form: Implementation) -> list[Section] | None:
    if o.cautious_wd and asked(o, "weight_decay"):
        return None
    masked = "+agreed +mask:nb -agreed +ones +scalar:1p +scale -scalar -ones +mean:1p %n +clamped:1p -mean -clamped"
    return [in_turn(f"+clone +update -clone {masked if o.cautious_factor < 1 else ''}")]


@optimizer(
    "lion-pytorch:Lion",
    cls="lion_pytorch.Lion",
    summary="one momentum in the parameter's dtype",
    source="lion-pytorch 0.2.5 lion_pytorch/lion_pytorch.py:16-30 (update_fn), 67-110 (Lion.step)",
    constructor=words("lr betas weight_decay use_triton decoupled_weight_decay"),
    # the clone scaled in place, then its sum with the gradient
    script=lambda o, form: [in_turn("+clone +sum -clone -sum")],
)
@optimizer(
    "lion-pytorch:Lion+foreach",
    cls="lion_pytorch.foreach.Lion",
    summary="one momentum in the parameter's dtype, stepped over lists",
    source="lion-pytorch 0.2.5 lion_pytorch/foreach.py:42-102 (Lion.step)",
    constructor=words("lr betas weight_decay decoupled_weight_decay"),
    implementations=("foreach",),
    script=lambda o, form: [together("+clone")],  # of every momentum
)
@optimizer(
    "lion-pytorch:Lion+cautious",
    cls="lion_pytorch.cautious_lion.Lion",
    summary="one momentum in the parameter's dtype, updates masked by the gradient's sign",
    source="lion-pytorch 0.2.5 lion_pytorch/cautious_lion.py:42-100 (Lion.step)",
    options={"cautious_factor": 0.0, "cautious_wd": False, "weight_decay": 0.0},
    constructor=words("lr betas decoupled_weight_decay"),
    temporaries=_cautious,
    script=_cautious_script,
)
def lion(p: Param, o: Options) -> Iterator[State]:
    """The momentum alone."""
    yield whole(p, "exp_avg", "momentum")
