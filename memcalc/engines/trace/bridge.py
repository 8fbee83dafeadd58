"""Fake tensors that are CUDA's, on any build of torch: the one place where a machine without a GPU is told to behave as one.

PyTorch's fake tensors take every decision a real tensor takes and hold no data, but on a CPU wheel a fake ``cuda`` tensor
cannot be differentiated: as soon as autograd asks for its stream, C++ finds no CUDA device guard and the process dies (pytorch
c10/core/impl/DeviceGuardImplInterface.h:getDeviceGuardImpl). Ways out that were tried on torch 2.13:

* **PrivateUse1 as a Python backend**: works, but it is registered for the whole process and for good, cannot be named ``cuda``,
  and wants its own threads in an engine that may have started without them.
* **fake ``cpu`` tensors and a function mode that restates CUDA**: everything a CPU tensor decides differently (autocast's lists
  and their weight cache, statistics of normalisations, foreach defaults, every ``device.type`` in a library) is to be restated.
* **chosen: CUDA's dispatch keys, ``cuda`` in Python, ``meta`` in C++.** The keys make autograd, autocast's state and the
  decompositions CUDA's own; Python code sees ``cuda:0``; and C++ ``device()``, which autograd's engine asks, says ``meta``,
  whose work the engine runs in the calling thread without guards or streams (pytorch torch/csrc/autograd/engine.cpp:
  should_run_in_cpu_ready_queue).
  What remains to be restated is where C++ itself asks ``is_cuda()``: ``memcalc.engines.trace.cuda``.

Nothing of it outlives the context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memcalc.engines.trace.cuda.autocast import cuda_autocast
from memcalc.engines.trace.cuda.modes import cuda_composites
from memcalc.engines.trace.cuda.rules import cuda_rules
from memcalc.engines.trace.fake import CudaFakeMode
from memcalc.engines.trace.presence import CudaFunctions, told_of

if TYPE_CHECKING:
    from memcalc.engines.trace.machine import Machine


@contextlib.contextmanager
def cuda_is_here(machine: Machine) -> Iterator[CudaFakeMode]:
    """A process in which there is one GPU, as far as fake tensors and those who ask for it can tell."""
    mode, behaviour = CudaFakeMode(), machine.behaviour
    with told_of(machine), mode, CudaFunctions(), cuda_composites(behaviour), cuda_autocast(behaviour), cuda_rules():
        yield mode
