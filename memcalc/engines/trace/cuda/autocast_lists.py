"""CUDA autocast's lists of operators, by policy (ATen/autocast_mode.h and autocast_mode.cpp, torch 2.6 to 2.14)."""

from __future__ import annotations

LOWER_PRECISION: tuple[str, ...] = (  # AT_FORALL_LOWER_PRECISION_FP, and the two cudnn_ of autocast_mode.cpp
    *("_convolution.deprecated", "_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "convolution"),
    *("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
    *("cudnn_convolution", "cudnn_convolution_transpose"),
    *("prelu", "addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv", "linalg_vecdot", "linear"),
    *("addbmm", "baddbmm", "bmm", "chain_matmul", "linalg_multi_dot"),
    *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    *("_scaled_dot_product_flash_attention", "scaled_dot_product_attention"),
)
"""Every floating-point argument is cast to autocast's dtype."""

FP32: tuple[str, ...] = (  # AT_FORALL_FP32
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh", "tan"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus"),
    *("layer_norm", "native_layer_norm", "rms_norm", "group_norm"),
    *("frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim", "cosine_similarity"),
    *("poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "kl_div", "l1_loss"),
    *("smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss"),
    *("triplet_margin_loss", "multi_margin_loss", "binary_cross_entropy_with_logits"),
    *("dist", "pdist", "cdist", "renorm", "logsumexp"),
    *("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d", "_upsample_nearest_exact2d"),
    *("upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d"),
    *("_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    "linalg_matrix_sqrth",
)
"""Every floating-point argument is cast to float32."""

FP32_SET_OPT_DTYPE: tuple[str, ...] = (  # AT_FORALL_FP32_SET_OPT_DTYPE
    *("prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum"),
    *("linalg_vector_norm", "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList"),
)
"""``dtype=float32`` is passed where none was; no argument is cast."""

FP32_APPEND_DTYPE: dict[str, str] = {  # AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE
    "norm.Scalar": "norm.ScalarOpt_dtype",
    "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype",
}
"""The overload with a dtype is called in place of the one without."""

PROMOTE: tuple[str, ...] = (  # AT_FORALL_PROMOTE
    *(
        "addcdiv",
        "addcmul",
        "atan2",
        "bilinear",
        "cross",
        "dot",
        "vdot",
        "grid_sampler",
        "index_put",
        "tensordot",
        "scatter_add",
    ),
)
"""Arguments are cast to the widest floating-point dtype among them."""

BANNED: tuple[str, ...] = ("binary_cross_entropy",)  # binary_cross_entropy_banned in autocast_mode.cpp
"""Raises under autocast."""

SINCE: dict[str, tuple[int, int]] = {
    "rms_norm": (2, 12),  # pytorch/pytorch#174824, first released in 2.12 (issue #188955)
    "linalg_matrix_sqrth": (2, 14),  # autocast_mode.cpp of 2.14, where it is new; its policy as CPU's autocast shows it
}
"""Operators that joined a list after torch 2.6."""


def lists(torch: tuple[int, int]) -> dict[str, tuple[str, ...]]:
    """Operators (``name`` or ``name.overload``) by policy in that version of torch.

    >>> "rms_norm" in lists((2, 11))["fp32"], "rms_norm" in lists((2, 12))["fp32"]
    (False, True)
    """
    every = {
        "lower_precision_fp": LOWER_PRECISION,
        "fp32": FP32,
        "fp32_set_opt_dtype": FP32_SET_OPT_DTYPE,
        "fp32_append_dtype": tuple(FP32_APPEND_DTYPE),
        "promote": PROMOTE,
        "banned": BANNED,
    }
    return {policy: tuple(op for op in ops if SINCE.get(op, (0, 0)) <= torch) for policy, ops in every.items()}
