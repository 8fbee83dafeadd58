"""The backend CUDA's ``scaled_dot_product_attention`` takes (native/transformers/cuda/sdp_utils.cpp:select_sdp_backend)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from memcalc.arrays import Condition, not_
from memcalc.errors import InputError, NotModelledError
from memcalc.kernels.behaviour import Behaviour
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

BACKENDS = ("flash", "efficient", "math", "cudnn")
"""The default order: Context.h:sdp_priority_order (2.7 on), sdp_utils.cpp:priority_order (2.6)."""
CUDNN_FIRST = ("cudnn", "flash", "efficient", "math")  # sdp_utils.cpp:priority_order
HALF = ("float16", "bfloat16")


class Call(NamedTuple):
    """One call, as the checks look at it."""

    query: Value
    key: Value
    value: Value
    mask: Value | None
    probability: float
    causal: bool
    grouped: bool
    trains: bool
    behaviour: Behaviour


def kernel_of(machine: Machine, asked: str, call: Call, allowed: tuple[str, ...] | None = None) -> str:
    """The first backend that can serve, of those in order (``allowed`` where the code sets one) or of the one asked for.

    Raises:
        InputError: the one that was asked for cannot, or none of those allowed.
        NotModelledError: none of torch's own was asked for, of a model whose attention is not played with another's.
    """
    if asked not in (*BACKENDS, "auto", "eager"):
        raise NotModelledError("training.attention", asked, "is not modelled of this model", "use auto")
    order = allowed or (CUDNN_FIRST if prefers_cudnn(call.behaviour) else BACKENDS)
    for backend in order if asked in ("auto", "eager") else (asked,):
        refused = next((why for condition, why in CHECKS[backend](call) if machine.decide(condition)), None)
        if refused is None:
            return backend
        if asked not in ("auto", "eager"):
            raise InputError("training.attention", asked, f"cannot serve this model ({refused})", "use auto")
    raise InputError("training.attention", asked, f"finds no kernel of {', '.join(order)} that serves", "use math, or bf16")


def prefers_cudnn(behaviour: Behaviour) -> bool:
    """Whether cuDNN's attention comes first (sdp_utils.cpp:check_prefer_cudnn_attention).

    Opt-in up to 2.8 (pytorch#138522); by default since 2.9 (pytorch#162073), where the CUDA 12 wheels were built against too
    old a cuDNN to take it (pytorch#165801); with cuDNN over 9.15.0 since 2.10 (pytorch#169849).
    """
    major, minor = behaviour.capability
    if behaviour.torch < (2, 9) or major not in (9, 10):
        return False
    if behaviour.torch < (2, 10):
        return behaviour.cuda >= (13, 0) and minor == 0
    return behaviour.cudnn > 91500 and minor in (0, 3)


Checks = Iterator[tuple[Condition, str]]
"""(whether it stands in the way, why)."""


def _flash(call: Call) -> Checks:
    """can_use_flash_attention."""
    width = call.query.shape[-1]
    yield call.mask is not None, "an explicit mask (check_for_attn_mask)"
    yield not _same(width, call.key.shape[-1]) or not _same(width, call.value.shape[-1]), "head dimensions differ"
    yield width > 256, "a head dimension over 256 (check_head_dim_size_flash)"
    capability = call.behaviour.capability
    yield not (8, 0) <= capability <= _newest(call), "the GPU's compute capability (check_flash_attention_hardware_support)"
    consumer = (8, 6) <= capability <= (8, 9) or (capability[0] == 12 and call.behaviour.torch >= (2, 7))
    if call.trains and consumer:
        yield (width > 192) & (width <= 224), "backward of a head dimension over 192"
        yield (width > 224) & (call.probability > 0), "backward of a head dimension over 224 with dropout"
    lengths = call.query.shape[-2], call.key.shape[-2]
    yield call.causal and not _same(*lengths), "a causal mask over unequal lengths"
    yield not _is_low(call), "the dtype (check_dtypes_low_precision)"
    yield not call.grouped and not _same(call.query.shape[1], call.key.shape[1]), "numbers of heads differ"


def _efficient(call: Call) -> Checks:
    """can_use_mem_efficient_attention."""
    major, minor = call.behaviour.capability
    yield not (5, 0) <= (major, minor) <= _newest(call), "the GPU's compute capability"
    multiple = gemm_alignment(call.query.dtype, major)
    width, of_value = call.query.shape[-1], call.value.shape[-1]
    yield not _same(width, call.key.shape[-1]), "head dimensions differ"
    yield (width % multiple != 0) | (of_value % multiple != 0), f"a head dimension that is no multiple of {multiple}"
    yield not _same(call.query.shape[1], call.key.shape[1]), "numbers of heads differ"
    allowed = (*HALF, "float32") if major >= 8 else ("float16", "float32")
    yield call.query.dtype not in allowed, "the dtype (check_tensor_dtype)"


def _cudnn(call: Call) -> Checks:
    """can_use_cudnn_attention, check_cudnn_tensor_shapes."""
    version, behaviour = call.behaviour.cudnn, call.behaviour
    yield version < 90000, "cuDNN older than 9.0.0"
    yield call.probability > 0 and 91100 < version < 91400 and behaviour.torch >= (2, 9), "dropout (pytorch#163903)"
    yield behaviour.deterministic, "deterministic algorithms"
    yield not _is_low(call), "the dtype (check_dtypes_low_precision)"
    yield call.mask is not None and call.mask.node is not None, "a mask that needs a gradient (check_attn_mask_shape)"
    yield not (8, 0) <= behaviour.capability <= _newest(call), "the GPU's compute capability (check_cudnn_hardware_support)"
    sixteenths = call.probability * 16
    yield behaviour.torch >= (2, 12) and sixteenths != int(sixteenths), "a dropout that is no multiple of 1/16"
    heads = call.query.shape[1], call.key.shape[1]
    yield not call.grouped and not _same(*heads), "numbers of heads differ"
    width, of_value = call.query.shape[-1], call.value.shape[-1]
    hopper = behaviour.capability == (9, 0)
    limit = 256 if hopper and version >= 91000 and behaviour.torch >= (2, 9) else 128
    special = (width == 192) & (of_value == 128) & (behaviour.major == 10 and version >= 91100)
    yield ((width > limit) | (of_value > limit)) & not_(special), f"a head dimension over {limit}"
    yield (width % 8 != 0) | (of_value % 8 != 0), "a head dimension that is no multiple of 8"
    one = call.query.shape[2] == 1
    yield (call.key.shape[2] == 1) | (one & (call.probability > 0)), "a sequence of length 1"


def _math(call: Call) -> Checks:
    return iter(())


CHECKS = {"flash": _flash, "efficient": _efficient, "cudnn": _cudnn, "math": _math}


def gemm_alignment(dtype: str, major: int) -> int:
    """Elements that a head dimension must be a multiple of (sdp_utils.cpp:minimum_gemm_alignment).

    >>> gemm_alignment("float16", 8), gemm_alignment("float32", 8), gemm_alignment("float32", 7)
    (8, 4, 1)
    """
    half = dtype in HALF
    tensor_cores = major >= 8 or (major >= 7 and half)
    least = 4 if major >= 8 else 1
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _newest(call: Call) -> tuple[int, int]:
    return (12, 1) if call.behaviour.torch >= (2, 7) else (9, 0)


def _is_low(call: Call) -> bool:
    allowed = HALF if call.behaviour.major >= 8 else ("float16",)
    return call.query.dtype in allowed and call.query.dtype == call.key.dtype == call.value.dtype


def _same(first: object, second: object) -> bool:
    return first is second or bool(_every(first == second))


def _every(condition: object) -> object:
    return condition.all() if hasattr(condition, "all") else condition
