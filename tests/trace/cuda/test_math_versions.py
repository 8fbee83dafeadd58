"""The math kernel of attention before and after it computed half precision in FP32; states in the driver's managed memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memcalc.engines.trace.cuda.attention import attention
from memcalc.engines.trace.registry_step import _buffers
from memcalc.kernels.behaviour import Behaviour
from memcalc.optimizers.base import State


class Softmaxes(TorchDispatchMode):
    """The dtypes softmax is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "softmax" in str(func):
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("version", "dtype"), [((2, 4), torch.bfloat16), ((2, 5), torch.float32)])
def test_dtype_of_the_scores_goes_by_the_torch_asked_for(version, dtype):
    """Scores of BF16 queries stay in BF16 up to torch 2.4, and are FP32 from 2.5 on, twice the bytes for each."""
    query = torch.zeros(1, 2, 4, 8, dtype=torch.bfloat16)
    with Softmaxes() as seen:
        attention(query, query, query, is_causal=True, behaviour=Behaviour(torch=version), enabled=["math"])
    assert seen.dtypes == [dtype]


def test_managed_states_are_none_of_the_allocators():
    """What a paged optimizer keeps in managed memory is not made on the device whose allocator is replayed."""
    made = _buffers(State("state1", "momentum", "float32", 1024, place="managed"))
    assert [buffer.device.type for buffer in made] == ["cpu"]
