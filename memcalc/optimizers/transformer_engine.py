"""Transformer Engine at d0067d0da (2.20 development, 2026-08-22): FusedAdam, read from its source, for its kernels need CUDA.

Options are the constructor's, dtypes by torch's names (``uint8`` is FP8 E4M3). A state that is not float32 has a float32
scale; an FP8 one is a Float8Tensor, which also carries an inverse scale, a quantizer's scale and its amax, and on GPUs without
non-TN FP8 matrix products (below sm_100, and sm_120 to sm_129: Ada, Hopper, consumer Blackwell) a transposed copy.
``fp8_transpose`` says which: it is a fact of the GPU, not an argument.

A step turns every state that is not float32 into a float32 copy of the whole group at once, so low-precision states do not
lower the step's peak; two bfloat16 moments alone are read by the kernel as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer

SOURCE = "NVIDIA/TransformerEngine d0067d0da transformer_engine/pytorch/optimizers/fused_adam.py"
MOMENTS = ("float32", "float16", "bfloat16", "uint8")


def dtypes(p: Param, o: Options) -> Iterator[tuple[str, str, str]]:
    """Name, part and dtype of each state; a remainder is the 16 bits that a bfloat16 parameter lacks of its master."""
    yield "exp_avg", "momentum", o.exp_avg_dtype
    yield "exp_avg_sq", "variance", o.exp_avg_sq_dtype
    if o.master_weights:
        remainder = o.store_param_remainders and o.master_weight_dtype == "float32" and p.dtype == "bfloat16"
        yield "master_param", "master", "int16" if remainder else o.master_weight_dtype


def refusals(o: Options) -> Iterator[tuple[str, str]]:
    """fused_adam.py:133-168 and 217-218."""
    if o.amsgrad:
        yield "amsgrad", "is not supported by the fused kernel"
    if o.master_weights and o.master_weight_dtype not in ("float32", "float16"):
        yield "master_weight_dtype", "is not float32 or float16"
    for key in ("exp_avg_dtype", "exp_avg_sq_dtype"):
        if o[key] not in MOMENTS:
            yield key, "is not float32, float16, bfloat16 or uint8"
    if o.capturable and o.master_weights and o.master_weight_dtype != "float32":
        yield "master_weight_dtype", "is not float32, which capturable needs"
    if o.capturable and (o.exp_avg_dtype != o.exp_avg_sq_dtype or o.exp_avg_dtype not in ("float32", "bfloat16")):
        yield "exp_avg_dtype", "is not, as exp_avg_sq_dtype, float32 or bfloat16, which capturable needs"
    if o.capturable and o.master_weights and o.store_param_remainders and o.master_weight_dtype == "float32":
        yield "store_param_remainders", "cannot be used with capturable"


def shared(params: Sequence[Param], o: Options) -> Iterator[State]:
    """The kernels' flag, capturable's tensors, and the largest values of fp16 and FP8 (fused_adam.py:172-209, 288-291)."""
    yield State("_dummy_overflow_buf", "step", "int32", 1)
    if o.capturable:
        yield State("lr", "step", "float32", 1)
        yield State("step", "step", "int32", 1)
        yield State("defaults.lr", "step", "float32", 1, place="host")
    used = {o.exp_avg_dtype, o.exp_avg_sq_dtype, *([o.master_weight_dtype] if o.master_weights else [])}
    # the fp16 entry is replaced by its copy on the device; the FP8 one is stored under another key, beside the original
    yield State("dtype_to_range_map", "table", "float32", 1, len(used & {"float16", "uint8"}))
    yield State("dtype_to_range_map", "table", "float32", 1, 2 - len(used & {"float16"}), "host")


def unscaled(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """float32 copies of every low-precision state, all alive until the step ends (fused_adam.py:306-352, 612-673, 880-892)."""
    fused = o.exp_avg_dtype == o.exp_avg_sq_dtype == "bfloat16"
    for name, _, dtype in dtypes(p, o):
        moment = name != "master_param"
        if dtype not in ("float32", "int16") and not (fused and moment):
            yield Temporary(f"unscaled {name}", 4 * p.numel, "sum")
            if dtype == "bfloat16":
                yield Temporary(f"rounded {name}", 2 * p.numel, "max")


@optimizer(
    "transformer-engine:FusedAdam",
    cls="transformer_engine.pytorch.optimizers.FusedAdam",
    summary="momentum and variance in dtypes of your choice, float32 by default, and a master or its remainder if asked",
    source=SOURCE + ":393-475; csrc/quantizer.cpp:355-390 (create_tensor), common/transformer_engine.cpp:1191",
    options={
        "amsgrad": False,
        "capturable": False,
        "master_weights": False,
        "master_weight_dtype": "float32",
        "exp_avg_dtype": "float32",
        "exp_avg_sq_dtype": "float32",
        "store_param_remainders": False,
        "fp8_transpose": True,
    },
    own=frozenset({"fp8_transpose"}),
    constructor={"lr", "betas", "eps", "weight_decay", "bias_correction", "adam_w_mode", "use_decoupled_grad", "set_grad_none"},
    temporaries=unscaled,
    shared=shared,
    refuses=refusals,
    needs="float16, bfloat16 or float32",
    accepts=lambda p: p.dtype in ("float16", "bfloat16", "float32"),
)
def fused_adam(p: Param, o: Options) -> Iterator[State]:
    """Each state, then the scalars that make its low precision usable."""
    for name, part, dtype in dtypes(p, o):
        yield State(name, part, dtype, p.numel)
        if dtype == "uint8":
            if o.fp8_transpose:
                yield State(f"{name}._transpose", part, dtype, p.numel)
            for scalar in ("_scale_inv", "_quantizer.scale", "_quantizer.amax"):
                yield State(f"{name}.{scalar}", "scales", "float32", 1)
        if dtype not in ("float32", "int16"):
            yield State(f"_scales.{name}", "scales", "float32", 1)
