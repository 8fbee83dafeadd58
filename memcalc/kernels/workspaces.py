"""Memory that cuBLAS holds through the caching allocator (ATen/cuda/CublasHandlePool.cpp), by torch version and GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from memcalc.kernels.behaviour import Behaviour

KIB = 1024
HOPPER = 4096 * 8 * KIB  # parseChosenWorkspaceSize: 32 MiB, cuBLAS's own advice for Hopper
OTHERS = 4096 * KIB * 2 + 16 * KIB * 8  # parseChosenWorkspaceSize: ":4096:2:16:8", 8.125 MiB
CUBLASLT = 1024 * KIB  # parseCUDABlasLtWorkspaceSize: "default size in KiB according to #73328"


def cublas_workspace(behaviour: Behaviour, config: str | None = None) -> int:
    """Bytes of one cuBLAS workspace, as the caching allocator is asked for them.

    Args:
        behaviour: torch's version and the GPU's compute capability.
        config: ``CUBLAS_WORKSPACE_CONFIG``, as ``:4096:8``; None where it is not set or cannot be parsed.

    >>> cublas_workspace(Behaviour()), cublas_workspace(Behaviour(capability=(8, 0))), cublas_workspace(Behaviour(), ":16:8")
    (33554432, 8519680, 131072)
    """
    parts = re.findall(r":(\d+):(\d+)", config or "")
    if parts:
        return sum(int(size) * KIB * int(count) for size, count in parts)
    if behaviour.capability == (9, 0):
        return HOPPER
    blackwell = behaviour.major in (9, 10, 11, 12) and behaviour.torch >= (2, 12)  # pytorch#175344, of February 2026
    return HOPPER if blackwell else OTHERS


def is_unified(behaviour: Behaviour, asked: bool | None = None) -> bool:
    """Whether cuBLASLt works in cuBLAS's workspace (TORCH_CUBLASLT_UNIFIED_WORKSPACE).

    Opt-in from 2.7 to 2.11 (getCUDABlasLtWorkspace asked for the variable to be true), the default since 2.12.
    """
    return behaviour.torch >= (2, 7) and (behaviour.torch >= (2, 12) if asked is None else asked)


def cublaslt_workspace(behaviour: Behaviour, kib: int | None = None, unified: bool | None = None) -> int:
    """Bytes cuBLASLt holds of its own; 0 where it shares cuBLAS's.

    Args:
        behaviour: torch's version.
        kib: ``CUBLASLT_WORKSPACE_SIZE``, where it is set.
        unified: ``TORCH_CUBLASLT_UNIFIED_WORKSPACE``, where it is set.

    >>> cublaslt_workspace(Behaviour()), cublaslt_workspace(Behaviour(torch=(2, 10)))
    (0, 1048576)
    """
    return 0 if is_unified(behaviour, unified) else (CUBLASLT if kib is None else kib * KIB)


@dataclass
class Workspaces:
    """Which workspaces live: one a handle and stream, and a handle is a thread's (CublasHandlePool.cpp:setWorkspaceForHandle).

    They are born at a thread's first matrix product on a stream and stay to the end of the process
    (``torch._C._cuda_clearCublasWorkspaces`` apart). Up to 2.6 cuBLASLt's is a temporary of each call
    (CUDABlas.cpp:gemm_and_bias); from 2.14 on, so is cuBLAS's own (pytorch#194311).

    >>> live = Workspaces(Behaviour(capability=(8, 0)))
    >>> live.first_use("mm", thread="forward"), live.first_use("mm", thread="forward"), live.first_use("mm", thread="autograd")
    ([('cublas', 8519680)], [], [('cublas', 8519680)])
    """

    behaviour: Behaviour
    config: str | None = None
    lt_kib: int | None = None
    unified: bool | None = None
    _seen: set[tuple[str, str, int]] = field(default_factory=set)

    def first_use(self, operator: str, *, thread: str, stream: int = 0, lt: bool = False) -> list[tuple[str, int]]:
        """The persistent workspaces born at this call: (name, bytes); none after the first.

        Args:
            operator: its aten name without the overload.
            thread: ``forward`` (the caller's) or ``autograd`` (the device's worker).
            stream: any number that tells streams apart.
            lt: whether this call goes to cuBLASLt (see :func:`goes_to_lt`).
        """
        if operator not in CUBLAS or self.behaviour.torch >= (2, 14):
            return []
        wanted = [("cublas", cublas_workspace(self.behaviour, self.config))]
        if lt and self.behaviour.torch >= (2, 7):
            wanted.append(("cublaslt", cublaslt_workspace(self.behaviour, self.lt_kib, self.unified)))
        born = [(name, size) for name, size in wanted if size and (name, thread, stream) not in self._seen]
        self._seen.update((name, thread, stream) for name, _ in born)
        return born

    def transient(self, operator: str, *, lt: bool = False) -> list[tuple[str, int]]:
        """Workspaces that live for this call only, in the versions that make them so."""
        if operator not in CUBLAS:
            return []
        if self.behaviour.torch >= (2, 14):
            size = CUBLASLT if lt else cublas_workspace(self.behaviour, self.config)
            return [("cublaslt" if lt else "cublas", size)]
        return [("cublaslt", CUBLASLT)] if lt and self.behaviour.torch < (2, 7) else []


CUBLAS = frozenset(
    [
        *("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "addbmm", "mv", "addmv", "addmv_", "dot", "vdot"),
        *("_addmm_activation", "_scaled_mm", "_int_mm", "linalg_lstsq", "addr"),
    ]
)
"""Aten operators whose CUDA kernel asks for a cuBLAS handle (native/cuda/Blas.cpp)."""


def goes_to_lt(operator: str, args: dict[str, object]) -> bool:
    """Whether a product is cuBLASLt's (Blas.cpp:addmm_out_cuda_impl, useLtInterface).

    ``addmm`` with a 1-D bias, beta = 1 and matrices of more than one row and column; ``_scaled_mm``, ``_int_mm``.
    """
    if operator in ("_scaled_mm", "_int_mm", "_addmm_activation"):
        return True
    if operator != "addmm" or args.get("beta", 1) != 1:
        return False
    bias, mat1, mat2 = (args[name] for name in ("self", "mat1", "mat2"))
    shapes = [tuple(getattr(t, "shape", ())) for t in (bias, mat1, mat2)]
    return len(shapes[0]) == 1 and shapes[0][0] == shapes[2][1] and min(*shapes[1], *shapes[2]) > 1
