"""One backward pass twice: for real on the CPU, its allocations told by the profiler, and in the trace."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile, record_function

from memcalc.engines.trace.bridge import cuda_is_here
from memcalc.engines.trace.kernels import Kernels
from memcalc.engines.trace.machine import machine_of
from memcalc.engines.trace.presence import as_real_tensors
from memcalc.engines.trace.sites import Sites
from memcalc.engines.trace.tracker import Tracker
from memcalc.job import read_job

Case = Callable[[str], Callable[[], None]]
"""Makes tensors and a graph on a device; gives back what runs backward through it."""
MARK = "the backward pass"
SMALL = 64
"""Bytes up to which an allocation is left out: numbers that C++ wraps into tensors."""
MACHINE = machine_of(read_job({"model": "gpt2", "hardware": {"gpu": "h100-80gb"}}))


def really(case: Case) -> list[int]:
    """Bytes in order, births positive and deaths negative, as the CPU's allocator reports them."""
    return [nbytes for nbytes, _ in really_by_operator(case)]


def really_by_operator(case: Case) -> list[tuple[int, str]]:
    """The same, each with the operator that ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:  # which knows no death without its birth
        backward = case("cpu")
        with record_function(MARK):
            backward()
    events = sorted(run.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    (begin,) = (event for event in events if event.name() == MARK)
    told, running = [], []
    for event in events:
        if not begin.start_ns() <= event.start_ns() <= begin.end_ns():
            continue
        while running and running[-1].end_ns() < event.start_ns():
            running.pop()
        if event.name() != "[memory]":
            running.append(event)
        elif abs(event.nbytes()) > SMALL:
            told.append((event.nbytes(), running[-1].name()))
    return told


def in_trace(case: Case) -> list[int]:
    """The same from the trace, kernels' scratch and workspaces apart."""
    tracker = Tracker(Sites(), Kernels(MACHINE.behaviour))
    with cuda_is_here(MACHINE), as_real_tensors(), tracker:
        backward = case("cuda")
        tracker.mark("backward", 1)
        before = len(tracker.events)
        backward()
        told = tracker.events[before:]
        tracker.close()
    told = [(kind, life.nbytes) for kind, life in told if life.role is None and life.nbytes > SMALL]
    return [nbytes if kind == "+" else -nbytes for kind, nbytes in told]


def additions(case: Case) -> list[str]:
    """Of a real run: what the engine itself added, ``add`` or ``add_``, in order."""
    backward = case("cpu")
    with profile(activities=[ProfilerActivity.CPU]) as run:
        backward()
    adds = [event for event in run.events() if event.name in ("aten::add", "aten::add_") and event.cpu_parent]
    return [each.name.removeprefix("aten::") for each in adds if each.cpu_parent.name.startswith("autograd::engine")]


def additions_in_trace(case: Case) -> dict[str, int]:
    """How often the trace saw each of the two."""
    tracker = Tracker(Sites(), Kernels(MACHINE.behaviour))
    with cuda_is_here(MACHINE), tracker:
        backward = case("cuda")
        tracker.operators.clear()
        backward()
        tracker.close()
    return {str(func): count for func, count in tracker.operators.items()}
