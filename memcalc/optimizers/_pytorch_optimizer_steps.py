"""pytorch-optimizer 4.1.0: what the steps of the classes over whole tensors hold at their worst moment.

Found by running each class over lists and in turn, in float32 and bfloat16, over sizes in many orders, and by turning every
switch and number of its constructor; only ``rectify`` and ``ams_bound`` below made a difference. A class whose step depends
on its values (AdaNorm scales a gradient only where its norm falls) or on shapes (the factored and the matrix ones) is absent.
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import Pairs, asked, live
from memcalc.optimizers.base import Implementation, Options, Param, TemporariesOf, Temporary
from memcalc.tensors import itemsize

_ONE: Pairs = ((1, 1),)
_TWO: Pairs = ((2, 1), (1, 2))

COPIES: dict[str, tuple[tuple[int, int], Pairs]] = {
    # class: ((copies of every tensor of a list, of the largest besides), (of the current, of the previous) in turn)
    **dict.fromkeys(("AdaBound", "AdaMod", "AdamS", "Adan", "DiffGrad", "GrokFastAdamW", "LaProp"), ((1, 0), _ONE)),
    **dict.fromkeys(("Lion", "PAdam", "PNM", "RAdam", "Ranger", "ScheduleFreeRAdam"), ((1, 0), _ONE)),
    **dict.fromkeys(("ADOPT", "AdamG"), ((2, 0), _ONE)),
    **dict.fromkeys(("AdEMAMix", "AdaBelief", "AdaDelta", "AdaPNM", "Kate"), ((2, 0), _TWO)),
    **dict.fromkeys(("AccSGD", "LARS", "ScheduleFreeSGD"), ((0, 0), ((0, 0),))),
    **dict.fromkeys(("AdaMax", "Lamb", "Tiger"), ((1, 0), ((1, 0),))),
    **dict.fromkeys(("Gravity", "ScheduleFreeAdamW"), ((2, 0), ((2, 1),))),
    "AdaSmooth": ((3, 0), ((6, 0),)),
    "Adai": ((4, 0), ((5, 1), (3, 3))),
    "AdamC": ((2, 0), ((2, 0),)),
    "Aida": ((4, 0), ((4, 1), (1, 4))),
    "Ano": ((5, 0), ((4, 0), (3, 2))),
    "ApolloDQN": ((4, 0), ((4, 0),)),
    "AvaGrad": ((2, 0), ((2, 2),)),
    "EXAdam": ((0, 0), ((5, 1), (4, 2))),
    "FAdam": ((3, 0), ((3, 0),)),
    "FOCUS": ((3, 0), ((3, 1),)),
    "Grams": ((0, 0), ((3, 0),)),
    "NovoGrad": ((0, 1), ((1, 0),)),
}
WIDENS = frozenset({"FAdam"})
"""Those whose copies are float32 whatever the parameter is."""


def steps_of(cls: str) -> TemporariesOf | None:
    """The needs of a class's step; None where they have not been measured."""
    if cls not in COPIES:
        return None
    (every, largest), in_turn = COPIES[cls]

    def temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
        nbytes = p.numel * itemsize("float32" if cls in WIDENS else p.dtype)
        rectified = asked(o, "rectify")
        alone = cls == "AdaBelief" and (rectified or asked(o, "ams_bound"))  # adabelief.py:_can_use_foreach
        if cls == "Lamb" and rectified:  # a clone of the parameter and a denominator, one tensor at a time
            yield from live("0", nbytes, 2)
        elif implementation == "foreach" and not alone:
            yield Temporary("update", nbytes, "sum", count=every)
            yield Temporary("update", nbytes, "max", count=largest)
        else:
            for moment, (current, previous) in enumerate(in_turn):
                yield from live(str(moment), nbytes, current, previous)

    return temporaries
