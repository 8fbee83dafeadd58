"""torchao 0.18.0 (torchao.optim): low-bit states in blocks, and states kept on the host.

``AdamW8bit(block_size=256)`` keeps, for a parameter of n elements and each of its two moments:

    n >= 4096 and n % 256 == 0:   codes uint8[n]   scale float32[n / 256]   qmap float32[256]
    otherwise:                    a plain tensor of the parameter's shape and dtype

4-bit codes are packed two to a byte, with blocks of 128 and 16 entries; fp8 needs no table. Under FSDP2 n is the shard's.
Unlike in bitsandbytes every moment has a table of its own. The learning rate becomes a float32 tensor on the host, one a
group. Each parameter's step is one compiled function, whose buffers on CUDA nobody has measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from memcalc.arrays import Condition, as_count, both, not_
from memcalc.optimizers.base import Options, Param, Place, State, optimizer

SOURCE = "torchao 0.18.0 torchao/optim/"
MINIMUM = 4096
"""Elements from which a state is quantised (adam.py:71-79, _new_buffer)."""

Codes = Callable[[Param, int], Iterator[tuple[str, str, Any]]]
"""The tensors of one quantised moment: suffix, dtype, elements."""


def eight_bit(p: Param, block: int) -> Iterator[tuple[str, str, Any]]:
    """subclass_8bit.py:103-117 (zeros)."""
    yield "codes", "uint8", p.numel
    yield "scale", "float32", p.numel // block
    yield "qmap", "float32", 256


def four_bit(p: Param, block: int) -> Iterator[tuple[str, str, Any]]:
    """subclass_4bit.py:114-131 (zeros)."""
    yield "codes", "uint8", p.numel // 2
    yield "scale", "float32", p.numel // block
    yield "qmap", "float32", 16


def fp8(p: Param, block: int) -> Iterator[tuple[str, str, Any]]:
    """subclass_fp8.py:85-96 (zeros)."""
    yield "codes", "float8_e4m3fn", p.numel
    yield "scale", "float32", p.numel // block


def moments(o: Options) -> Iterator[tuple[str, str]]:
    """Names and parts of what Adam keeps of each parameter's size."""
    yield "exp_avg", "momentum"
    yield "exp_avg_sq", "variance"
    if o.amsgrad:
        yield "max_exp_avg_sq", "variance"


def low_bit(codes: Codes, p: Param, o: Options) -> Iterator[State]:
    """A step counter on the host, then each moment in codes or, where it does not qualify, plain (adam.py:71-99, 122-128)."""
    yield State("step", "step", "float32", 1, place="host")
    fits = both(p.numel >= MINIMUM, p.numel % o.block_size == 0)
    for name, part in moments(o):
        for suffix, dtype, numel in codes(p, o.block_size):
            yield State(f"{name}.{suffix}", part if suffix == "codes" else "scales", dtype, numel, as_count(fits))
        yield State(name, part, p.dtype, p.numel, as_count(not_(fits)))


def learning_rate(params: Sequence[Param], o: Options) -> Iterator[State]:
    """One float32 on the host for a group (adam.py:53-59, add_param_group)."""
    yield State("lr", "step", "float32", 1, place="host")


def no_maximum(o: Options) -> Iterator[tuple[str, str]]:
    """The quantised tensors implement copy_ and lerp, not the maximum that amsgrad takes (adam.py:198)."""
    if o.amsgrad:
        yield "amsgrad", "fails in the step: the quantised states have no maximum"


CONSTRUCTOR = {"lr", "betas", "eps", "weight_decay", "bf16_stochastic_round"}

for suffix, codes, block, what in (
    ("8bit", eight_bit, 256, "8-bit moments with a float32 scale for 256 and a table of 256"),
    ("4bit", four_bit, 128, "4-bit moments with a float32 scale for 128 and a table of 16"),
    ("Fp8", fp8, 256, "float8_e4m3fn moments with a float32 scale for 256"),
):
    for name in ("Adam", "AdamW"):
        optimizer(
            f"torchao:{name}{suffix}",
            cls=f"torchao.optim.{name}{suffix}",
            summary=f"{what}; the parameter's dtype below 4096 elements or in ragged blocks",
            source=SOURCE + "adam.py:71-128, subclass_8bit.py, subclass_4bit.py, subclass_fp8.py",
            options={"amsgrad": False, "block_size": block},
            constructor=CONSTRUCTOR,
            temporaries=None,
            shared=learning_rate,
            refuses=no_maximum,
        )(partial(low_bit, codes))


@optimizer(
    "torchao:_AdamW",
    cls="torchao.optim._AdamW",
    summary="momentum and variance in the parameter's dtype, for quantised training",
    source=SOURCE + "adam.py:406-430: an infinite block, which no size is a multiple of",
    options={"amsgrad": False},
    constructor=CONSTRUCTOR,
    temporaries=None,
    shared=learning_rate,
)
def plain(p: Param, o: Options) -> Iterator[State]:
    """A step counter on the host and two or three whole tensors."""
    yield State("step", "step", "float32", 1, place="host")
    for name, part in moments(o):
        yield State(name, part, p.dtype, p.numel)


def offloaded(p: Param, o: Options) -> Iterator[State]:
    """A pinned copy of parameter and gradient and fused AdamW's state on the host; small ones stay on the device."""
    far: Condition = p.numel >= o.minimal_size
    yield State("p_host", "master", p.dtype, p.numel, as_count(far), "host")
    yield State("p_host.grad", "gradient", p.dtype, p.numel, as_count(far), "host")
    places: tuple[tuple[Place, Condition], ...] = (("host", far), ("device", not_(far)))
    for place, here in places:
        yield State("step", "step", "float32", 1, as_count(here), place)
        for name, part in moments(o):
            yield State(name, part, p.dtype, p.numel, as_count(here), place)


OFFLOAD: dict[str, Any] = {
    "cls": "torchao.optim.CPUOffloadOptimizer",
    "source": SOURCE + "cpu_offload.py:19-114, around torch.optim.AdamW with fused=True, its default; copies born at init",
    # the keyword arguments of AdamW that change no byte of its fused form
    "constructor": {"lr", "betas", "eps", "weight_decay", "maximize"},
}
optimizer(
    "torchao:CPUOffloadOptimizer",
    summary="nothing on the device from 4096 elements: pinned parameter and gradient, and AdamW's moments, on the host",
    options={"minimal_size": 4096, "amsgrad": False, "offload_gradients": False},
    refuses=lambda o: (
        [("offload_gradients", "is an entry of its own; use torchao:CPUOffloadOptimizer+offload_gradients")]
        if o.offload_gradients
        else []
    ),
    **OFFLOAD,
)(offloaded)
optimizer(
    "torchao:CPUOffloadOptimizer+offload_gradients",
    summary="as without it, and each device gradient is freed once it is copied",
    options={"minimal_size": 4096, "amsgrad": False, "offload_gradients": True},
    preset={"offload_gradients": True},
    refuses=lambda o: [] if o.offload_gradients else [("offload_gradients", "is what this entry is for")],
    frees_gradients=True,
    **OFFLOAD,
)(offloaded)
