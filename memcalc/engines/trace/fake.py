"""Fake tensors that say ``cuda`` to Python and ``meta`` to C++; why is told in ``memcalc.engines.trace.bridge``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from memcalc.engines.trace.shapes import Rules
from memcalc.engines.trace.values import Values

CUDA = torch.device("cuda", 0)
META = torch.device("meta")
FOUND_INF = torch.ops.aten._amp_foreach_non_finite_check_and_unscale_.default
ITEM = torch.ops.aten._local_scalar_dense.default
LIFT_FRESH = torch.ops.aten.lift_fresh.default
PRIM_DEVICE = torch.ops.prim.device.default
RANGES = frozenset({torch.ops.aten.linspace.default, torch.ops.aten.arange.default, torch.ops.aten.arange.start,
                    torch.ops.aten.arange.start_step})  # fmt: skip
MASKS = ("masking_utils.py", "modeling_attn_mask_utils.py")
"""Where transformers asks whether a batch is packed or padded, to leave out a mask that would change nothing (transformers
5.23.0 masking_utils.py: find_packed_sequence_indices, _ignore_causal_mask_sdpa, fast_all)."""
WARNING = "warn_if_padding_and_no_attention_mask"
"""Where it asks whether there is a token of padding, to warn of it (transformers 5.23.0 modeling_utils.py)."""
WHOLE_SEQUENCES = "each row of the batch is one whole sequence, neither packed nor padded, so that no mask is made for it"
PLACEHOLDER_MASK = "get_placeholder_mask"
"""Where it counts the places that image features go to (transformers 5.23.0 models/gemma3/modeling_gemma3.py)."""
PLACEHOLDERS = "each row has as many places for image features as its images give"
CONSTANTS = 1024
"""Elements up to which the values of a CPU tensor are followed (fake_tensor.py:CONSTANT_NUMEL_LIMIT follows one)."""


class CudaFakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors whose device is ``cuda`` in Python and ``meta`` in C++.

    C++ makes new tensors where the ones it was given are, so that its ``meta`` is read as ``cuda`` here. A module that is
    really meant to be on ``meta`` cannot be told from one on the GPU.
    """

    answering = False
    """Whether a value that decides something is answered, not refused: inside the optimizer, where gradients are finite.

    GradScaler has found no overflow, and any other number is 1: a norm that is there, an average of one step.
    """
    whole = True
    """Whether rows of a batch are whole sequences, neither packed nor padded."""
    avoid_device_init = True
    """``torch.tensor(…, device="cuda")`` is made on the CPU and moved, and no constant is moved for real: there is no GPU."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.assumed: dict[str, None] = {}
        self.rules = Rules(self, super().dispatch)
        self.values: Values | None = None
        """What follows the values of a router's choices; nobody, unless they are asked for."""

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operator."""
        if func is PRIM_DEVICE and not self.in_kernel_invocation:
            return device_in_cpp(args[0])
        if self.values is not None and not self.answering and not self.in_kernel_invocation:
            return self.values.run(func, types, args, kwargs or {})
        return self.without_values(func, types, args, kwargs)

    def without_values(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operator, whatever values its tensors are known to have."""
        if func is ITEM and type(args[0]) is FakeTensor and args[0].constant is not None:
            return args[0].constant.item()
        if func is FOUND_INF:
            args[1].no_overflow = True
        if func is ITEM and self.answering and args[0].constant is None:
            return True if args[0].dtype == torch.bool else 0.0 if hasattr(args[0], "no_overflow") else 1
        if (
            func is ITEM
            and args[0].constant is None
            and args[0].dtype == torch.bool
            and (whole := _of_whole_sequences(self.whole)) is not None
        ):
            if whole:
                self.assumed[WHOLE_SEQUENCES] = None
            return whole
        if func is ITEM and args[0].constant is None and args[0].dtype in (torch.bool, torch.int64) and _of_an_image():
            self.assumed[PLACEHOLDERS] = None
            return True if args[0].dtype == torch.bool else 1
        if func is LIFT_FRESH and type(args[0]) is torch.Tensor and not args[0].ndim and args[0].device.type == "cpu":
            return self._constant(args[0])
        if kwargs and getattr(kwargs.get("device"), "type", "") in ("meta", "cuda"):
            kwargs = {**kwargs, "device": CUDA}
        elif func in RANGES and (known := self._known(func, args, kwargs or {})) is not None:
            return known
        return self.rules.answer(func, types, args, kwargs or {})

    def _constant(self, real: torch.Tensor) -> FakeTensor:
        """``torch.tensor(1.0)``, whose value stays known (fake_tensor.py:FakeTensorConverter.from_real_tensor)."""
        converter = self.fake_tensor_converter
        real = real.clone()
        made = FakeTensor(self, torch.empty((), dtype=real.dtype, device=META), real.device, constant=real)
        converter.set_tensor_memo(real, made)
        converter.add_constant_storage_mapping(made)
        return made

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One operator, without the parent's counting and logging."""
        return self.dispatch(func, types, args, kwargs)

    def _known(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A short range on the CPU, whose values a constructor may read: rates of a drop path, sizes of a window."""
        with _disable_current_modes():
            made = func(*args, **kwargs)
        if made.device.type != "cpu" or not self.may_turn_const(made):
            return None
        return self.fake_tensor_converter.from_real_tensor(self, made, make_constant=True)


def _of_an_image(depth: int = 32) -> bool:
    """Whether transformers asks how many places for image features there are among the tokens."""
    frame: Any = sys._getframe(1)
    while frame is not None and depth:
        if frame.f_code.co_name == PLACEHOLDER_MASK:
            return True
        frame, depth = frame.f_back, depth - 1
    return False


def _of_whole_sequences(whole: bool, depth: int = 24) -> bool | None:
    """What transformers is answered where it asks for packing or padding (``whole``: neither); None for something else."""
    frame = sys._getframe(1)
    for _ in range(depth):
        if frame.f_code.co_filename.endswith(MASKS):
            return whole
        if frame.f_code.co_name == WARNING:
            return False
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def device_in_cpp(tensor: Any) -> torch.device:
    """What C++ is told of a fake tensor's device."""
    device: torch.device = tensor.fake_device
    return META if device.type == "cuda" else device
