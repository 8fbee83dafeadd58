"""What only the driver and the allocator's internals know: NVML, ``mem_get_info``, cuBLAS workspaces, event history.

Every function here answers None, or nothing, where the machine cannot say; none of them is called on a CPU.
"""

from __future__ import annotations

import os
from collections import Counter
from importlib import import_module
from typing import Any

import torch

from memcalc.engines.measure.history import pack
from memcalc.measurement import DeviceBytes, History, Workspace


def driver_version() -> str | None:
    """The driver's version, by NVML."""
    nvml = _nvml()
    if nvml is None:
        return None
    said = nvml.nvmlSystemGetDriverVersion()
    return said.decode() if isinstance(said, bytes) else str(said)


def process_bytes(index: int) -> int | None:
    """NVML's figure for this process on a device; None where it does not list it, as in most containers.

    A process seen through another PID namespace has another number: the only process on the device is then taken for us.
    """
    nvml = _nvml()
    if nvml is None:
        return None
    try:
        handle_of: Any = torch.cuda._get_pynvml_handler  # minds CUDA_VISIBLE_DEVICES
        listed = nvml.nvmlDeviceGetComputeRunningProcesses(handle_of(index))
    except (nvml.NVMLError, RuntimeError, AttributeError):
        return None
    mine = [each for each in listed if each.pid == os.getpid()] or (listed if len(listed) == 1 else [])
    used = mine[0].usedGpuMemory if mine else None
    return None if used is None else int(used)


class DriverReader:
    """Device bytes before, after and beside the allocator's own."""

    def __init__(self, index: int, *, alone: bool) -> None:
        self.index, self.alone = index, alone
        initialise: Any = torch.cuda.init
        initialise()
        torch.cuda.synchronize(index)  # the context exists from here on
        self.free_before, self.total = torch.cuda.mem_get_info(index)
        self.context = process_bytes(index)

    def read(self) -> DeviceBytes:
        """What the driver says now."""
        torch.cuda.synchronize(self.index)
        free, _ = torch.cuda.mem_get_info(self.index)
        reserved = torch.cuda.memory_reserved(self.index)
        process = process_bytes(self.index)
        outside = None
        if process is not None and self.context is not None:
            outside = process - self.context - reserved
        elif self.alone:
            outside = self.free_before - free - reserved
        return DeviceBytes(
            total=self.total, free_before=self.free_before, free_after=free, process=process, context=self.context,
            libraries=outside, alone=self.alone,
        )  # fmt: skip


def workspaces(index: int) -> list[Workspace]:
    """The cuBLAS workspaces in the allocator, found by what their release frees; they are allocated again when needed.

    One for each pair of handle and stream, and the autograd thread has a handle of its own (pytorch
    aten/src/ATen/cuda/CublasHandlePool.cpp:getCUDABlasLtWorkspace, parseChosenWorkspaceSize).
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is None:
        return []
    before = _blocks(index)
    clear()
    gone = before - _blocks(index)
    sizes = Counter(size for (_, size), times in gone.items() for _ in range(times))
    return [Workspace(library="cublas", nbytes=size, times=times, where="handle and stream") for size, times in sizes.items()]


def _blocks(index: int) -> Counter[tuple[int, int]]:
    """Blocks in use on a device: (address, requested bytes)."""
    segments = torch.cuda.memory._snapshot().get("segments", [])
    return Counter(
        (int(block["address"]), int(block.get("requested_size", block["size"])))
        for segment in segments
        if segment.get("device", index) == index
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    )


class OutOfMemoryWatch:
    """What was asked for and what was free when the allocator gave up, from its own observer."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        attach: Any = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
        if attach is not None:
            attach(self._observe)

    def _observe(self, device: int, alloc: int, device_alloc: int, device_free: int) -> None:
        self.seen = {"asked": alloc, "allocated": device_alloc, "free": device_free}


class HistoryReader:
    """The allocator's events, cut at the phase boundaries."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.cuts: list[tuple[str, int]] = []
        record: Any = torch.cuda.memory._record_memory_history
        record(enabled="all", context=None, stacks="python", max_entries=2_000_000)

    def cut(self, phase: str) -> None:
        """A phase begins here."""
        self.cuts.append((phase, len(self._trace())))

    def read(self) -> History:
        """All of them, stripped, and recording stopped."""
        trace = self._trace()
        record: Any = torch.cuda.memory._record_memory_history
        record(enabled=None)
        return pack(trace, self.cuts)

    def _trace(self) -> list[dict[str, Any]]:
        traces: list[list[dict[str, Any]]] = torch.cuda.memory._snapshot()["device_traces"]
        return traces[self.index] if self.index < len(traces) else []


def _nvml() -> Any:
    """NVML, ready; None where its bindings or the driver are missing."""
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        # NVMLError is only known once the import has worked; whatever goes wrong means that NVML cannot be asked
        return None
    return nvml
