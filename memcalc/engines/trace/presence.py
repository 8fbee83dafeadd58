"""What a process is told so that it takes fake tensors for a GPU's: by tensors, by ``torch.cuda`` and by a few functions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy
import torch
import torch._subclasses.fake_tensor as fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from memcalc.engines.trace.fake import CONSTANTS, CUDA
from memcalc.engines.trace.known import known

if TYPE_CHECKING:
    from memcalc.engines.trace.machine import Machine


@contextlib.contextmanager
def told_of(machine: Machine) -> Iterator[None]:
    """Everybody who asks is told of this GPU, until the end of the block."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_asked_anew())
        for owner, name, value in _patches(machine):
            stack.enter_context(_attribute(owner, name, value))
        for listed in _foreach_lists():
            stack.enter_context(_among(listed, FakeTensor))
        yield


class CudaFunctions(TorchFunctionMode):
    """Functions whose C++ takes another road for a CUDA tensor, or wants a device guard that is not there."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call."""
        if kwargs and type(kwargs.get("device")) is int:
            kwargs = {**kwargs, "device": CUDA}
        restated = RESTATED.get(func)
        return (restated or func)(*args, **(kwargs or {}))


def _to(tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """With the device's index, else C++ asks the device guard for one (pytorch TensorConversions.cpp:ensure_has_index).

    A tensor that is on the GPU already stays, as C++ would see if its own device said so (TensorConversions.cpp:to_will_alias).
    """
    told = args[0] if args and not isinstance(args[0], torch.dtype | torch.Tensor) else kwargs.get("device")
    if told is None or _indexed(told) is not CUDA:
        return torch.Tensor.to(tensor, *args, **kwargs)
    kwargs.pop("device", None)
    kwargs |= dict(zip(("device", "dtype", "non_blocking", "copy"), args, strict=False))
    if tensor.device == CUDA:
        kwargs.pop("device", None)
        kwargs["dtype"] = kwargs.get("dtype") or tensor.dtype
    else:
        kwargs["device"] = CUDA
    return torch.Tensor.to(tensor, **{key: value for key, value in kwargs.items() if value is not None})


def _cuda(tensor: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    return _to(tensor, device=CUDA, non_blocking=non_blocking, **kwargs)


def _indexed(device: Any) -> Any:
    """A GPU by any name, a bare index among them, as the one there is."""
    if isinstance(device, int) and not isinstance(device, bool):
        return CUDA
    return CUDA if isinstance(device, torch.device | str) and torch.device(device).type == "cuda" else device


_PARSE = torch._C._nn._parse_to


def _parsed(*args: Any, **kwargs: Any) -> Any:
    """What ``Module.to`` is told; C++ knows no bare index where there is no GPU."""
    return _PARSE(*map(_indexed, args), **{key: _indexed(value) if key == "device" else value for key, value in kwargs.items()})


def _numpy(tensor: Any, *, force: bool = False) -> Any:
    """Its values, where they are known; refused like any other question for values where not, and not as a subclass's."""
    return torch.Tensor.numpy(tensor, force=force) if type(tensor) is not FakeTensor else numpy.array(tensor.tolist())


def _format(tensor: Any, form: str) -> str:
    """A number that is known, as a real tensor of no dimensions shows it (torch/_tensor.py:Tensor.__format__)."""
    told = type(tensor) is FakeTensor and tensor.ndim == 0 and known(tensor) is not None
    return format(tensor.item(), form) if told else torch.Tensor.__format__(tensor, form)  # type: ignore[no-untyped-call]


RESTATED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: _to, torch.Tensor.cuda: _cuda, torch.Tensor.numpy: _numpy, torch.Tensor.__format__: _format,
}  # fmt: skip
"""Function, as a function mode sees it, to what is done in its place."""


def _patches(machine: Machine) -> Iterator[tuple[Any, str, Any]]:
    """(owner, attribute, value): what tensors say of themselves, and what ``torch.cuda`` says of the machine."""
    yield FakeTensor, "is_cuda", property(lambda tensor: tensor.device.type == "cuda")
    yield FakeTensor, "is_meta", property(lambda tensor: tensor.device.type == "meta")
    yield FakeTensor, "get_device", lambda tensor: 0 if tensor.device.type == "cuda" else -1
    yield torch.Tensor, "_make_subclass", staticmethod(_subclass)
    yield fake_tensor, "init_gpu_context", lambda *_: None
    yield fake_tensor.log, "disabled", True  # a failure is told once, by an exception
    yield fake_tensor, "CONSTANT_NUMEL_LIMIT", CONSTANTS
    yield torch.utils, "swap_tensors", _swap
    yield torch, "Generator", Generator
    yield torch._C._nn, "_parse_to", _parsed
    yield torch.nn.init, "_no_grad_trunc_normal_", lambda tensor, *_, **__: tensor  # draws again while values are out of bounds
    yield torch._C, "_group_tensors_by_device_and_dtype", _grouped
    yield torch._C, "_cuda_getCurrentRawStream", lambda *_: 0  # imported by whoever sees a GPU and has Triton
    major, minor = machine.capability
    told = SimpleNamespace(
        name=machine.name, total_memory=machine.total_memory, major=major, minor=minor,
        multi_processor_count=machine.behaviour.multiprocessors,
    )  # fmt: skip
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: machine.capability,
        "get_device_properties": lambda *_: told,
        "get_device_name": lambda *_: machine.name,
        "is_bf16_supported": lambda *_, **__: major >= 8,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "manual_seed": lambda *_: None,
        "manual_seed_all": lambda *_: None,
        "set_device": lambda *_: None,
        "_lazy_init": lambda: None,
    }
    for name, answer in answers.items():
        yield torch.cuda, name, answer


_MAKE_SUBCLASS = torch.Tensor._make_subclass


def _subclass(cls: type, data: torch.Tensor, require_grad: bool = False, **told: Any) -> Any:
    """A fake CUDA tensor keeps its data's device, ``meta``, in C++: the same answer as ``device_in_cpp``, without the call."""
    device = told.get("device_for_backend_keys")
    if cls is FakeTensor and device is not None and device.type == "cuda":
        told["dispatch_device"] = False
    return _MAKE_SUBCLASS(cls, data, require_grad, **told)


class Generator(torch.Generator):
    """A generator of random numbers, of which a CUDA one is not to be had (nor needed: nothing is drawn)."""

    def __new__(cls, device: Any = "cpu") -> Any:
        """On the CPU, wherever it is asked for."""
        return super().__new__(cls, device="cpu")  # type: ignore[call-arg]


_SWAP = torch.utils.swap_tensors


def _swap(first: torch.Tensor, second: torch.Tensor) -> None:
    """``Module.to`` of a fake parameter: the object stays and is given the other's memory, as ``.data =`` does."""
    if not isinstance(first, FakeTensor):
        _SWAP(first, second)  # type: ignore[no-untyped-call]
        return
    assert isinstance(second, FakeTensor)
    first.data = second.data
    first.fake_device, first.constant = second.fake_device, second.constant


_GROUP = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists: Any, with_indices: bool = False) -> Any:
    """Foreach groups under the device Python knows; C++ groups by its own (pytorch ForeachUtils.h)."""
    found = _GROUP(lists, with_indices)
    return {(CUDA if device.type == "meta" else device, dtype): group for (device, dtype), group in found.items()}


def _foreach_lists() -> Iterator[list[type]]:
    """The types that optimizers and clipping take their foreach road for (pytorch 2.13 torch/optim/optimizer.py:46)."""
    import torch.optim.optimizer as optimizer
    import torch.utils._foreach_utils as utils

    found = {id(listed): listed for owner in (optimizer, utils) if (listed := getattr(owner, "_foreach_supported_types", None))}
    yield from found.values()


@contextlib.contextmanager
def as_real_tensors() -> Iterator[None]:
    """transformers, which keeps masks on fake tensors that it leaves out on real ones, takes them for real.

    Entered once the model's code is imported (transformers 5.23.0 utils/import_utils.py:is_tracing asks is_fake_tensor).
    """
    module = sys.modules.get("transformers.utils.import_utils")
    with contextlib.ExitStack() as stack:
        if module is not None and hasattr(module, "is_fake_tensor"):
            stack.enter_context(_attribute(module, "is_fake_tensor", lambda tensor: False))
        yield


@contextlib.contextmanager
def _asked_anew() -> Iterator[None]:
    """What transformers once found out about GPUs is forgotten on the way in and out: it caches each answer."""

    def forget() -> None:
        for asked in vars(sys.modules.get("transformers.utils.import_utils", object)).values():
            if callable(clear := getattr(asked, "cache_clear", None)):
                clear()

    forget()
    try:
        yield
    finally:
        forget()


_ABSENT = object()


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def _among(listed: list[type], kind: type) -> Iterator[None]:
    listed.append(kind)
    try:
        yield
    finally:
        listed.remove(kind)
