"""What is read at every phase boundary: the CUDA allocator's own counters, or on a CPU the live bytes of real storages."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

import torch

from memcalc.measurement import Counters, Phase
from memcalc.runtime.live import LiveBytes, Operators

PhaseName = Literal["init", "forward", "loss", "backward", "clip", "optimizer_step", "zero_grad"]

WORKERS_LET_GO = 0.03
"""Seconds granted to communication threads between phases; it is in no phase's time."""
KEEPS_CYCLES = ("model", "data_parallel", "optimizer")
"""Parts of ``init`` that build objects of which some are thrown away again."""


class Meter(Protocol):
    """Counters of one device, and their peaks since the last reset."""

    def now(self) -> Counters:
        """The counters, once everything asked of the device is done."""
        ...

    def peak(self) -> Counters:
        """Their peaks since :meth:`reset`."""
        ...

    def reset(self) -> None:
        """Begin a phase."""
        ...

    def settle(self) -> None:
        """Let go of what nobody holds any more, so that it does not die in a later phase."""
        ...

    def watch_copies_of(self, params: Iterable[torch.Tensor]) -> None:
        """Tell copies made of these from now on from other tensors."""
        ...

    def copies(self) -> int | None:
        """Bytes alive of such copies; None where nobody can tell."""
        ...

    def attention(self) -> dict[str, int]:
        """The attention operators seen: name -> times."""
        ...


class CpuMeter:
    """Live bytes by dispatch; to be entered before anything is built."""

    def __init__(self) -> None:
        self.live = LiveBytes()

    def __enter__(self) -> CpuMeter:
        # what is there already is left alone by the collections to come, which are then quick
        gc.collect()
        gc.freeze()
        self.live.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.live.__exit__(*raised)
        gc.unfreeze()

    def settle(self) -> None:
        """Collect reference cycles, which else die whenever a collection comes by; wait for the threads that send tensors.

        A gloo worker drops its tensor some time after ``wait()`` has returned (pytorch
        torch/csrc/distributed/c10d/ProcessGroupGloo.cpp:runLoop), and nothing tells when.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            time.sleep(WORKERS_LET_GO)
        gc.collect()

    def now(self) -> Counters:
        """Bytes alive."""
        return Counters(live=self.live.live)

    def peak(self) -> Counters:
        """The most bytes alive."""
        return Counters(live=self.live.peak)

    def reset(self) -> None:
        """From what is alive now."""
        self.live.reset_peak()

    def watch_copies_of(self, params: Iterable[torch.Tensor]) -> None:
        """By the storages they are made from."""
        self.live.watch_copies_of(params)

    def copies(self) -> int | None:
        """Casts of parameters that are alive."""
        return self.live.copies

    def attention(self) -> dict[str, int]:
        """Over the whole measurement."""
        return self.live.attention()


class CudaMeter:
    """The caching allocator's counters; the operators are watched in the first iteration alone, for their names."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.operators = Operators()

    def __enter__(self) -> CudaMeter:
        return self

    def __exit__(self, *raised: Any) -> None:
        return None

    def now(self) -> Counters:
        """``memory_stats``, after the device has caught up."""
        torch.cuda.synchronize(self.index)
        return self._read("current")

    def peak(self) -> Counters:
        """The peaks the allocator itself keeps."""
        return self._read("peak")

    def settle(self) -> None:
        """Nothing: the step is taken as a training loop takes it, garbage and all."""

    def reset(self) -> None:
        """The allocator's own reset."""
        torch.cuda.reset_peak_memory_stats(self.index)

    def watch_copies_of(self, params: Iterable[torch.Tensor]) -> None:
        """Cannot be done."""

    def copies(self) -> int | None:
        """Not known: the allocator does not say what a block is for."""
        return None

    def attention(self) -> dict[str, int]:
        """Of the first iteration."""
        return self.operators.attention()

    def _read(self, which: str) -> Counters:
        stats = torch.cuda.memory_stats(self.index)
        keys = {
            "allocated": "allocated_bytes", "requested": "requested_bytes", "active": "active_bytes",
            "reserved": "reserved_bytes", "inactive_split": "inactive_split_bytes",
        }  # fmt: skip
        return Counters(**{name: int(stats[f"{key}.all.{which}"]) for name, key in keys.items()})


class Recorder:
    """Phases as they happen, each with the counters at both ends and their peak between.

    Attributes:
        phases: those of the stretch under way; taken away by :meth:`taken`.
        where: (phase, iteration) under way, for whoever has to say where something failed.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.phases: list[Phase] = []
        self.where: tuple[str | None, int | None] = (None, None)
        self.marks: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def phase(
        self, name: PhaseName, what: str = "", *, micro_batch: int | None = None, iteration: int | None = None
    ) -> Iterator[None]:
        """Record what happens inside."""
        self.where = (name, iteration)
        self.meter.settle()
        start = self.meter.now()
        self.meter.reset()
        begun = time.perf_counter()
        yield
        if what in KEEPS_CYCLES:
            gc.collect()  # half-built things in reference cycles would be taken for what stays
        seconds = time.perf_counter() - begun
        self.meter.settle()
        end = self.meter.now()
        self.phases.append(
            Phase(
                phase=name, what=what, micro_batch=micro_batch, start=start, end=end, peak=self.meter.peak(),
                seconds=round(seconds, 6),
            )
        )  # fmt: skip

    def taken(self) -> list[Phase]:
        """The phases recorded since the last call."""
        phases, self.phases = self.phases, []
        return phases


def make_meter(device: str, index: int) -> CpuMeter | CudaMeter:
    """The meter of a device."""
    return CpuMeter() if device == "cpu" else CudaMeter(index)


def main_counter(counters: Counters) -> int | None:
    """The counter that tensors' bytes are held against: requested on CUDA, live on a CPU."""
    return counters.live if counters.requested is None else counters.requested
