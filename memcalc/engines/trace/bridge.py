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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch._subclasses.fake_tensor as fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from memcalc.engines.trace.cuda.autocast import cuda_autocast
from memcalc.engines.trace.cuda.modes import cuda_composites
from memcalc.engines.trace.cuda.rules import cuda_rules

if TYPE_CHECKING:
    from memcalc.engines.trace.machine import Machine

CUDA = torch.device("cuda", 0)
META = torch.device("meta")
ITEM = torch.ops.aten._local_scalar_dense.default
PRIM_DEVICE = torch.ops.prim.device.default
RANGES = frozenset({torch.ops.aten.linspace.default, torch.ops.aten.arange.default, torch.ops.aten.arange.start,
                    torch.ops.aten.arange.start_step})  # fmt: skip
CONSTANTS = 1024
"""Elements up to which the values of a CPU tensor are followed (fake_tensor.py:CONSTANT_NUMEL_LIMIT follows one)."""


class CudaFakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors whose device is ``cuda`` in Python and ``meta`` in C++.

    C++ makes new tensors where the ones it was given are, so that its ``meta`` is read as ``cuda`` here. A module that is
    really meant to be on ``meta`` cannot be told from one on the GPU.
    """

    answering = False
    """Whether a value that decides something is answered, not refused: inside the optimizer, where gradients are finite."""
    avoid_device_init = True
    """``torch.tensor(…, device="cuda")`` is made on the CPU and moved, and no constant is moved for real: there is no GPU."""

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operator."""
        if func is PRIM_DEVICE and not self.in_kernel_invocation:
            return device_in_cpp(args[0])
        if func is ITEM and self.answering and args[0].constant is None:
            return True if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 1
        if kwargs and getattr(kwargs.get("device"), "type", "") in ("meta", "cuda"):
            kwargs = {**kwargs, "device": CUDA}
        elif func in RANGES and (known := self._known(func, args, kwargs or {})) is not None:
            return known
        return super().dispatch(func, types, args, kwargs or {})

    def _known(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A short range on the CPU, whose values a constructor may read: rates of a drop path, sizes of a window."""
        with _disable_current_modes():
            made = func(*args, **kwargs)
        if made.device.type != "cpu" or not self.may_turn_const(made):
            return None
        return self.fake_tensor_converter.from_real_tensor(self, made, make_constant=True)


def device_in_cpp(tensor: Any) -> torch.device:
    """What C++ is told of a fake tensor's device."""
    device: torch.device = tensor.fake_device
    return META if device.type == "cuda" else device


@contextlib.contextmanager
def cuda_is_here(machine: Machine) -> Iterator[CudaFakeMode]:
    """A process in which there is one GPU, as far as fake tensors and those who ask for it can tell."""
    mode = CudaFakeMode(allow_non_fake_inputs=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_asked_anew())
        for owner, name, value in _patches(machine):
            stack.enter_context(_attribute(owner, name, value))
        for listed in _foreach_lists():
            stack.enter_context(_among(listed, FakeTensor))
        stack.enter_context(mode)
        stack.enter_context(CudaFunctions())
        stack.enter_context(cuda_composites(machine.behaviour))
        stack.enter_context(cuda_autocast(machine.behaviour))
        stack.enter_context(cuda_rules())
        yield mode


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


RESTATED: dict[Any, Callable[..., Any]] = {torch.Tensor.to: _to, torch.Tensor.cuda: _cuda}
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
