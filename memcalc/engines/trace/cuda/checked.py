"""Operators whose CUDA source was read and found to allocate nothing beyond their results."""

from __future__ import annotations

_POINTWISE = (  # TensorIterator kernels: native/cuda/{Activation,Binary,Unary,Pointwise,Compare,Copy,Fill}*.cu, Loops.cuh
    *(
        "add",
        "add_",
        "sub",
        "sub_",
        "rsub",
        "mul",
        "mul_",
        "div",
        "div_",
        "pow",
        "pow_",
        "neg",
        "neg_",
        "abs",
        "sign",
        "square",
    ),
    *("sqrt", "sqrt_", "rsqrt", "rsqrt_", "reciprocal", "reciprocal_", "exp", "exp_", "log", "log2", "log10", "log1p", "expm1"),
    *("sin", "cos", "tan", "sinh", "cosh", "tanh", "tanh_", "atan", "atan2", "erf", "erfc", "erfinv", "sigmoid", "sigmoid_"),
    *("relu", "relu_", "gelu", "silu", "silu_", "mish", "elu", "elu_", "leaky_relu", "leaky_relu_", "hardtanh", "hardtanh_"),
    *("hardswish", "hardswish_", "hardsigmoid", "softplus", "softshrink", "hardshrink", "threshold", "threshold_", "logit"),
    *("gelu_backward", "silu_backward", "mish_backward", "elu_backward", "leaky_relu_backward", "hardtanh_backward"),
    *("hardswish_backward", "hardsigmoid_backward", "softplus_backward", "threshold_backward", "sigmoid_backward"),
    *("tanh_backward", "logit_backward", "_prelu_kernel", "log_sigmoid_forward", "log_sigmoid_backward", "glu", "glu_backward"),
    *("maximum", "minimum", "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_", "where", "lerp", "lerp_"),
    *("addcmul", "addcmul_", "addcdiv", "addcdiv_", "remainder", "fmod", "floor", "ceil", "round", "trunc", "frac"),
    *("floor_divide", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "logical_xor"),
    *("bitwise_and", "bitwise_or", "bitwise_not", "bitwise_xor", "isnan", "isfinite", "sgn", "masked_fill"),
    *("masked_fill_", "fill_", "zero_", "copy_", "_to_copy", "clone", "contiguous", "nan_to_num", "hypot", "xlogy"),
    *("tril", "triu", "tril_", "triu_", "arange", "linspace", "eye", "complex", "polar", "conj_physical", "_conj", "angle"),
)
_FACTORIES = (
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "new_zeros", "new_ones"),
    *("new_full", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "scalar_tensor", "lift_fresh"),
    *("rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "uniform_", "normal_", "bernoulli", "bernoulli_"),
    *("exponential_", "random_", "log_normal_", "cauchy_", "geometric_", "native_dropout", "native_dropout_backward"),
)  # DistributionTemplates.h, Dropout.cu: the generator's state is passed by value
_VIEWS = (
    *("view", "_unsafe_view", "_reshape_alias", "as_strided", "expand", "permute", "transpose", "transpose_", "t", "slice"),
    *("select", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "split", "split_with_sizes", "unbind", "detach", "detach_"),
    *("alias", "diagonal", "unfold", "view_as_real", "view_as_complex", "real", "imag", "narrow", "movedim", "lift"),
    *("set_", "resize_", "_local_scalar_dense", "is_same_size", "_nested_view_from_buffer", "is_pinned", "record_stream"),
)
_SHAPES = (
    *("cat", "stack", "repeat", "flip", "constant_pad_nd", "replication_pad2d", "replication_pad1d"),
    *("slice_backward", "select_backward", "slice_scatter", "select_scatter", "diagonal_backward", "as_strided_scatter"),
    *("split_with_sizes_copy", "pixel_shuffle", "pixel_unshuffle", "unfold_backward", "embedding"),
    *("gather", "index_select", "take", "index_fill", "index_fill_", "index_copy_"),
)  # Shape.cu: cat passes its addresses in kernel arguments (CatArrInputTensorMetadata); ScatterGatherKernel.cu; Indexing.cu
_NORMS = (
    "_fused_rms_norm",  # layer_norm_kernel.cu:RmsNormKernelImplInternal
    "batch_norm_elemt",  # Normalization.cu:batch_norm_elemt_cuda
)
_LOSSES = (
    *("nll_loss_forward", "nll_loss_backward", "nll_loss2d_backward"),  # Loss.cu, NLLLoss2d.cu
    *("mse_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward", "binary_cross_entropy_backward"),
)
_FOREACH = (  # Foreach{Binary,Unary,Pointwise,Ternary}Op*.cu: addresses go in kernel arguments (MultiTensorApply.cuh)
    *("_foreach_add", "_foreach_add_", "_foreach_sub", "_foreach_sub_", "_foreach_mul", "_foreach_mul_", "_foreach_div"),
    *("_foreach_div_", "_foreach_addcmul", "_foreach_addcmul_", "_foreach_addcdiv", "_foreach_addcdiv_", "_foreach_lerp"),
    *("_foreach_lerp_", "_foreach_sqrt", "_foreach_sqrt_", "_foreach_neg", "_foreach_neg_", "_foreach_reciprocal"),
    *("_foreach_reciprocal_", "_foreach_pow", "_foreach_pow_", "_foreach_maximum", "_foreach_maximum_", "_foreach_minimum"),
    *("_foreach_abs", "_foreach_abs_", "_foreach_sign", "_foreach_zero_", "_foreach_copy_", "_foreach_clamp_min_"),
    *("_foreach_clamp_max_", "_foreach_exp", "_foreach_exp_", "_foreach_minimum_", "_foreach_clamp_max", "_foreach_rsqrt_"),
    *("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"),  # FusedAdamKernel.cu and its like: in place
    *("_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_"),  # AmpKernels.cu: in place
)
_ATTENTION = ("_fused_sdp_choice",)

CHECKED: frozenset[str] = frozenset(_POINTWISE + _FACTORIES + _VIEWS + _SHAPES + _NORMS + _LOSSES + _FOREACH + _ATTENTION)
"""By aten name without the overload."""
