"""The whole of what a process takes of its GPU: what the allocator reserves, and what nobody asks the allocator for.

There is no formula for a CUDA context: it holds driver structures that grow with the GPU, and the kernels that were loaded. So
it is a range, from what was published of processes on such GPUs (:mod:`memcalc.devices_context`), and the total is one too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from memcalc.behaving import USUAL_GPU
from memcalc.devices_context import (
    BARE,
    EAGER,
    LAZY_CUDA,
    LAZY_TORCH,
    NCCL_CHANNELS,
    NCCL_CONTROL,
    NCCL_LL,
    NCCL_LL128,
    NCCL_LOCAL,
    NCCL_PAGE,
    NCCL_SIMPLE,
    NVLS_BUFFER,
    NVLS_CHANNELS,
    RUNNING,
    Running,
)
from memcalc.footprint import Outside
from memcalc.kernels.behaviour import Behaviour
from memcalc.records import dataclass
from memcalc.units import GIB, KIB, MIB

FEW = 20
"""Records under which a group's highest says too little, and the highest of all groups stands in."""
Range = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class DeviceTotal:
    """What a process takes of a GPU.

    Attributes:
        lines: what comes beside the reserved memory, each with its range and its source.
        low: bytes that all of it comes to at least.
        high: at most; None where a part has no known end.
    """

    lines: tuple[Outside, ...]
    low: int
    high: int | None


def device_total(job: Mapping[str, Any], reserved: int) -> DeviceTotal:
    """The memory of one rank's process as ``nvidia-smi`` shows it.

    Args:
        job: a footprint's ``job``: the job as understood.
        reserved: bytes the allocator holds from the driver.

    Raises:
        InputError: no such GPU.

    >>> total = device_total({"behaviour": {"gpu": "t4-16gb"}}, 2**30)
    >>> [line.name for line in total.lines], total.low > 2**30, total.high < 4 * 2**30
    (['CUDA context, kernels and libraries'], True, True)
    """
    behaviour = job.get("behaviour") or {}
    gpu = behaviour.get("gpu") or (job.get("hardware") or {}).get("gpu")
    capability, vendor = _capability(gpu)
    lines = _context(capability, vendor, behaviour)
    if groups := _groups(job.get("parallelism") or {}):
        lines.append(_nccl(groups, capability, vendor))
    high = _sum(line.high for line in lines)
    return DeviceTotal(tuple(lines), reserved + sum(line.low for line in lines), None if high is None else reserved + high)


def running_range(record: Running) -> tuple[int, int]:
    """Bytes of a process beside what PyTorch reserved: the least and the most that its three rounded figures allow.

    >>> low, high = running_range(Running("9.0", "10.00 GiB", "9.00 GiB", "512.00 MiB", ""))
    >>> (low + high) // 2 == 512 * 2**20, high - low
    (True, 21485324)
    """
    figures = [_printed(text) for text in (record.in_use, record.allocated, record.unallocated)]
    middle = figures[0][0] - figures[1][0] - figures[2][0]
    slack = sum(half for _, half in figures)
    return max(middle - slack, 0) // PARTS, -(-(middle + slack) // PARTS)


def _context(capability: str | None, vendor: str, behaviour: Mapping[str, Any]) -> list[Outside]:
    if vendor != "nvidia":
        return [Outside("context and libraries", 0, None, f"no record of a process on a GPU of {vendor}")]
    if _eager(behaviour):
        least = min(one.nbytes - one.halfwidth for one in EAGER)
        source = f"{len(EAGER)} processes before torch 1.13 or CUDA 11.7, which load every kernel: {_listed(EAGER)}"
        return [Outside("CUDA context, kernels and libraries", least, None, source)]
    low, high, source = _running(capability)
    bare = [one for one in BARE if one.capability == capability]
    if not bare:
        return [Outside("CUDA context, kernels and libraries", low, high, source)]
    # a smaller GPU of the same architecture has a smaller context: the record is no lower end
    most = max(one.nbytes + one.halfwidth for one in bare)
    return [
        Outside("CUDA context", min(low, most), most, f"at most as in {_listed(bare)}"),
        Outside("kernels and libraries", max(low - most, 0), max(high - most, 0), f"the rest of {source}"),
    ]


@lru_cache(maxsize=32)
def _running(capability: str | None) -> tuple[int, int, str]:
    """(low, high, what they rest on) of processes on such a GPU, or of all where there are few of it."""
    own = [running_range(one) for one in RUNNING if one.capability == capability]
    every = [running_range(one) for one in RUNNING]
    few = len(own) < FEW
    low, high = _ends(every if few else own)
    kinds = len({one.capability for one in RUNNING})
    whose = f"{len(every)} processes on GPUs of {kinds} compute capabilities" if few else f"{len(own)} processes"
    said = f"{whose} that ran out of memory (memcalc/devices_context.py)"
    if own:
        first, last = _ends(own)
        said += f"; {len(own)} on {capability}: {first // MIB} to {-(-last // MIB)} MiB"
    return low, high, said


def _ends(ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(first for first, _ in ranges), max(last for _, last in ranges)


def _nccl(groups: Sequence[int], capability: str | None, vendor: str) -> Outside:
    """Buffers of one communicator a group: a connection has one at either end in each channel, rings and trees alike."""
    if vendor != "nvidia" or max(groups) > NCCL_LOCAL:
        where = "between nodes" if vendor == "nvidia" else f"on a GPU of {vendor}"
        return Outside("communicators", 0, None, f"buffers {where} are not modelled")
    page = NCCL_PAGE
    received = NCCL_CONTROL + NCCL_LL + NCCL_LL128 + NCCL_SIMPLE  # NCCL src/transport/p2p.cc:486-491
    pair = -(-NCCL_CONTROL // page) * page + -(-received // page) * page  # p2p.cc:407-410 at the sending end
    # a ring has a neighbour to send to and one to receive from; a tree within a node is a chain, with both on either side
    high = sum(NCCL_CHANNELS * 3 * pair for _ in groups)
    # NCCL src/transport/nvls.cc:429-430: two buffers a channel and head, on GPUs whose switch can reduce
    high += sum(NVLS_CHANNELS.get(capability or "9.0", 0) * 2 * NVLS_BUFFER * ranks for ranks in groups)
    source = (
        f"NCCL 2.30.7: {pair // MIB} MiB for a connection and channel (src/transport/p2p.cc), at most {NCCL_CHANNELS} "
        "channels, a ring and a tree, and NVLS; none where GPUs do not reach each other (src/transport/shm.cc); "
        "all-to-all comes on top"
    )
    return Outside("NCCL", 0, high, source)  # the lower end is buffers in host memory, as shm.cc has them


def _groups(parallelism: Mapping[str, Any]) -> list[int]:
    """The ranks of each communicator a data-parallel job makes: over shards, over replicas."""
    shard, replicate = parallelism.get("dp_shard") or 1, parallelism.get("dp_replicate") or 1
    if shard * replicate == 1:
        shard = parallelism.get("dp") or 1
    return [int(ranks) for ranks in (shard, replicate) if ranks > 1]


def _capability(gpu: str | None) -> tuple[str | None, str]:
    if gpu is None:
        return None, "nvidia"
    if gpu == USUAL_GPU:
        major, minor = Behaviour().capability  # as the step was played, without reading the device's file
        return f"{major}.{minor}", "nvidia"
    from memcalc.devices import load_device

    device = load_device(gpu, "behaviour.gpu")
    return device.compute_capability, device.vendor


def _eager(behaviour: Mapping[str, Any]) -> bool:
    """Whether all kernels are loaded with the context."""
    for key, first in (("torch", LAZY_TORCH), ("cuda", LAZY_CUDA)):
        found = re.match(r"(\d+)\.(\d+)", str(behaviour.get(key) or ""))
        if found and (int(found[1]), int(found[2])) < first:
            return True
    return False


def _printed(text: str) -> tuple[int, int]:
    """(figure, half a unit of its last digit) as PyTorch prints it, with two decimals: both in two-hundredths of a byte."""
    number, _, unit = text.partition(" ")
    whole, _, hundredths = number.partition(".")
    size = UNITS[unit]
    return (100 * int(whole) + int(hundredths)) * 2 * size, size


UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB}
PARTS = 200
"""Of a byte: what half a hundredth of a unit comes to without a fraction."""


def _listed(records: Iterable[Any]) -> str:
    return "; ".join(one.source for one in records)


def _sum(parts: Iterable[int | None]) -> int | None:
    total = 0
    for part in parts:
        if part is None:
            return None
        total += part
    return total
