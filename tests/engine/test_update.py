"""Clipping and the optimizer's step: the analytic engine's tape against the trace's own, event by event."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is the trace of the real classes")

from memcalc.arrays import rounded
from memcalc.engines.analytic.update import clip_events, step_events, update_events
from memcalc.job import read_job
from memcalc.models import Model
from memcalc.optimizers.base import Param
from memcalc.optimizers.names import find_optimizer
from memcalc.optimizers.step import step_bytes
from memcalc.parallelism.engines import layouts
from memcalc.plan import make_plan
from memcalc.tape.events import Alloc, Repeat
from memcalc.tape.fold import fold, requested
from memcalc.tape.unroll import unroll
from memcalc.tensors import Span, Tensor
from tests.engine.tapes import both

MIXED = [(7, 3), (11,), (5, 4), (13,), (3, 4, 5), (400, 500)]
"""Vectors between matrices, and one tensor whose norm is taken by several blocks."""
LAYERS = {"model": "py:tests.engine.tapes:Layers"}


@pytest.mark.parametrize(
    ("optimizer", "precision", "arguments", "norm"),
    [
        ("adamw", "fp16", {}, 1.0),
        ("adamw", "bf16", {"foreach": True}, None),
        ("adamw", "amp-fp16", {}, None),
        ("adamw", "amp-fp16", {"fused": True}, 1.0),
        ("adam", "fp32", {"foreach": False, "weight_decay": 0.1, "maximize": True}, None),
        ("torch:Adafactor", "bf16-pure", {}, 1.0),
        ("came", "fp32", {}, None),
        ("adafactor", "bf16", {}, None),
    ],
)
def test_the_tape_is_the_trace_s(optimizer, precision, arguments, norm):
    """Every allocation and free of a clip and a step, in order, is the one that the real class makes."""
    keys = {"optimizer": optimizer, "precision": precision, "optimizer_args": arguments, "max_grad_norm": norm}
    if optimizer in ("came", "adafactor"):
        pytest.importorskip({"came": "came_pytorch", "adafactor": "transformers"}[optimizer], reason="its own class is run")
    pair = both({key: value for key, value in keys.items() if value is not None}, shapes=MIXED)
    assert not pair.registry
    assert pair.told == pair.traced
    assert pair.told["optimizer_step"]
    assert bool(pair.told["clip"]) == (norm is not None)


@pytest.mark.parametrize(("optimizer", "arguments"), [("adamw", {"foreach": False}), ("sophia", {})])
def test_layers_are_walked_in_the_model_s_order(optimizer, arguments):
    """Of a stack of layers, each tensor's turn is beside what its true neighbour left, layer after layer."""
    if optimizer == "sophia":
        pytest.importorskip("sophia_opt", reason="its own class is run")
    keys = {**LAYERS, "optimizer": optimizer, "precision": "amp-fp16", "optimizer_args": arguments, "max_grad_norm": 1.0}
    pair = both(keys, inputs="4,8")
    assert pair.same


def planned(known: Model, **keys):
    plan = make_plan(read_job({"model": "m", **keys}))
    (layout,) = layouts(plan.setting(known), plan.backend, 1)
    return plan, layout


def stacked(count, width, vocabulary=50):
    """A table, ``count`` layers of a matrix and a bias, and a norm."""
    layers = (Span(count),)
    return Model(
        "m", "m", (
            Tensor("table", (vocabulary, width), kind="embedding"),
            Tensor("h.*.weight", (3 * width, width), count=count, kind="linear", spans=layers),
            Tensor("h.*.bias", (3 * width,), count=count, kind="linear", spans=layers),
            Tensor("norm", (width,), kind="norm"),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "fp16"), ("adafactor", "bf16-pure"), ("lion", "amp-fp16")])
def test_many_jobs_are_one_evaluation(optimizer, precision):
    """Clip and step over arrays of layers and widths fold to what each job folds to alone, a stack of none included."""
    counts, widths = np.array([0, 1, 2, 7]), np.array([64, 8, 300, 16])
    keys = {"optimizer": optimizer, "precision": precision, "max_grad_norm": 1.0}

    def top(known):
        plan, layout = planned(known, **keys)
        tape = [*clip_events(plan, layout, known), *step_events(plan, layout, known)]
        return [fold(tape, measure).stretch.top for measure in (requested, rounded)]

    each = [top(stacked(int(count), int(width))) for count, width in zip(counts, widths, strict=True)]
    together = top(stacked(counts, widths))
    assert [list(map(int, row)) for row in together] == [list(row) for row in zip(*each, strict=True)]


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_a_stack_of_layers_is_its_layers_written_out(count):
    """A repeated body makes and frees what the layers one by one do, and no two living buffers are one."""
    keys = {"optimizer": "torch:Adadelta", "precision": "fp32", "optimizer_args": {"foreach": False}}
    known = stacked(count, 8)
    flat = Model("m", "m", tuple(_written_out(known)))
    events, plain = (list(unroll(update_events(*planned(one, **keys), one))) for one in (known, flat))
    assert [(type(one), one.buffer.requested) for one in events] == [(type(one), one.buffer.requested) for one in plain]
    living: set[int] = set()
    for event in events:
        if isinstance(event, Alloc):
            assert id(event.buffer) not in living
            living.add(id(event.buffer))
        else:
            living.remove(id(event.buffer))


def _written_out(known):
    table, weight, bias, norm = known.tensors
    yield table
    for layer in range(int(weight.count)):
        for tensor in (weight, bias):
            yield Tensor(f"h{layer}.{tensor.name[4:]}", tensor.shape, kind="linear")
    yield norm


def test_sums_of_one_role_are_folded_as_any():
    """The fast fold of a step's own buffers and the general one find one highest point, leftovers and repetition included."""
    entry = find_optimizer("torch:RAdam")
    options = entry.resolve({"foreach": False, "maximize": True})
    params = [Param((30, 7), count=3), Param((500,)), Param((20, 20), count=2)]
    plan, layout = planned(stacked(3, 8), optimizer="torch:RAdam", precision="fp32", optimizer_args={"foreach": False})
    events = update_events(plan, layout, stacked(3, 8))
    fast, slow = fold([Repeat(1, tuple(events))]).stretch, fold(list(unroll(events))).stretch
    assert (fast.top, fast.total, fast.at_top, fast.phase_top) == (slow.top, slow.total, slow.at_top, slow.phase_top)
    assert step_bytes(entry, params, options, rounded) > 0
