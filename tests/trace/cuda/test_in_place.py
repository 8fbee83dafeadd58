"""Backward formulas that work in place for plain tensors do so in a trace, which C++ takes for a tensor subclass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402, N812

from memcalc.engines.trace.bridge import cuda_is_here  # noqa: E402
from memcalc.engines.trace.kernels import Kernels  # noqa: E402
from memcalc.engines.trace.machine import machine_of  # noqa: E402
from memcalc.engines.trace.sites import Sites  # noqa: E402
from memcalc.engines.trace.tracker import Tracker  # noqa: E402
from memcalc.job import read_job  # noqa: E402

SIZE, MASK, SEED = 4 * 5 * 4, 4 * 5, 4


def bounded(x: Any, one: Any) -> Any:
    """Between two tensors."""
    return x.clamp(one - 2, one).sum()


def entropy(x: Any, one: Any) -> Any:
    """Of logits."""
    return F.binary_cross_entropy_with_logits(x, one)


def weighted(x: Any, one: Any) -> Any:
    """The same with both kinds of weights."""
    return F.binary_cross_entropy_with_logits(x, one, weight=one, pos_weight=one)


FORMULAS: list[tuple[Callable[[Any, Any], Any], list[int], set[str]]] = [
    # a scalar zero, self >= min, self <= max (the conjunction in place), where
    (bounded, [SEED, 4, MASK, MASK, SIZE], {"aten::logical_and_"}),
    (lambda x, _: x.clamp(-1, 1).sum(), [SEED, 4, MASK, MASK, SIZE], {"aten::logical_and_"}),
    # zeros of the table, into which rows are added; no second table
    (lambda x, _: x[torch.zeros(2, 3, dtype=torch.long, device=x.device)].sum(), [SEED, SIZE], {"aten::_index_put_impl_"}),
    # the sigmoid, on which all the rest is done
    (entropy, [SEED, SIZE], {"aten::sub_", "aten::mul_", "aten::div_"}),
    # pos_weight · target, which is kept; that and 1, on which all the rest is done; the sigmoid
    (weighted, [SEED, SIZE, SIZE, SIZE], {"aten::sub_", "aten::mul_", "aten::div_"}),
    # zeros, into which the gradient is scattered
    (lambda x, _: x.topk(2)[0].sum(), [SEED, SIZE], {"aten::scatter_"}),
    (lambda x, _: x.sort()[0].sum(), [SEED, SIZE], {"aten::scatter_"}),
    (lambda x, _: x.max(1)[0].sum(), [SEED, SIZE], {"aten::scatter_"}),
    # isnan of both, eq (the conjunctions in place), how many, the gradient's share, and that where it belongs; a CPU has a
    # road of its own (FunctionsManual.cpp:evenly_distribute_backward)
    (lambda x, _: x.max(), [SEED, MASK, 1, MASK, 8, 4, SIZE], set()),
]


@pytest.mark.parametrize(("formula", "sizes", "names"), FORMULAS)
def test_what_a_backward_makes(formula: Callable[[Any, Any], Any], sizes: list[int], names: set[str]) -> None:
    """Its results by hand, byte for byte, and a real backward calls the in-place operators by name."""
    machine = machine_of(read_job({"model": "gpt2", "gpu": "h100-80gb"}))
    with cuda_is_here(machine), Tracker(Sites(), Kernels(machine.behaviour)) as tracker:
        x = torch.ones(4, 5, device="cuda", requires_grad=True)
        loss = formula(x, torch.ones(4, 5, device="cuda"))
        before = len(tracker.events)
        loss.backward()
        assert [what.nbytes for kind, what in tracker.events[before:] if kind == "+" and what.role is None] == sizes
        tracker.close()
    real = torch.ones(4, 5, requires_grad=True)
    loss = formula(real, torch.ones(4, 5))
    with torch.autograd.profiler.profile() as profile:
        loss.backward()
    called = {event.name for event in profile.function_events}
    assert names <= called


def test_a_backward_to_be_differentiated_again_stays_out_of_place() -> None:
    """With ``create_graph`` nothing that the second backward needs is written over."""
    machine = machine_of(read_job({"model": "gpt2", "gpu": "h100-80gb"}))
    with cuda_is_here(machine), Tracker(Sites(), Kernels(machine.behaviour)) as tracker:
        x = torch.ones(4, 5, device="cuda", requires_grad=True)
        loss = entropy(x, torch.ones(4, 5, device="cuda"))
        before = len(tracker.events)
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        made = [what.operator for kind, what in tracker.events[before:] if kind == "+"]
        assert {"aten.sigmoid.default", "aten.sub.Tensor", "aten.mul.Tensor"} <= set(made)
        grad.sum().backward()
        tracker.close()
