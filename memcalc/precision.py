"""Precision schemes: which copies of the parameters and gradients exist, in what dtype, and from when until when."""

from __future__ import annotations

from typing import Literal

from memcalc.records import dataclass
from memcalc.registry import Registry
from memcalc.tensors import Kind

AUTOCAST_KINDS: frozenset[Kind] = frozenset({"linear", "conv"})
"""Whose weights autocast casts: operators on its lower-precision list (pytorch aten/src/ATen/autocast_mode.h,
AT_FORALL_LOWER_PRECISION_FP); embeddings and normalisations are not on it, nor is ``_grouped_mm``, which takes a mixture's
stacked matrices: what they multiply is cast to their dtype (transformers 5.23.0 integrations/moe.py:_grouped_mm)."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to hold a model in training. A dtype of None follows the model's own.

    Attributes:
        name: as ``--precision`` takes it.
        summary: one line for a person.
        source: where it was read.
        parameter: the parameters' dtype between steps.
        gradient: the dtype of ``p.grad``; None follows the parameter.
        master: the copy the optimizer updates, kept for good; None where it updates the parameters themselves.
        copy: the dtype of autocast's or the gather's copies, from forward to each layer's backward.
        main_gradient: a second set of gradients in another dtype.
        main_gradient_lives: ``always`` (a buffer that is never given up), or from ``backward``'s end to that of the step.
        gradient_lives: ``step``: from backward to zero_grad; ``layer``: handed over to the main gradient layer by layer.
        step: ``textbook``: tensors one by one, each gradient cast to the master's dtype for its own update;
            ``library``: the optimizer's own step; ``flat``: every gradient cast and flattened at once (DeepSpeed).
        backend: the only data-parallel engine that has this layout; None for any.
        scaler: whether a GradScaler is part of it.
        keeps: kinds of tensors that stay in fp32.
    """

    name: str
    summary: str
    source: str
    parameter: str | None = None
    gradient: str | None = None
    master: str | None = None
    copy: str | None = None
    main_gradient: str | None = None
    main_gradient_lives: Literal["always", "backward"] = "backward"
    gradient_lives: Literal["step", "layer"] = "step"
    step: Literal["textbook", "library", "flat"] = "library"
    backend: str | None = None
    scaler: bool = False
    keeps: frozenset[Kind] = frozenset()

    @property
    def unscales_to_masters(self) -> bool:
        """Whether the main gradients are made of the parameters' own once backward is through, and go with the step."""
        return self.main_gradient is not None and self.main_gradient_lives == "backward"


SCHEMES: Registry[Scheme] = Registry("precision")

_TEXTBOOK = "Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054) section 3.1: 2P + 2P + 12P"
_AUTOCAST = "pytorch 2.13 torch/amp/autocast_mode.py, aten/src/ATen/autocast_mode.cpp:cached_cast"
_DEEPSPEED = "deepspeed 0.19.8 deepspeed/runtime/fp16/fused_optimizer.py:FP16_Optimizer"
_MEGATRON = "Megatron-LM d98e8a64 docs/user-guide/features/dist_optimizer.md:14-20; core/optimizer/optimizer.py"

for _scheme in (
    Scheme("fp16", "the textbook: FP16 parameters and gradients, FP32 master copy", _TEXTBOOK,
           parameter="float16", master="float32", step="textbook"),
    Scheme("bf16", "the textbook in BF16: BF16 parameters and gradients, FP32 master copy", _TEXTBOOK,
           parameter="bfloat16", master="float32", step="textbook"),
    Scheme("amp-fp16", "torch.autocast: FP32 parameters and gradients, FP16 copies during the step, a GradScaler", _AUTOCAST,
           parameter="float32", copy="float16", scaler=True),
    Scheme("amp-bf16", "torch.autocast: FP32 parameters and gradients, BF16 copies during the step", _AUTOCAST,
           parameter="float32", copy="bfloat16"),
    Scheme("fp32", "everything in FP32", "pytorch: the default dtype", parameter="float32"),
    Scheme("bf16-pure", "BF16 parameters and gradients, no master; states in the optimizer's own dtype",
           "pytorch: module.to(torch.bfloat16)", parameter="bfloat16"),
    Scheme("fp16-pure", "FP16 parameters and gradients, no master; states in the optimizer's own dtype",
           "pytorch: module.half()", parameter="float16"),
    Scheme("as-is", "a live module or checkpoint with the dtypes it has", "pytorch: nothing is cast"),
    Scheme("apex-o2", "apex amp O2: FP16 parameters and gradients, FP32 masters and FP32 master gradients",
           "apex at cb65b8ed^ apex/amp/_process_optimizer.py:post_backward_with_master_weights",
           parameter="float16", master="float32", main_gradient="float32", backend="torch",
           keeps=frozenset({"batch_norm"})),
    Scheme("deepspeed-fp16", "DeepSpeed fp16: FP16 parameters and gradients, flat FP32 master copy", _DEEPSPEED,
           parameter="float16", master="float32", step="flat", backend="deepspeed"),
    Scheme("deepspeed-bf16", "DeepSpeed bf16 with FP32 gradient accumulation: a full FP32 gradient buffer on every rank",
           "deepspeed 0.19.8 deepspeed/runtime/bf16_optimizer.py:140-235",
           parameter="bfloat16", master="float32", main_gradient="float32", main_gradient_lives="always",
           step="library", backend="deepspeed"),
    Scheme("megatron-bf16", "Megatron-LM bf16: FP32 main gradients in a buffer for good, FP32 main parameters", _MEGATRON,
           parameter="bfloat16", master="float32", main_gradient="float32", main_gradient_lives="always",
           gradient_lives="layer", backend="megatron"),
    Scheme("fsdp2-mixed", "FSDP2 MixedPrecisionPolicy(param_dtype=bf16): FP32 shards, BF16 gathered copies, FP32 gradients",
           "pytorch 2.13 torch/distributed/fsdp/_fully_shard/_fsdp_param.py:init_dtype_attrs",
           parameter="float32", copy="bfloat16", backend="fsdp2"),
):  # fmt: skip
    SCHEMES.add(_scheme.name, _scheme)
