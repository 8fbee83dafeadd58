"""Births and deaths, written down by hand, and what is read from them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the trace runs torch's own dispatcher")

from memcalc.engines.trace.estimate import Feed, trace_job  # noqa: E402
from memcalc.job import read_job  # noqa: E402
from memcalc.tape.events import Alloc, Mark  # noqa: E402
from tests.trace.small import adversarial_step  # noqa: E402


def traced(name, *inputs, step=None, **keys):
    """A small module of ``tests.trace.small``, traced."""
    job = {"model": f"py:tests.trace.small:{name}", "precision": "fp32", "optimizer": "sgd", **keys}
    # from 2.14 on cuBLAS's workspaces come and go with each product
    return trace_job(read_job({"behaviour": {"torch": "2.13"}, **job}), Feed(inputs=inputs, step=step))


@pytest.fixture(scope="module")
def perceptron():
    """x[4,3] → Linear(3,5) → ReLU → Linear(5,2) → mse against y[4,2], by plain SGD in FP32."""
    return traced("Perceptron", "x=float32[4,3]", "y=float32[4,2]")


BY_HAND = [
    ("+", 80, "forward"),  # first: 4·5·4
    ("+", 80, "forward"),  # ReLU, which keeps its own result
    ("-", 80, "forward"),  # first's result: nobody wants it any more
    ("+", 32, "forward"),  # second: 4·2·4, kept by mse_loss
    ("+", 4, "forward"),  # the loss
    ("+", 32, "forward"), ("+", 32, "forward"),  # mse_loss's own: the differences, and their squares
    ("-", 32, "forward"), ("-", 32, "forward"),
    ("+", 4, "backward"),  # its gradient, one
    ("+", 32, "backward"),  # gradient of second's result
    ("-", 32, "backward"),  # second's result: mse_loss is done with it
    ("+", 80, "backward"),  # gradient of ReLU's result
    ("+", 40, "backward"),  # second.weight.grad: 2·5·4
    ("+", 8, "backward"),  # second.bias.grad
    ("-", 32, "backward"),  # gradient of second's result
    ("+", 80, "backward"),  # gradient of first's result
    ("-", 80, "backward"),  # gradient of ReLU's result
    ("-", 80, "backward"),  # ReLU's result, saved until here
    ("+", 60, "backward"),  # first.weight.grad: 5·3·4; x needs no gradient
    ("+", 20, "backward"),  # first.bias.grad
    ("-", 80, "backward"),  # gradient of first's result
    ("-", 4, "backward"),  # the one backward began with
    ("-", 4, "backward"),  # the loss
    ("-", 60, "zero_grad"), ("-", 20, "zero_grad"), ("-", 40, "zero_grad"), ("-", 8, "zero_grad"),
]  # fmt: skip


WORKSPACE = 32 * 2**20
"""cuBLAS's on an H100, one for the thread of forward and one for autograd's; they stay."""


def test_every_event_of_a_step_is_as_written_down_by_hand(perceptron):
    """Sizes, order and phases of all births and deaths of a steady step, byte for byte."""
    seen, phase, iteration = [], "init", 0
    for event in perceptron.tape:
        if isinstance(event, Mark):
            phase, iteration = event.phase, event.iteration
        elif iteration == 2:
            seen.append(("+" if isinstance(event, Alloc) else "-", event.buffer.requested, phase))
    assert seen == BY_HAND


def test_the_peak_is_the_largest_sum_over_events(perceptron):
    """The footprint's peak is the running sum of the hand-written events at its highest, on top of what is kept."""
    kept = 60 + 20 + 40 + 8 + 48 + 32 + 2 * WORKSPACE
    live, top = kept, kept
    for sign, size, _ in BY_HAND:
        live += size if sign == "+" else -size
        top = max(top, live)
    footprint = perceptron.footprint
    assert (kept, top) == (208 + 2 * WORKSPACE, 504 + 2 * WORKSPACE)
    assert live == kept
    assert footprint.peak.requested == top
    assert sum(footprint.at_peak.values()) == footprint.peak.rounded
    assert footprint.peak.phase == "backward"


def test_each_storage_is_told_by_role_and_module(perceptron):
    """Parameters, inputs, activations, gradients and temporaries carry their names and the module they were made in or for."""
    told = {e.buffer.site: (e.buffer.role, e.buffer.module) for e in perceptron.tape if isinstance(e, Alloc)}
    assert told["first.weight"] == ("parameter", "first")
    assert told["x"] == ("input", "")
    assert told["relu in act"] == ("activation", "act")
    assert told["addmm in first"] == ("temporary", "first")
    assert told["second.weight.grad"] == ("gradient", "second")
    assert told["threshold_backward in act"] == ("temporary", "act")


def test_both_iterations_of_a_plain_step_are_alike(perceptron):
    """Without lazy states a second step does what the first one did: nothing is left behind by the tracker or by us."""
    steps = {1: [], 2: []}
    iteration = 0
    for event in perceptron.tape:
        if isinstance(event, Mark):
            iteration = event.iteration
        elif iteration in steps and event.buffer.role != "workspace":
            steps[iteration].append((type(event).__name__, event.buffer.requested, event.buffer.site))
    assert steps[1] == steps[2]


def test_the_steady_step_is_told_from_the_first():
    """AdamW's moments are born in step 1, so that only from step 2 on are they there through forward and backward."""
    found = traced("Perceptron", "x=float32[4,3]", "y=float32[4,2]", optimizer="adamw").replay
    first, steady = (found.phases()[(iteration, "forward")]["requested"] for iteration in (1, 2))
    assert steady - first == 2 * 128 + WORKSPACE  # momentum and variance of 128 bytes of parameters; autograd's workspace


def test_gradients_stay_through_micro_batches_and_are_no_activations():
    """Under accumulation gradients keep their role and their storage; the second backward adds in place through temporaries."""
    found = traced("Perceptron", "x=float32[4,3]", "y=float32[4,2]", gradient_accumulation_steps=3)
    assert found.footprint.components.gradients == 128
    births = [e.buffer.site for e in found.tape if isinstance(e, Alloc) and e.buffer.role == "gradient"]
    assert sorted(births) == sorted(
        2 * [f"{layer}.{leaf}.grad" for layer in ("first", "second") for leaf in ("weight", "bias")]
    )


def test_recomputation_is_an_activation_of_backward():
    """Full checkpointing keeps each layer's input only; what its forward makes again in backward is called activation there."""
    plain = traced("Tower", "args0=float32[64,16]")
    full = traced("Tower", "args0=float32[64,16]", activation_checkpointing="full")
    made, phase = [], "init"
    for event in full.tape:
        if isinstance(event, Mark):
            phase = event.phase
        elif isinstance(event, Alloc) and phase == "backward" and event.buffer.role == "activation":
            made.append(event.buffer.operator)
    assert "aten.gelu.default" in made
    kept = [found.replay.phases()[(2, "loss")]["requested"] for found in (plain, full)]
    hidden = 64 * 64 * 4
    assert kept[0] - kept[1] > 3 * 2 * hidden  # each layer's two wide results, of which one layer's are alive at most


def test_a_step_of_one_s_own_has_its_phases_and_roles():
    """Two losses and two backward passes: what the generator made is an activation, though it dies in a forward."""
    found = traced("Adversaries", "args0=float32[2,4]", step=adversarial_step)
    assert set(found.footprint.phases) == {"forward", "backward", "optimizer_step", "zero_grad"}
    assert found.footprint.components.gradients == 4 * (4 * 8 + 8 + 8 + 1)
    assert found.footprint.components.activations >= 2 * 8 * 4


def test_host_tensors_are_not_the_device_s():
    """Adam's step counters are host scalars of 4 bytes for each parameter, none of them on the device."""
    footprint = traced("Perceptron", "x=float32[4,3]", "y=float32[4,2]", optimizer="adamw").footprint
    assert footprint.host["optimizer_states"] == 4 * 4
    assert footprint.components.optimizer_states == 2 * 128


def test_what_only_a_cycle_keeps_dies_between_iterations():
    """Nine zeros in a cycle of references live to the end of their own iteration, each time, whenever Python would collect."""
    import gc

    gc.unfreeze()
    assert gc.isenabled()
    found = traced("Cyclic", "args0=float32[2,4]")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    seen, now = [], None
    for event in found.tape:
        if isinstance(event, Mark):
            now = (event.phase, event.iteration)
        elif event.buffer.requested == 36 and event.buffer.operator == "aten.zeros.default":
            seen.append((type(event).__name__, now))
    assert seen == [
        ("Alloc", ("forward", 1)),
        ("Free", ("zero_grad", 1)),
        ("Alloc", ("forward", 2)),
        ("Free", ("zero_grad", 2)),
    ]
