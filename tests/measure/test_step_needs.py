"""What a step needs for a moment: the tape's buffers against the optimizers' own fold, and against the real textbook step."""

from __future__ import annotations

import random
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcalc.engines.analytic.needs import alive_at_the_top, step_needs
from memcalc.engines.analytic.static import account
from memcalc.job import read_job
from memcalc.models import Model
from memcalc.optimizers.step import step_bytes
from memcalc.parallelism.engines import layouts
from memcalc.plan import make_plan
from memcalc.tape.events import Alloc, Buffer, Event, Free, Repeat
from memcalc.tape.unroll import unroll
from memcalc.tensors import Tensor

SHAPES = [(7, 130), (64, 48), (48,), (3, 5, 11), (64, 48), (1000,), (2, 3)]


def model(shapes=SHAPES) -> Model:
    return Model("m", "m", tuple(Tensor(f"w{i}", shape, kind="linear") for i, shape in enumerate(shapes)))


def planned(known: Model, **keys):
    plan = make_plan(read_job({"model": "m", **keys}))
    (layout,) = layouts(plan.setting(known), plan.backend, 1)
    return plan, layout


@pytest.mark.parametrize("form", [{}, {"foreach": False}])
@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        ("adam", {}),
        ("adam", {"maximize": True, "weight_decay": 0.1}),
        ("torch:RAdam", {"maximize": True}),
        ("torch:Rprop", {}),
        ("torch:SGD", {"momentum": 0.9, "nesterov": True, "maximize": True}),
        ("torch:Adafactor", {}),
    ],
)
def test_the_tape_needs_what_the_optimizer_s_own_fold_says(optimizer, arguments, form):
    """The buffers that explain the step's highest instant come to what the fold says that the optimizers are tested with."""
    plan, layout = planned(model(), optimizer=optimizer, optimizer_args={**arguments, **form}, precision="fp32")
    live = step_needs(plan, layout, model())
    worst = sum(int(buffer.requested) * int(times) for buffer, times in live)
    assert worst == step_bytes(plan.optimizer, layout.params, plan.options) > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_real_textbook_step_needs_what_is_predicted(precision, optimizer):
    """What a real MixedPrecisionAdam step allocates at its peak is the predicted cast and denominators, to the byte."""
    torch = pytest.importorskip("torch", reason="the oracle is a real step")
    from memcalc.runtime.live import LiveBytes
    from memcalc.runtime.mixed_precision import MixedPrecisionAdam

    known = model()
    plan, layout = planned(known, optimizer=optimizer, precision=precision)
    counted = account(plan, layout, known).by_requested.stretch
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in SHAPES]
    step = MixedPrecisionAdam(params, weight_decay=0.01 if optimizer == "adamw" else 0.0)
    with LiveBytes() as live:
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            live.reset_peak()
            before = live.live
            step.step()
    kept = sum(counted.role_top[role] for role in ("parameter", "master_parameter", "gradient", "optimizer_state"))
    # the scalars of the norms are freed before the update and are smaller than it
    assert live.peak - before == counted.phase_top["optimizer_step"] - kept == 3 * 4 * 64 * 48


@given(st.integers(0, 2**32))
def test_a_repetition_is_not_written_out_to_find_the_top(seed):
    """Nested repetitions give the buffers, in the order, that the tape written out event by event gives."""
    draw = random.Random(seed)
    buffers = [Buffer(f"b{at % 4}", draw.choice((0, 1, 2, 3, 5)), draw.choice(("temporary", "gradient"))) for at in range(6)]

    def drawn(depth: int) -> list[Event]:
        return [
            Repeat(draw.randrange(4), tuple(drawn(depth - 1)))
            if depth and draw.random() < 0.4
            else draw.choice((Alloc, Alloc, Free))(draw.choice(buffers))
            for _ in range(draw.randrange(5))
        ]

    tape = drawn(3)
    events = [event for event in unroll(tape) if event.buffer.role != "gradient"]
    totals = list(accumulate((e.buffer.requested if isinstance(e, Alloc) else -e.buffer.requested for e in events), initial=0))
    end = totals.index(max(totals))
    live = Counter()
    for event in events[:end]:
        live[id(event.buffer)] += 1 if isinstance(event, Alloc) else -1
    first = list(dict.fromkeys(id(event.buffer) for event in events[:end]))
    known = {id(buffer): buffer for buffer in buffers}
    alike = {}
    for key in first:
        if live[key]:
            name = known[key].site, known[key].requested
            alike[name] = alike.get(name, 0) + live[key]
    assert [((buffer.site, buffer.requested), times) for buffer, times in alive_at_the_top(tape)] == list(alike.items())
