"""pytorch-optimizer: what a step holds at its worst moment, against the real classes, in lists and in turn."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the oracle runs real optimizers")
library = pytest.importorskip("pytorch_optimizer", reason="the oracle is the library's own classes")

from memcalc.optimizers._pytorch_optimizer_steps import COPIES  # noqa: E402
from memcalc.optimizers.names import all_optimizers, find_optimizer  # noqa: E402
from memcalc.optimizers.step import step_bytes  # noqa: E402
from tests.optimizers.peak import SCALARS, dispatched_peak  # noqa: E402
from tests.optimizers.walk import assert_held_as_promised, described, parameters, take_steps  # noqa: E402

UNEQUAL = [[(100,), (3500,), (750,), (2000,)], [(60, 40), (20, 80), (10, 35), (5, 30, 9)]]
"""Large enough that a 0-dim constant is not mistaken for one of them, and in no order of size."""
BEGINS = 7
"""Steps after which a class that rectifies has begun to; the others do from the second what they go on doing."""
SWITCHED = [
    ("AdaBelief", {"rectify": True}),
    ("AdaBelief", {"ams_bound": True}),
    ("Lamb", {"rectify": True}),
    ("Lamb", {"weight_decay": 0.1, "weight_decouple": False}),
    ("Lion", {"weight_decay": 0.1, "maximize": True}),
    ("AdaPNM", {"ams_bound": False}),
    ("Adan", {"max_grad_norm": 1.0, "weight_decay": 0.1}),
]


def large(nbytes):
    """A buffer counts if it is no 0-dim constant."""
    return nbytes if nbytes > SCALARS else 0


def build(cls, params, **arguments):
    optimizer = getattr(library, cls)(params, **arguments)
    if "ScheduleFree" in cls:
        optimizer.train()
    return optimizer


def check(cls, arguments, dtype, shapes):
    """One class in each form of its step."""
    entry = find_optimizer(f"pytorch-optimizer:{cls}")
    forms = [{"foreach": True}, {"foreach": False}] if len(entry.implementations) > 1 and cls != "EXAdam" else [{}]
    for form in [{}] if cls == "Grams" else forms:
        params = parameters(shapes, dtype)
        optimizer = build(cls, params, **arguments, **form)
        rectifies = "RAdam" in cls or cls == "Ranger" or "rectify" in arguments
        take_steps(optimizer, params, BEGINS if rectifies else 2)
        options = entry.resolve({**arguments, **form})
        assert dispatched_peak(optimizer.step) == step_bytes(entry, described(params), options, large), (form, shapes)


@pytest.mark.parametrize(
    ("cls", "dtype"), [(cls, dtype) for cls in sorted(COPIES) for dtype in (torch.float32, torch.bfloat16)]
)
def test_step_temporaries_equal_the_real_ones(cls, dtype):
    """The operators' results alive at the worst moment of a step are the registry's, in any order of sizes."""
    for shapes in UNEQUAL if dtype == torch.float32 else UNEQUAL[:1]:
        check(cls, {}, dtype, shapes)


@pytest.mark.parametrize(("cls", "arguments"), SWITCHED)
def test_step_temporaries_with_options(cls, arguments):
    """The switches that send a class from lists to single tensors, and some that change nothing."""
    check(cls, arguments, torch.float32, UNEQUAL[0])


def test_lamb_keeps_its_norms_apart_when_it_rectifies():
    """Rectification takes tensors in turn, and each then owns its three norms."""
    params = parameters([(4, 5), (7,)])
    optimizer = build("Lamb", params, rectify=True)
    take_steps(optimizer, params, BEGINS)
    assert_held_as_promised(optimizer, params, find_optimizer("pytorch-optimizer:Lamb"), {"rectify": True})


def test_only_measured_steps_are_claimed():
    """Every class of the table is an entry, and an entry outside it says None."""
    entries = {name.split(":")[1]: entry for name, entry in all_optimizers().items() if name.startswith("pytorch-optimizer:")}
    assert set(COPIES) <= set(entries)
    assert {cls for cls, entry in entries.items() if entry.temporaries is not None} == set(COPIES)
